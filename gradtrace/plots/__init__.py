"""Figures, which import matplotlib (`pip install gradtrace[plots]`) when they are drawn."""

from gradtrace.plots.spike import save_spike_figure, spike_figure

__all__ = ["save_spike_figure", "spike_figure"]
