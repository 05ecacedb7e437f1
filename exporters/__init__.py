"""Exporters: each sends a run's records somewhere. Importing this loads no backend's package."""

from gradtrace.exporters.console import ConsoleExporter

__all__ = ["ConsoleExporter"]
