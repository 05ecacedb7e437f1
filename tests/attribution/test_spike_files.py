"""The ready callback: a file a spike, read back whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gradtrace import BatchRef, Spike, SpikeFiles

SPIKE = Spike(
    step=7,
    time=1.0,
    severity="warning",
    message="",
    signal="loss",
    value=9.0,
    baseline=3.0,
    ratio=3.0,
    score=1.5,
    batches=(BatchRef(0, 7, 7, (1, "doc/2")),),
)


def test_ids_and_random_state_come_back(tmp_path: Path) -> None:
    """What was saved restores the generator, which saving left untouched."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    SpikeFiles(tmp_path / "spikes")(SPIKE)
    assert torch.equal(torch.get_rng_state(), before)
    expected = torch.rand(3)
    [path] = (tmp_path / "spikes").iterdir()
    event, state = SpikeFiles.read(path)
    assert event["step"] == 7 and event["batches"][0]["sample_ids"] == [1, "doc/2"]
    torch.set_rng_state(state)
    assert torch.equal(torch.rand(3), expected)


def test_wrong_places_and_files_are_told(tmp_path: Path) -> None:
    """A file where the folder should be, and a file that is none of ours."""
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ValueError, match="which is a file"):
        SpikeFiles(tmp_path / "file")
    for wrong in (3, None, True):
        with pytest.raises(TypeError, match=f"directory is {wrong}; expected the path of a folder"):
            SpikeFiles(wrong)  # type: ignore[arg-type]
    for empty in ("", "a\0b"):
        with pytest.raises(ValueError, match="expected the path of a folder"):
            SpikeFiles(empty)
    with pytest.raises(ValueError, match="no file of a spike"):
        SpikeFiles.read(tmp_path / "file")
