"""Keys that every backend takes: clean, each for itself, and none a folder of another."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import permutations

import pytest
from rich_records import LAYERS, LOGGED, rich_records

from gradtrace.metrics.keys import MAX_KEY, MOST_KEYS, Keys, clean_key
from gradtrace.metrics.run_summary import RunTotals
from gradtrace.metrics.step_values import StepValues
from gradtrace.records import RunInfo

ALLOWED = re.compile(r"[A-Za-z0-9_\-. :/]{1,250}")


def folders_among(keys: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of which the first is a folder that the second lies in."""
    return [(one, other) for one in keys for other in keys if other.startswith(one + "/")]


def test_keys_are_clean_and_stay_apart() -> None:
    """A good key stays; a bad one becomes a good one that is the same each time, and unique."""
    for good in ("gradtrace/loss", "a b:c/d-e_f.0", "x" * MAX_KEY):
        assert clean_key(good) == good
    bad = [
        "",
        "/",
        "a/",
        "a//b",
        "a/./b",
        "..",
        "é",
        "a\nb",
        "a\tb",
        "x" * 251,
        "x" * 252,
        "\ud800",
    ]
    cleaned = [clean_key(key) for key in bad]
    assert len(set(cleaned)) == len(bad)
    assert cleaned == [clean_key(key) for key in bad]
    for key in cleaned:
        assert ALLOWED.fullmatch(key)
        assert not {"", ".", ".."} & set(key.split("/"))


@pytest.mark.parametrize("order", list(permutations(["g/a", "g/a/b", "g/a/b/c", "g/a/d"])))
def test_no_key_is_a_folder_of_another(order: tuple[str, ...]) -> None:
    """Whichever comes first, it stays as it is; the others are changed, the same each time."""
    keys = Keys()
    found = [keys[key] for key in order]
    assert found[0] == order[0]
    assert len(set(found)) == len(found) and not folders_among(found)
    assert all(ALLOWED.fullmatch(key) and key.startswith("g/") for key in found)
    again = Keys()
    assert [again[key] for key in order] == found == [keys[key] for key in order]


def test_keys_that_are_no_folders_stay() -> None:
    """A user's own grouping is kept where nothing stands against it."""
    keys = Keys()
    for key in ("g/train/loss", "g/train/accuracy", "g/val/loss", "g/value"):
        assert keys[key] == key


def test_memory_is_bounded() -> None:
    """Of keys that are made up at every step no more than some thousands are kept."""
    keys = Keys()
    for step in range(MOST_KEYS + 10):
        assert keys[f"loss of step {step}"]
    assert len(keys) <= MOST_KEYS and len(keys._taken) <= MOST_KEYS


def test_a_rich_run_sends_no_folder() -> None:
    """Among all keys that a run with every kind of value sends none is a folder of another."""
    values, totals = StepValues(RunInfo(name="run", started=0.0)), RunTotals()
    values.watch(lambda: {"mlflow": 1})
    sent: set[str] = set()
    # Enough steps for a threshold to be suggested.
    for record in rich_records(120):
        sent |= set(values.update(record) or ())
        totals.update(record)
    sent |= totals.values().keys()
    plain = {re.sub("-[0-9a-f]{8}$", "", key).removeprefix("gradtrace/") for key in sent}
    assert plain >= {"grad_norm", "grad_norm_p95", "lr", "lr_0", "lr_1", "clip/fraction_overall"}
    assert plain >= {"loss", "logged/loss", "dropped_records", "suggested_clip_norm"}
    assert sum(key.startswith("gradtrace/logged/") for key in sent) == len(LOGGED)
    of_layers = [key for key in sent if key.startswith("gradtrace/layers/")]
    # Each layer has five values, and so have the groups but for those of outputs.
    assert len(of_layers) >= 5 * len(LAYERS)
    assert folders_among(sent) == []
