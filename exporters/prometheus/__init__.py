"""Runs as an endpoint that Prometheus scrapes."""

from gradtrace.exporters.prometheus.exporter import PrometheusExporter

__all__ = ["PrometheusExporter"]
