"""Exporters: each sends a run's records somewhere. Importing this loads no backend's package."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradtrace.exporters.console import ConsoleExporter
    from gradtrace.exporters.mlflow import MLflowExporter
    from gradtrace.exporters.openmetrics import OpenMetricsExporter
    from gradtrace.exporters.opentelemetry import OpenTelemetryExporter
    from gradtrace.exporters.prometheus import PrometheusExporter
    from gradtrace.exporters.tensorboard import TensorBoardExporter
    from gradtrace.exporters.wandb import WandbExporter

__all__ = [
    "ConsoleExporter",
    "MLflowExporter",
    "OpenMetricsExporter",
    "OpenTelemetryExporter",
    "PrometheusExporter",
    "TensorBoardExporter",
    "WandbExporter",
]

_MODULES = {
    "ConsoleExporter": "gradtrace.exporters.console",
    "MLflowExporter": "gradtrace.exporters.mlflow",
    "OpenMetricsExporter": "gradtrace.exporters.openmetrics",
    "OpenTelemetryExporter": "gradtrace.exporters.opentelemetry",
    "PrometheusExporter": "gradtrace.exporters.prometheus",
    "TensorBoardExporter": "gradtrace.exporters.tensorboard",
    "WandbExporter": "gradtrace.exporters.wandb",
}


# Hidden from type checkers, which would take any name at all for one of ours.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
