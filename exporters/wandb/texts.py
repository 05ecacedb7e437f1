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
    """A row of the table, in the order of COLUMNS."""
    batches = ", ".join(f"epoch {ref.epoch} batch {ref.batch_index}" for ref in spike.batches)
    ids = ", ".join(str(id_) for ref in spike.batches for id_ in ref.sample_ids or ())
    return [
        spike.step,
        spike.signal,
        spike.value,
        spike.baseline,
        spike.ratio,
        spike.duration,
        batches,
        plain(ids, MAX_TEXT),
        plain(likely(spike), MAX_TEXT),
    ]


def likely(spike: Spike) -> str:
    """The likeliest cause that there was enough data to judge; empty without any."""
    sure = [cause.message for cause in spike.causes if cause.confidence is not None]
    return sure[0] if sure else ""


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
