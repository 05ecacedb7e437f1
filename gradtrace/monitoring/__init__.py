"""Alerts and a dashboard for runs that PrometheusExporter shows."""

from gradtrace.monitoring.files import TARGET, write_monitoring
from gradtrace.monitoring.rules import Rule, grafana_rules, prometheus_rules, rules

__all__ = [
    "TARGET",
    "Rule",
    "grafana_rules",
    "prometheus_rules",
    "rules",
    "write_monitoring",
]
