"""Runs in Weights & Biases."""

from gradtrace.exporters.wandb.exporter import WandbExporter

__all__ = ["WandbExporter"]
