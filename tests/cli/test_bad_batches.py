"""`gradtrace bad-batches`."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import run

from gradtrace import SkipSamples


def test_bad_batches(spiking: Path) -> None:
    """`gradtrace bad-batches` writes JSON that SkipSamples takes."""
    code, text = run("bad-batches", "poisoned", "--output", "bad.json")
    assert code == 0 and "1 samples and 0 batches" in text
    assert 77 not in set(SkipSamples(range(400), "bad.json"))
    assert len(set(SkipSamples(range(400), "bad.json"))) == 399
    code, text = run("bad-batches", "poisoned")
    assert code == 0 and json.loads(text)["samples"][0]["id"] == 77
    assert run("bad-batches", "poisoned", "--output", "no/where.json")[0] == 1
