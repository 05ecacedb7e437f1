"""Figures. Imports matplotlib, which `pip install gradtrace[plots]` brings, on first use."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gradtrace.records import Spike
from gradtrace.runlog import Run
from gradtrace.suspects import Suspects

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE = 50
AFTER = 20
LAYERS = 20
SAMPLES = 12


def spike_figure(run: Run, spike: Spike, suspects: Suspects | None = None) -> Figure:
    """One spike: loss and norm around it on log scales, the layers' norms, the samples ranked.

    The heat map shows each layer's norm relative to its median over the steps shown, for the layers
    that rose most. The samples' panel is there only with `suspects`.

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
        if spike.signal == signal:
            axis.axhline(spike.baseline, color="#888888", lw=1, ls="--", label="baseline")
            axis.plot([spike.step], [spike.value], "o", color="#c0392b", label="spike")
            axis.legend(loc="upper left", fontsize=8, frameon=False)
        axis.axvspan(
            spike.step - 0.5, spike.step + spike.duration - 0.5, color="#c0392b", alpha=0.12
        )
        axis.set_ylabel(label)
        axis.set_xlim(steps[0] - 0.5, steps[-1] + 0.5)
        axis.grid(alpha=0.25)
    if len(layers):
        axis = axes[2]
        top = max(2.0, float(np.nanmax(np.where(np.isfinite(heat), heat, np.nan))))
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
        figure.colorbar(image, ax=axis, label="norm / its median", pad=0.01)
    if suspects is not None:
        _draw_samples(axes[-1], suspects)
    return figure


def save_spike_figure(run: Run, spike: Spike, path: Path, suspects: Suspects | None = None) -> None:
    """Writes the figure as PNG or whatever the path's suffix says."""
    spike_figure(run, spike, suspects).savefig(path, dpi=120)


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
    ratios = [s.loss_ratio if suspects.signal == "loss" else s.norm_ratio for s in shown]
    capped = [r if math.isfinite(r) else 1e6 for r in ratios]
    colors = ["#c0392b" if s.stands_out else "#8aa0bd" for s in shown]
    axis.barh(range(len(shown)), capped, color=colors)
    axis.set_yticks(range(len(shown)), [_short(str(s.sample_id)) for s in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.axvline(1.0, color="#888888", lw=1, ls="--")
    what = "loss" if suspects.signal == "loss" else "gradient norm"
    axis.set_xlabel(f"sample's {what} / median of the spike's samples")


def _short(text: str, most: int = 40) -> str:
    plain = "".join(c if c.isprintable() and c != "$" else "?" for c in text)
    return plain if len(plain) <= most else "..." + plain[3 - most :]
