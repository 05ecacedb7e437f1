"""Figures. Imports matplotlib, which `pip install gradtrace[plots]` brings, on first use."""

from gradtrace.plots.spike import save_spike_figure, spike_figure

__all__ = ["save_spike_figure", "spike_figure"]
