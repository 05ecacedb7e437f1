"""Segment files, read as far as they are complete."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import new_log, numbers, write

from gradtrace.runlog import segments
from gradtrace.runlog.reader import load_run


@pytest.mark.slow
def test_a_stream_cut_anywhere_gives_what_was_complete(tmp_path: Path) -> None:
    """At every length of a segment, every complete batch is read and nothing else."""
    log = new_log(tmp_path)
    ends = []
    for step in range(4):
        write(log, step)
        ends.append((log.path / "gradients-000000.arrows").stat().st_size)
    whole = (log.path / "gradients-000000.arrows").read_bytes()
    segment = tmp_path / "gradients-000000.arrows"
    for size in range(len(whole) + 1):
        segment.write_bytes(whole[:size])
        batch = segments.SegmentReader(segment, "gradients").poll()
        complete = sum(end <= size for end in ends)
        rows = [step for step in range(complete) for _ in range(1 + step % 3)]
        assert ([] if batch is None else batch.column("step").to_pylist()) == rows


def test_a_stream_that_grows_by_any_bytes_is_followed(tmp_path: Path) -> None:
    """One reader polling after every few bytes sees each batch once, dictionaries included."""
    log = new_log(tmp_path)
    write(log, *range(6))
    whole = (log.path / "gradients-000000.arrows").read_bytes()
    segment = tmp_path / "gradients-000000.arrows"
    segment.touch()
    follower = segments.SegmentReader(segment, "gradients")
    seen: list[tuple[int, str]] = []
    with segment.open("ab", buffering=0) as file:
        for at in range(0, len(whole), 7):
            file.write(whole[at : at + 7])
            batch = follower.poll()
            if batch is not None:
                columns = batch.column("step").to_pylist(), batch.column("layer").to_pylist()
                seen.extend(zip(*columns, strict=True))
    assert seen == [(step, f"layer{i}") for step in range(6) for i in range(1 + step % 3)]


@pytest.mark.slow
@pytest.mark.parametrize("table", ["steps", "gradients"])
def test_a_flipped_byte_anywhere_raises_nothing(tmp_path: Path, table: str) -> None:
    """Wherever a byte of a segment is wrong, reading ends in order, at worst with fewer rows."""
    log = new_log(tmp_path)
    write(log, 0, 1)
    path = log.path / f"{table}-000000.arrows"
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert len(list(load_run(log.path).records())) <= 2


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\xf0\xff\xff\x7f", b"x" * 9000]
)
def test_a_damaged_segment_does_not_hide_the_others(tmp_path: Path, damage: bytes) -> None:
    """Empty, half-headed or garbage files in the middle cost only what they held."""
    log = new_log(tmp_path, segment_bytes=1)
    write(log, *range(6))
    log.close({})
    (log.path / "steps-000002.arrows").write_bytes(damage)
    (log.path / "gradients-000004.arrows").write_bytes(damage)
    assert numbers(log.path) == [0, 1, 3, 4, 5]
    assert [item.step for item in load_run(log.path).records(5)] == [5]
    lacking = [r.step for r in load_run(log.path).records() if not getattr(r, "gradients", 1)]
    assert lacking == [4]
    assert set(load_run(log.path).gradients.column("step").to_pylist()) == {0, 1, 2, 3, 5}


def test_segments_are_in_order_under_either_name(tmp_path: Path) -> None:
    """Output gradients were called signals once; what is named otherwise is no segment."""
    for name in ("output_gradients-000010", "output_gradients-2", "signals-000001"):
        (tmp_path / f"{name}.arrows").touch()
    for name in ("output_gradients-x.arrows", "signals-1.arrows.tmp", "my_signals-1.arrows"):
        (tmp_path / name).touch()
    assert [number for number, _ in segments.segments(tmp_path, "output_gradients")] == [1, 2, 10]
    assert segments.segments(tmp_path, "gradients") == []
    assert segments.segments(tmp_path / "missing", "gradients") == []


def test_the_first_step_is_told_by_the_schema(tmp_path: Path) -> None:
    """Without reading the rows; None for what has none, or is no segment."""
    log = new_log(tmp_path)
    write(log, 7)
    assert segments.first_step(log.path / "steps-000000.arrows") == 7
    assert segments.first_step(log.path / "run.json") is None
    assert segments.first_step(log.path / "missing") is None
