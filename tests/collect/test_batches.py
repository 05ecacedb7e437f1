"""Batches wait until a backward takes them: those that it was computed from, or none and a note."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gradtrace.collect.batches import MOST_HELD, STEADY, Batches, Stream
from gradtrace.handover.step import Batch


class Held:
    """Batches, with the notes they gave; a source is any object that is iterated."""

    def __init__(self, **kwargs: Any) -> None:
        self.notes: list[str] = []
        self.kept: list[Tensor] = []
        self.batches = Batches(
            kwargs.pop("sample_ids", None),
            lambda source, text: self.notes.append(f"{source}: {text}"),
            **kwargs,
        )

    def take(self) -> list[int]:
        """The ordinals of what a backward takes."""
        return [batch.ordinal for batch in self.batches.take()]

    def everything(self) -> list[int]:
        """The ordinals of what a step without a backward takes."""
        return [batch.ordinal for batch in self.batches.take(everything=True)]

    def keep(self, stream: Stream, count: int = 1) -> None:
        """So many batches, of which the last two stay alive."""
        for _ in range(count):
            self.kept = [*self.kept[-1:], torch.ones(1)]
            self.batches.delivered(stream, None, self.kept[-1])

    def deliver(self, stream: Stream, count: int = 1) -> None:
        """So many batches, which the loop does not keep."""
        for _ in range(count):
            self.batches.delivered(stream, None, torch.ones(1))


def loader_of(count: int = 8) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(count, 1)), batch_size=2)


def numbers(batch: Batch) -> tuple[int, int, int]:
    return batch.epoch, batch.batch_index, batch.ordinal


def first(indices: Any, data: Any = None, **kwargs: Any) -> Batch:
    """A batch of these indices, taken by the first backward."""
    held = Held(**kwargs)
    held.batches.delivered(held.batches.begin(loader_of()), indices, data)
    [batch] = held.batches.take()
    return batch


# -- numbers and ids ---


def test_epochs_are_counted_for_each_loader() -> None:
    """Iterations over one loader do not count for another."""
    begin, one, other = Held().batches.begin, loader_of(), loader_of()
    assert [begin(x).epoch for x in (one, other, one, one, other)] == [0, 0, 1, 2, 1]


def generated() -> Iterator[int]:
    yield from range(3)


@pytest.mark.parametrize("make", [generated, loader_of])
def test_a_loader_that_is_gone_is_not_taken_for_a_new_one(make: Any) -> None:
    """Memory is used again, and so are the numbers that tell objects apart."""
    batches, kept = Held().batches, make()
    assert batches.begin(kept).epoch == 0
    for _ in range(20):
        assert batches.begin(make()).epoch == 0
    assert batches.begin(kept).epoch == 1
    assert len(batches._known) <= 2


def test_what_has_no_weak_references_is_counted_too() -> None:
    """A list, for one."""
    batches, one = Held().batches, [1, 2]
    assert [batches.begin(one).epoch for _ in range(3)] == [0, 1, 2]


def test_batches_are_numbered_in_the_order_of_delivery() -> None:
    """Whatever loader they are from; the index is that within its iteration."""
    held = Held()
    one, other = held.batches.begin([1]), held.batches.begin([2])
    found = []
    for streams in ((one, other), (one, other)):
        for stream in streams:
            held.deliver(stream)
        found += [numbers(batch) for batch in held.batches.take()]
    assert found == [(0, 0, 0), (0, 0, 1), (0, 1, 2), (0, 1, 3)]
    assert held.batches.count == 4 and held.notes == []


@pytest.mark.parametrize(
    ("indices", "ids"),
    [
        (None, None),
        ([3, 1], (3, 1)),
        ((3, 1), (3, 1)),
        (range(2, 4), (2, 3)),
        ([None, None], None),
        ([], ()),
        (7, (7,)),
        ("key", ("key",)),
    ],
)
def test_dataset_indices_are_the_ids(indices: Any, ids: Any) -> None:
    """Those that the sampler drew; an iterable dataset, which draws none, has none."""
    assert first(indices, torch.ones(2)).sample_ids == ids


@pytest.mark.parametrize("drawn", [[1, 2], np.array([1, 2]), torch.tensor([1, 2])])
def test_drawn_indices_are_kept_from_later_changes(drawn: Any) -> None:
    """A sampler may use its list, array or tensor again."""
    batch = first(drawn)
    drawn[0] = 9
    assert list(batch.sample_ids) == [1, 2]


def test_the_users_own_ids_come_first() -> None:
    """Their function gets the batch, and dataset indices are not asked."""
    batch = first([3, 1], ["a", "b"], sample_ids=lambda data: [f"doc-{x}" for x in data])
    assert batch.sample_ids == ("doc-a", "doc-b")


# -- which batches a backward takes ---


def test_one_batch_a_backward() -> None:
    """The plain rhythm; a second backward of the same batch has none."""
    held = Held()
    stream = held.batches.begin([])
    found = []
    for _ in range(3):
        held.deliver(stream)
        found.append(held.take())
        assert held.take() == []
    assert found == [[0], [1], [2]] and held.notes == []


def test_several_batches_a_backward() -> None:
    """Which use the first one made of them shows at the second; the last one may have fewer."""
    held = Held()
    stream = held.batches.begin([])
    found = []
    for count in (3, 3, 3, 2):
        held.deliver(stream, count)
        found.append(held.take())
    assert found == [[], [3, 4, 5], [6, 7, 8], [9, 10]]
    [note] = held.notes
    assert note.startswith("batches: 3 batches were delivered before the first backward")


def test_a_loop_that_fetches_ahead() -> None:
    """A backward has the batch before the newest one, the last ones what was fetched early."""
    held = Held()
    stream = held.batches.begin([])
    found = []
    for count in (2, 1, 1):
        held.keep(stream, count)
        found.append(held.take())
    held.batches.ended(stream)
    found.append(held.take())
    assert found == [[], [1], [2], [3]] and len(held.notes) == 1
    assert held.take() == []


def test_a_second_backward_takes_nothing_of_what_was_fetched_ahead() -> None:
    """What waits for the next backward is not taken by one more of the batch before."""
    held = Held()
    stream = held.batches.begin([])
    for count, expected in ((2, []), (1, [1]), (0, []), (1, [2]), (0, [])):
        held.keep(stream, count)
        assert held.take() == expected


def test_what_was_fetched_ahead_outlives_what_cannot_be_told() -> None:
    """Where too many wait, the newest is still the next one's."""
    held = Held()
    stream = held.batches.begin([])
    for count, expected in ((2, []), (1, [1]), (2, []), (1, [4])):
        held.keep(stream, count)
        assert held.take() == expected


def test_a_rhythm_lasts_for_all_iterations() -> None:
    """What the first epoch has shown holds from the first step of the next one."""
    held, source = Held(), loader_of()
    for expected in ([[], [1]], [[3], [4]]):
        stream = held.batches.begin(source)
        held.batches.want(source)
        found = []
        for count in (2, 1):
            held.keep(stream, count)
            found.append(held.take())
        held.batches.ended(stream)
        assert found == expected
    assert len([n for n in held.notes if n.startswith("batches")]) == 1


def steady(held: Held, stream: Stream) -> list[Tensor]:
    """So many plain steps that the rhythm is certain; the batch that the loop still holds."""
    data: list[Tensor] = []
    for _ in range(STEADY):
        data = [torch.ones(1)]
        held.batches.delivered(stream, None, data)
        assert len(held.take()) == 1
    return data


def test_batches_that_a_steady_loop_passes_over() -> None:
    """They are gone from memory before the backward: it took the one that is alive."""
    held = Held()
    stream = held.batches.begin([])
    steady(held, stream)
    held.deliver(stream, 2)
    kept = torch.ones(1)
    held.batches.delivered(stream, None, kept)
    assert held.take() == [STEADY + 2] and held.notes == []
    held.deliver(stream)
    assert held.take() == [STEADY + 3]


@pytest.mark.parametrize("takes", [STEADY - 1, STEADY])
def test_batches_that_cannot_be_told_apart_are_none(takes: int) -> None:
    """More than usual are waiting, and all are alive, or the rhythm is young: none, and a note."""
    held = Held()
    stream = held.batches.begin([])
    for _ in range(takes):
        held.deliver(stream)
        held.take()
    kept = [torch.ones(1), torch.ones(1)]
    if takes < STEADY:
        held.deliver(stream)
        kept.pop()
    for data in kept:
        held.batches.delivered(stream, None, data)
    assert held.take() == []
    [note] = held.notes
    assert "2 batches were waiting at a backward where 1 are usual" in note
    held.deliver(stream)
    assert held.take() == [takes + 2]


@pytest.mark.parametrize("counts", [(4, 2), (6, 1), (2, 1)])
def test_a_rhythm_that_does_not_show_is_none(counts: tuple[int, int]) -> None:
    """Another number than before, or one more where the others are not kept: none, and a note.

    The last two are loops that pass over the first batches, as a resumed one does; the next
    iteration, which begins plainly, has its own.
    """
    held, source = Held(), [1]
    stream = held.batches.begin(source)
    for count in (*counts, 1, 1):
        held.deliver(stream, count)
        assert held.take() == []
    assert len(held.notes) == 2 and "trace.take(loader)" in held.notes[1]
    stream = held.batches.begin(source)
    for k in range(2):
        held.deliver(stream)
        [batch] = held.batches.take()
        assert (batch.epoch, batch.batch_index) == (1, k)


def test_an_evaluation_is_no_training() -> None:
    """What is delivered while gradients are off goes to no backward."""
    held = Held()
    train, check = held.batches.begin([1]), held.batches.begin([2])
    held.deliver(train)
    with torch.no_grad():
        held.deliver(check, 3)
    assert held.take() == [0]
    assert held.take() == [] and held.notes == []


def test_a_broken_off_iteration_leaves_nothing() -> None:
    """What was delivered last, and fetched ahead, is forgotten when the next one begins."""
    held, source = Held(), [1]
    stream = held.batches.begin(source)
    held.deliver(stream)
    assert held.take() == [0]
    held.deliver(stream)
    held.deliver(held.batches.begin(source))
    [batch] = held.batches.take()
    assert numbers(batch) == (1, 0, 2)


def test_a_whole_pass_that_led_to_no_backward_is_forgotten() -> None:
    """An evaluation with gradients on: when training begins, it has had its time."""
    held = Held()
    check = held.batches.begin([1])
    held.deliver(check, 3)
    held.batches.ended(check)
    held.deliver(held.batches.begin([2]))
    assert held.take() == [3] and held.notes == []


def test_two_loaders_give_one_each() -> None:
    """A backward takes from all; each has its own rhythm."""
    held = Held()
    one, other = held.batches.begin([1]), held.batches.begin([2])
    found = []
    for count in (2, 2, 2):
        held.deliver(one)
        held.deliver(other, count)
        found.append(held.take())
    assert found == [[0], [3, 4, 5], [6, 7, 8]]


def test_a_stream_holds_no_more_than_so_many() -> None:
    """A loop that draws and never trains does not fill memory."""
    held = Held()
    stream = held.batches.begin([])
    held.deliver(stream, MOST_HELD + 3)
    assert len(stream.held) == MOST_HELD and stream.held[0].batch.ordinal == 3


def test_data_is_not_kept() -> None:
    """Only numbers and ids wait: tensors die with the loop's last reference."""
    held, data = Held(), torch.ones(1)
    held.batches.delivered(held.batches.begin([]), None, {"x": (data,)})
    ref = weakref.ref(data)
    del data
    assert ref() is None and held.take() == [0]


# -- without a backward, and by hand ---


def test_a_step_without_a_backward_has_everything() -> None:
    """All that was delivered since the last take, also while gradients were off, in order."""
    held = Held()
    stream = held.batches.begin([])
    held.deliver(stream)
    with torch.no_grad():
        held.deliver(stream, 2)
    held.deliver(stream)
    assert held.batches.waiting
    assert held.everything() == [0, 1, 2, 3]
    assert not held.batches.waiting and held.everything() == []


def test_batches_are_taken_by_hand() -> None:
    """In the order of delivery, when the loop says so; from then on nothing is by itself."""
    held, source = Held(), loader_of()
    stream = held.batches.begin(source)
    held.deliver(stream, 3)
    assert held.batches.take_by_hand(source)
    assert held.take() == [0] and held.take() == []
    assert held.batches.take_by_hand(source, 7, 100)
    assert held.batches.take_by_hand(source)
    assert [numbers(batch) for batch in held.batches.take()] == [(7, 100, 1), (0, 2, 2)]
    assert not held.batches.take_by_hand(source)
    assert held.notes == []


def test_what_was_never_iterated_cannot_be_taken() -> None:
    """Nothing waits there, and the streams of others stay as they are."""
    held, source = Held(), loader_of()
    held.deliver(held.batches.begin(source))
    assert not held.batches.take_by_hand(loader_of())
    assert held.take() == [0]


def test_each_loader_is_taken_from_by_hand_on_its_own() -> None:
    """Two that are both taken by hand: what is asked for is what comes."""
    held, one, other = Held(), loader_of(), loader_of()
    for source in (one, other):
        held.deliver(held.batches.begin(source), 2)
        assert held.batches.take_by_hand(source)
    assert held.take() == [0, 2]
    assert held.batches.take_by_hand(other) and held.take() == [3]
    assert not held.batches.take_by_hand(other)
    assert held.batches.take_by_hand(one) and held.take() == [1]


# -- which loaders are held ---


def test_given_loaders_are_wanted_and_no_others() -> None:
    """Nor what shares nothing with them; another loader of the same dataset is the same data."""
    given, other = loader_of(), loader_of()
    batches = Held(loaders=[given]).batches
    twin = DataLoader(given.dataset, batch_size=3)
    assert batches.wants(given) and batches.wants(twin) and not batches.wants(other)
    batches.want(other)
    assert batches.wants(other)
    assert Held().batches.wants(other)


def test_a_loader_that_nobody_named_is_told_once() -> None:
    """The batches of steps are its; one that was given, or asked for, needs no word."""
    held, source = Held(), loader_of()
    for _ in range(2):
        held.deliver(held.batches.begin(source))
        assert len(held.take()) == 1
    [note] = held.notes
    assert "are those of DataLoader(TensorDataset)" in note and "loader=" in note
    for held in (Held(loaders=[source]), Held()):
        held.batches.want(source)
        held.deliver(held.batches.begin(source))
        assert held.take() == [0] and held.notes == []


def test_the_end_lets_go_of_everything() -> None:
    """Streams, loaders and what waits by hand."""
    held, source = Held(), [1]
    held.deliver(held.batches.begin(source))
    held.batches.clear()
    assert not held.batches.waiting and held.take() == []
    assert held.batches.begin(source).epoch == 0
