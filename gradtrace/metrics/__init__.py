"""The metrics' names, units and values, as every exporter sends them."""

from gradtrace.metrics.table import METRICS, Metric
from gradtrace.metrics.totals import Totals, is_nonfinite

__all__ = ["METRICS", "Metric", "Totals", "is_nonfinite"]
