"""The judge: which causes are looked for, in which order they are told, what is remembered."""

from __future__ import annotations

from collections.abc import Iterator

from spike_records import record, spikes_of

from gradtrace.detect.spikes import causes_in_data, causes_in_numbers, causes_in_time
from gradtrace.detect.spikes.case import Case, unknown
from gradtrace.detect.spikes.causes import TESTS, Causes
from gradtrace.detect.spikes.history import History
from gradtrace.records import Cause


def sure_of(kind: str, confidence: float) -> Cause:
    return Cause(kind, f"it is {kind}", confidence)


def test_the_likeliest_cause_is_first_and_what_cannot_be_judged_last() -> None:
    """Equals stay in the order in which they are looked for."""

    def some(case: Case) -> Iterator[Cause]:
        yield sure_of("weak", 0.4)
        yield unknown("dark", "it is night")
        yield sure_of("strong", 0.9)

    def more(case: Case) -> Iterator[Cause]:
        yield sure_of("equal", 0.9)

    history = History()
    facts = history.add(record(100), {})
    [spike] = spikes_of([record(step, norm=9.0 if step == 100 else 1.0) for step in range(101)])
    found = Causes(history, tests=(some, more)).of(spike, facts)
    assert [cause.kind for cause in found] == ["strong", "equal", "weak", "dark"]
    assert found[-1].confidence is None
    assert found[-1].message == "not enough data: it is night"


def test_every_test_of_the_three_files_is_asked() -> None:
    """Each function of theirs that takes a case is in the list, and none twice."""
    for module in (causes_in_data, causes_in_time, causes_in_numbers):
        written = {
            value
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
            and getattr(value, "__annotations__", {}).get("case") == "Case"
        }
        assert written == set(module.TESTS)
        assert set(module.TESTS) <= set(TESTS)
    assert len(set(TESTS)) == len(TESTS)


def test_a_test_sees_the_case_and_the_spikes_before_it() -> None:
    """The present spike is remembered after it was judged, with the batches blamed for it."""
    seen: list[tuple[int, list[int], int]] = []

    def look(case: Case) -> Iterator[Cause]:
        seen.append((case.spike.step, [past.step for past in case.history.spikes], case.world_size))
        yield from ()

    history = History()
    judge = Causes(history, world_size=2, tests=(look,))
    spikes = spikes_of([record(s, norm=9.0 if s in (100, 120) else 1.0) for s in range(130)])
    for spike in spikes:
        judge.of(spike, history.add(record(spike.step), {}))
    assert seen == [(100, [], 2), (120, [100], 2)]
    assert [past.batches for past in history.spikes] == [spike.blamed for spike in spikes]
