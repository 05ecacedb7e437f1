"""Spikes and hyper-parameters in terms that W&B's tables, alerts and JSON take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradtrace.records import Spike

COLUMNS = (
    "step",
    "signal",
    "value",
    "baseline",
    "ratio",
    "steps",
    "batch",
    "sample ids",
    "likely cause",
)
"""Of the table of spikes."""

MAX_TEXT = 2000


def spike_row(spike: Spike) -> list[Any]:
    """A row of the table, in the order of COLUMNS; batches and samples are the blamed ones."""
    batches = ", ".join(f"epoch {ref.epoch} batch {ref.batch_index}" for ref in spike.blamed)
    ids = ", ".join(str(id_) for ref in spike.blamed for id_ in ref.sample_ids or ())
    return [
        spike.step,
        spike.signal,
        spike.value,
        spike.baseline,
        spike.ratio,
        spike.duration,
        batches,
        plain(ids, MAX_TEXT),
        plain(_likely(spike), MAX_TEXT),
    ]


def alert_text(spike: Spike, run: str) -> str:
    """What an alert says below its title."""
    cause = _likely(spike)
    text = f"Step {spike.step} of {run}: {spike.message}"
    return plain(text + (f"\nLikely: {cause}" if cause else ""), MAX_TEXT)


def _likely(spike: Spike) -> str:
    return "" if spike.likely is None else spike.likely.message


def plain(text: str, most: int) -> str:
    """At most so many characters, none that a terminal or JSON trips over."""
    plain = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def plain_config(config: Mapping[Any, Any], depth: int = 20) -> dict[str, Any]:
    """The hyper-parameters with texts as keys; what is neither text nor number becomes text."""

    def value_of(value: Any, depth: int) -> Any:
        if value is None or isinstance(value, (bool, int, float)):
            return value
        if isinstance(value, Mapping) and depth:
            return {plain(str(key), 250): value_of(v, depth - 1) for key, v in value.items()}
        if isinstance(value, (list, tuple)) and depth:
            return [value_of(v, depth - 1) for v in value]
        try:
            return plain(str(value), MAX_TEXT)
        except Exception:  # the user's own __str__
            return f"a {type(value).__name__}"

    return {plain(str(key), 250): value_of(value, depth) for key, value in config.items()}
