"""How records look on disk: the columns of `steps` and of the layer tables, as Arrow batches.

Pure translation, both ways; nothing here opens a file. Events are lines of JSON: see `eventlines`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import Any

import pyarrow as pa

from gradtrace.records import (
    HISTOGRAMS,
    LAYER_TABLES,
    TABLE_COLUMNS,
    BatchRef,
    Clip,
    MicroBatch,
    StepRecord,
)
from gradtrace.records.histograms import BINS
from gradtrace.runlog.jsontext import as_number, to_json

STEPS = "steps"

_F = pa.float64()
_I = pa.int64()

_Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `steps`: what it takes from a record, and what it gives back.

    `get` has the value to store of a record, None for null. `field` is what is restored from it, a
    field of the `StepRecord`, or of its `Clip` with `of_clip`; None where other columns have it
    all. `read` makes the field's value of the stored one and the record's fields restored so far;
    it is not asked for null, which leaves the field at its default.
    """

    name: str
    type: Any
    get: Callable[[StepRecord], Any]
    field: str | None = None
    read: Callable[[Any, _Fields], Any] = lambda stored, _: stored
    of_clip: bool = False


def _own(name: str, type_: Any, decode: Callable[[Any], Any] | None = None) -> Column:
    """A field of the record under its own name, as it is or as `decode` makes it."""
    if decode is None:
        return Column(name, type_, attrgetter(name), name)
    return Column(name, type_, attrgetter(name), name, lambda stored, _: decode(stored))


def _text(name: str, encode: Callable[[Any], Any], read: Callable[[Any, _Fields], Any]) -> Column:
    """A field of the record as JSON; null where it is empty."""
    value = attrgetter(name)

    def get(record: StepRecord) -> str | None:
        found = value(record)
        return to_json(encode(found)) if found else None

    return Column(
        name, pa.string(), get, name, lambda stored, so_far: read(json.loads(stored), so_far)
    )


def _of_clip(name: str, type_: Any, field: str) -> Column:
    """A field of the record's clip; null where nothing was clipped."""
    value = attrgetter(field)
    return Column(
        name,
        type_,
        lambda record: None if record.clip is None else value(record.clip),
        field,
        of_clip=True,
    )


def _of_first_batch(name: str) -> Column:
    """A number of the first batch, for who reads the table by eye; `batches` has it all."""
    value = attrgetter(name)
    return Column(name, _I, lambda record: value(record.batches[0]) if record.batches else None)


def _plain_batches(batches: Sequence[BatchRef]) -> Any:
    return [(b.epoch, b.batch_index, b.ordinal, b.sample_ids) for b in batches]


def _batches(plain: Any, _: _Fields) -> tuple[BatchRef, ...]:
    return tuple(
        BatchRef(epoch, index, ordinal, None if ids is None else tuple(ids))
        for epoch, index, ordinal, ids in plain
    )


def _plain_parts(parts: Sequence[MicroBatch]) -> Any:
    return [(part.loss, part.divisor, len(part.batches)) for part in parts]


def _parts(plain: Any, so_far: _Fields) -> tuple[MicroBatch, ...]:
    """The micro-batches have the step's batches in turn, so their counts tell which."""
    batches = iter(so_far.get("batches", ()))
    return tuple(
        MicroBatch(as_number(loss), as_number(divisor), tuple(islice(batches, count)))
        for loss, divisor, count in plain
    )


def _numbers(plain: Any, _: _Fields) -> dict[str, float]:
    return {key: as_number(value) for key, value in plain.items()}


def _layer_counts(record: StepRecord) -> list[int | None]:
    tables = (getattr(record, table) for table in LAYER_TABLES)
    return [None if table is None else len(table) for table in tables]


STEP_COLUMNS = (
    _own("step", _I),
    _own("time", _F),
    _own("seconds", _F),
    _own("loss", _F),
    _own("grad_norm", _F),
    _own("lr", pa.list_(_F), tuple),
    _of_clip("clip_kind", pa.string(), "kind"),
    _of_clip("clip_threshold", _F, "threshold"),
    _of_clip("clip_coefficient", _F, "coefficient"),
    _of_clip("clipped", pa.bool_(), "clipped"),
    _of_clip("norm_after", _F, "norm_after"),
    _of_first_batch("epoch"),
    _of_first_batch("batch_index"),
    _of_first_batch("ordinal"),
    _own("scale", _F),
    # What the columns above leave out of a StepRecord.
    _own("losses", pa.list_(_F), tuple),
    _of_clip("norm_before", _F, "norm_before"),
    _of_clip("clip_calls", _I, "calls"),
    _text("batches", _plain_batches, _batches),
    _text("logged", dict, _numbers),
    _own("rank", _I),
    _own("overhead", _F),
    _own("skipped", pa.bool_()),
    _own("remarks", pa.list_(pa.string()), tuple),
    _text("scores", dict, _numbers),
    Column("layers", pa.list_(pa.int32()), _layer_counts),
    _text("parts", _plain_parts, _parts),
)
"""The columns of `steps`, those of the contract first. `layers` has the row count of each layer
table in the order of `LAYER_TABLES`, null where it was not sampled; `parts` has loss, divisor and
number of batches of each micro-batch, whose batches are those in `batches`, in turn."""


def _layer_schema(table: str, layer: Any) -> Any:
    if table == HISTOGRAMS:
        columns = [("limit", _F), ("counts", pa.list_(_I, BINS))]
    else:
        columns = [(column, _F) for column in TABLE_COLUMNS[table]]
    return pa.schema([("step", _I), ("layer", layer), *columns])


_STEP_SCHEMA = pa.schema([(column.name, column.type) for column in STEP_COLUMNS])

SCHEMAS: dict[str, Any] = {STEPS: _STEP_SCHEMA} | {
    table: _layer_schema(table, pa.dictionary(pa.int32(), pa.string())) for table in LAYER_TABLES
}
"""Arrow schemas by table, as stored."""

PLAIN_SCHEMAS: dict[str, Any] = {STEPS: _STEP_SCHEMA} | {
    table: _layer_schema(table, pa.string()) for table in LAYER_TABLES
}
"""The same with layer names as plain strings, as handed to users."""


def write_options(table: str) -> Any:
    """How a table's streams are written."""
    # Counts are mostly small or zero, and shrink to an eighth; other values hardly do.
    small = table == HISTOGRAMS and pa.Codec.is_available("zstd")
    return pa.ipc.IpcWriteOptions(
        emit_dictionary_deltas=True, compression="zstd" if small else None
    )


def steps_batch(records: Sequence[StepRecord]) -> Any:
    """One row per record, in the order given, without the layer tables' values."""
    arrays = [
        pa.array([column.get(record) for record in records], type=column.type)
        for column in STEP_COLUMNS
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=_STEP_SCHEMA)


def step_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a `steps` batch as mappings, for `row_record`."""
    names = batch.schema.names
    columns = (column.to_pylist() for column in batch.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def row_record(row: Mapping[str, Any], tables: Mapping[str, Any]) -> StepRecord:
    """The StepRecord of a row of `steps` and its layer tables; the inverse of `steps_batch`.

    Raises TypeError or ValueError for a row whose text is damaged.
    """
    fields: _Fields = {}
    clip: _Fields = {}
    for column in STEP_COLUMNS:
        stored = row[column.name]
        if column.field is not None and stored is not None:
            (clip if column.of_clip else fields)[column.field] = column.read(stored, fields)
    if clip:
        fields["clip"] = Clip(**clip)
    return StepRecord(**fields, **tables)
