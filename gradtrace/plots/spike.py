"""Figures. Imports matplotlib, which `pip install gradtrace[plots]` brings, on first use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtrace.attribution.suspects import Suspects
from gradtrace.records import Spike
from gradtrace.runlog import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE = 50
AFTER = 20
LAYERS = 20
SAMPLES = 12
HEAT = 100.0
"""Norms that many times their median have the strongest colour, and so have all beyond."""
NARROW = 100.0
"""A log axis whose ends are less than this factor apart has plain numbers."""
RED = "#c0392b"


def spike_figure(run: Run, spike: Spike, suspects: Suspects | None = None) -> Figure:
    """One spike: loss and norm around it on log scales, the layers' norms, the samples ranked.

    Other spikes in the window are rings. The heat map shows each layer's norm relative to its
    median over the steps shown, for the layers that rose most. The samples' panel is there only
    with `suspects`; those that stand out are red.

    Raises ImportError with what to install where matplotlib is missing, ValueError when the run
    has no steps around the spike.
    """
    try:
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'gradtrace[plots]'") from error
    steps, loss, norm = _around(run, spike.step)
    if not len(steps):
        raise ValueError(f"run {run.path} has no steps around step {spike.step}")
    layers, heat, heat_steps = _layers(run, spike.step)
    panels = 2 + bool(len(layers)) + (suspects is not None)
    heights = [1.0, 1.0] + [1.0 + 0.09 * len(layers)] * bool(len(layers))
    heights += [0.4 + 0.16 * min(SAMPLES, len(suspects))] if suspects is not None else []
    figure = Figure(figsize=(9, 2.1 * sum(heights)), layout="constrained")
    axes = figure.subplots(panels, 1, height_ratios=heights)
    figure.suptitle(_title(spike), fontsize=11)
    for axis, values, label, signal in (
        (axes[0], loss, "loss", "loss"),
        (axes[1], norm, "gradient norm", "grad_norm"),
    ):
        good = np.isfinite(values) & (values > 0)
        axis.semilogy(steps[good], values[good], color="#30507a", lw=1.2)
        bad = np.isin(steps, steps[~np.isfinite(values)])
        for step in steps[bad]:
            axis.axvline(step, color="#b03030", lw=0.8, alpha=0.6)
        others = _others(run, spike, signal, steps)
        if others:
            x, y = zip(*others, strict=True)
            axis.plot(x, y, "o", mfc="none", mec=RED, mew=0.9, alpha=0.6, label="other spikes")
        if spike.signal == signal:
            axis.axhline(spike.baseline, color="#888888", lw=1, ls="--", label="baseline")
            axis.plot([spike.step], [spike.value], "o", color=RED, label="spike")
        if others or spike.signal == signal:
            axis.legend(loc="upper left", fontsize=8, frameon=False)
        axis.axvspan(spike.step - 0.5, spike.step + spike.duration - 0.5, color=RED, alpha=0.12)
        axis.set_ylabel(label)
        axis.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        axis.grid(alpha=0.25)
        _plain_numbers(axis.yaxis)
    if len(layers):
        axis = axes[2]
        most = float(np.nanmax(np.where(np.isfinite(heat), heat, np.nan)))
        top = min(max(2.0, most), HEAT)
        image = axis.imshow(
            heat,
            aspect="auto",
            interpolation="nearest",
            cmap="RdBu_r",
            norm=LogNorm(1 / top, top),
            extent=(heat_steps[0] - 0.5, heat_steps[-1] + 0.5, len(layers) - 0.5, -0.5),
        )
        axis.set_yticks(range(len(layers)), [_short(name) for name in layers], fontsize=7)
        axis.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        axis.set_xlabel("step")
        beyond = "max" if most > HEAT else "neither"
        bar = figure.colorbar(image, ax=axis, label="norm / its median", pad=0.01, extend=beyond)
        _plain_numbers(bar.ax.yaxis)
    if suspects is not None:
        _draw_samples(axes[-1], suspects)
    return figure


def save_spike_figure(run: Run, spike: Spike, path: Path, suspects: Suspects | None = None) -> None:
    """Writes the figure as PNG or whatever the path's suffix says."""
    spike_figure(run, spike, suspects).savefig(path, dpi=120)


def _others(run: Run, spike: Spike, signal: str, steps: Any) -> list[tuple[int, float]]:
    """Step and value of the signal's other spikes among the steps shown."""
    shown = set(steps.tolist())
    values = {e.step: e.value for e in run.events if isinstance(e, Spike) and e.signal == signal}
    return [
        (step, value)
        for step, value in values.items()
        if step in shown and (step, signal) != (spike.step, spike.signal) and math.isfinite(value)
    ]


def _plain_numbers(axis: Any) -> None:
    """Writes 40 for 4 x 10^1 on a log axis that spans little; needs its limits."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""  # the same ticks are labelled

    low, high = sorted(axis.get_view_interval())
    if 0 < high < NARROW * low:
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain())


def _title(spike: Spike) -> str:
    name = "Loss" if spike.signal == "loss" else "Gradient norm"
    title = f"{name} {spike.value:.4g} at step {spike.step}: {spike.ratio:.3g} times its baseline"
    if spike.batches:
        title += f"  (epoch {spike.batches[0].epoch}, batch {spike.batches[0].batch_index})"
    return title


def _around(run: Run, step: int) -> tuple[Any, Any, Any]:
    table = run.steps
    steps = table.column("step").to_numpy()
    near = (steps >= step - BEFORE) & (steps <= step + AFTER)
    columns = [table.column(c).to_numpy().astype(np.float64)[near] for c in ("loss", "grad_norm")]
    return steps[near], *columns


def _layers(run: Run, step: int) -> tuple[list[str], Any, Any]:
    """Names, [layers, steps] of norm over median, and the steps, dense."""
    table = run.gradients
    if not table.num_rows:
        return [], None, None
    steps = table.column("step").to_numpy()
    near = (steps >= step - BEFORE) & (steps <= step + AFTER)
    names = np.asarray(table.column("layer").to_pylist(), dtype=object)[near]
    norms = table.column("norm").to_numpy().astype(np.float64)[near]
    steps = steps[near]
    if not len(steps):
        return [], None, None
    rows = {name: i for i, name in enumerate(dict.fromkeys(names.tolist()))}
    dense = np.arange(steps.min(), steps.max() + 1)
    grid = np.full((len(rows), len(dense)), np.nan)
    grid[[rows[n] for n in names], steps - dense[0]] = norms
    with np.errstate(all="ignore"):
        middle = np.nanmedian(np.where(grid > 0, grid, np.nan), axis=1, keepdims=True)
        heat = grid / middle
    at = heat[:, min(max(step - int(dense[0]), 0), len(dense) - 1)]
    order = np.argsort(-np.nan_to_num(at, nan=0.0, posinf=math.inf), kind="stable")[:LAYERS]
    all_names = list(rows)
    return [all_names[i] for i in order], heat[order], dense


def _draw_samples(axis: Any, suspects: Suspects) -> None:
    shown = list(suspects)[:SAMPLES]
    ratios = [max(s.loss_ratio, s.norm_ratio) for s in shown]
    capped = [r if math.isfinite(r) else 1e6 for r in ratios]
    colors = [RED if s.stands_out else "#8aa0bd" for s in shown]
    bars = axis.barh(range(len(shown)), capped, color=colors)
    axis.set_yticks(range(len(shown)), [_short(str(s.sample_id)) for s in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    for bar, label, sample in zip(bars, axis.get_yticklabels(), shown, strict=False):
        if sample.stands_out:
            label.set_color(RED)
            axis.legend([bar], ["stands out"], loc="lower right", fontsize=8, frameon=False)
    axis.axvline(1.0, color="#888888", lw=1, ls="--")
    axis.set_xlabel("sample's loss or gradient norm, the larger / median of the spike's samples")
    _plain_numbers(axis.xaxis)


def _short(text: str, most: int = 40) -> str:
    plain = "".join(c if c.isprintable() and c != "$" else "?" for c in text)
    return plain if len(plain) <= most else "..." + plain[3 - most :]
