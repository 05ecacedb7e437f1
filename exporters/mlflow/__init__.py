"""Runs in MLflow."""

from gradtrace.exporters.mlflow.exporter import MLflowExporter

__all__ = ["MLflowExporter"]
