"""What W&B's tables, alerts and JSON take."""

from __future__ import annotations

from typing import Any

from build import batch, spike

from gradtrace.exporters.wandb.texts import (
    COLUMNS,
    MAX_TEXT,
    alert_text,
    plain,
    plain_config,
    spike_row,
)
from gradtrace.records import Cause


def test_a_row_has_a_cell_a_column() -> None:
    """Blamed batches and their samples, and the likely cause, as texts that are not too long."""
    blamed = (batch(7, ("\ud800", "x" * 9000)), batch(8))
    one = spike(4, batches=(batch(6, ("innocent",)),), blamed=blamed, duration=3)
    row = dict(zip(COLUMNS, spike_row(one), strict=True))
    assert (row["step"], row["signal"], row["value"], row["steps"]) == (4, "loss", 9.0, 3)
    assert row["batch"] == "epoch 0 batch 7, epoch 0 batch 8"
    assert row["sample ids"].startswith(" , xxx") and len(row["sample ids"]) == MAX_TEXT
    assert row["likely cause"] == ""


def test_an_alert_says_what_and_why() -> None:
    """The message, and the likely cause where one could be judged."""
    assert alert_text(spike(4), "mine") == "Step 4 of mine: loss is high"
    causes = (Cause("a", "unsure", None), Cause("b", "it rose", 0.9))
    assert alert_text(spike(4, causes=causes), "mine").endswith("\nLikely: it rose")
    assert len(alert_text(spike(4, message="x" * 9000), "mine")) == MAX_TEXT


def test_texts_are_plain() -> None:
    """What would steer a terminal becomes a space; lines stay, long texts are cut."""
    assert plain("a\x1b[2J\tb\nc", 99) == "a [2J b\nc"
    assert plain("abcdefgh", 6) == "abc..." and plain("abcdef", 6) == "abcdef"


def test_a_configuration_is_plain() -> None:
    """Numbers and texts stay, keys become texts, all else becomes text, and depth has an end."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    endless: dict[Any, Any] = {}
    endless["self"] = endless
    config = {1: {"a": (1, 2.5, None, True)}, "odd": Odd(), "set": {3}, "endless": endless}
    found = plain_config(config)
    assert found["1"] == {"a": [1, 2.5, None, True]}
    assert found["odd"] == "a Odd" and found["set"] == "{3}"
    depth = 0
    while isinstance(found := found.get("endless") or found["self"], dict):
        depth += 1
    assert 10 < depth < 30
