"""How records look on disk: Arrow batches for steps and layer tables, JSON lines for events.

Pure translation, both ways; nothing here opens a file.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gradtrace.records import (
    EVENT_TYPES,
    HISTOGRAMS,
    LAYER_TABLES,
    TABLE_COLUMNS,
    BatchRef,
    Clip,
    Event,
    StepRecord,
    event_from_dict,
    event_to_dict,
)
from gradtrace.records.histograms import BINS

STEPS = "steps"

_F = pa.float64()
_I = pa.int64()

_STEP_SCHEMA = pa.schema(
    [
        ("step", _I),
        ("time", _F),
        ("seconds", _F),
        ("loss", _F),
        ("grad_norm", _F),
        ("lr", pa.list_(_F)),
        ("clip_kind", pa.string()),
        ("clip_threshold", _F),
        ("clip_coefficient", _F),
        ("clipped", pa.bool_()),
        ("norm_after", _F),
        ("epoch", _I),
        ("batch_index", _I),
        ("ordinal", _I),
        ("scale", _F),
        # What the columns above leave out of a StepRecord.
        ("losses", pa.list_(_F)),
        ("norm_before", _F),
        ("clip_calls", _I),
        ("batches", pa.string()),
        ("logged", pa.string()),
        ("rank", _I),
        ("overhead", _F),
        ("skipped", pa.bool_()),
        ("remarks", pa.list_(pa.string())),
        ("scores", pa.string()),
        ("layers", pa.list_(pa.int32())),
    ]
)


def _layer_schema(table: str, layer: Any) -> Any:
    if table == HISTOGRAMS:
        columns = [("limit", _F), ("counts", pa.list_(_I, BINS))]
    else:
        columns = [(column, _F) for column in TABLE_COLUMNS[table]]
    return pa.schema([("step", _I), ("layer", layer), *columns])


SCHEMAS: dict[str, Any] = {STEPS: _STEP_SCHEMA} | {
    table: _layer_schema(table, pa.dictionary(pa.int32(), pa.string())) for table in LAYER_TABLES
}
"""Arrow schemas by table, as stored. `layers` in `steps` holds the row count of each layer
table in the order of `LAYER_TABLES`, null where it was not sampled."""

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


_NONFINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def jsonable(value: Any, depth: int = 0) -> Any:
    """`value` in terms JSON knows: NaN and infinities as strings, paths as text, the rest `repr`.

    Never raises: an object whose `repr` fails is named by its type.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if depth < 16:
        if isinstance(value, Mapping):
            return {str(key): jsonable(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [jsonable(item, depth + 1) for item in value]
    try:
        return repr(value)
    except Exception:  # a user's object may do anything in its repr
        return f"<{type(value).__name__}>"


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON text of anything, see `jsonable`; fast for what is strict already."""
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, allow_nan=False, separators=separators, indent=indent)
    except (TypeError, ValueError):
        return json.dumps(jsonable(value), allow_nan=False, separators=separators, indent=indent)


def steps_batch(records: Sequence[StepRecord]) -> Any:
    """One row per record, in the order given, without the layer tables' values."""
    columns = zip(*map(_row, records), strict=True)
    arrays = [
        pa.array(column, type=field.type)
        for column, field in zip(columns, _STEP_SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=_STEP_SCHEMA)


def _row(record: StepRecord) -> tuple[Any, ...]:
    clip = record.clip
    first = record.batches[0] if record.batches else None
    tables = [getattr(record, table) for table in LAYER_TABLES]
    return (
        record.step,
        record.time,
        record.seconds,
        record.loss,
        record.grad_norm,
        record.lr,
        *(
            (clip.kind, clip.threshold, clip.coefficient, clip.clipped, clip.norm_after)
            if clip
            else (None, None, None, None, None)
        ),
        *((first.epoch, first.batch_index, first.ordinal) if first else (None, None, None)),
        record.scale,
        record.losses,
        clip.norm_before if clip else None,
        clip.calls if clip else None,
        to_json([(b.epoch, b.batch_index, b.ordinal, b.sample_ids) for b in record.batches])
        if first
        else None,
        to_json(dict(record.logged)) if record.logged else None,
        record.rank,
        record.overhead,
        record.skipped,
        record.remarks,
        to_json(dict(record.scores)) if record.scores else None,
        [None if table is None else len(table) for table in tables],
    )


def step_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a `steps` batch as mappings, for `row_record`."""
    names = batch.schema.names
    columns = (column.to_pylist() for column in batch.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def row_record(row: Mapping[str, Any], tables: Mapping[str, Any]) -> StepRecord:
    """The StepRecord of a row of `steps` and its layer tables; the inverse of `steps_batch`."""
    clip = None
    if row["clip_kind"] is not None:
        clip = Clip(
            kind=row["clip_kind"],
            threshold=row["clip_threshold"],
            norm_before=row["norm_before"],
            norm_after=row["norm_after"],
            coefficient=row["clip_coefficient"],
            clipped=row["clipped"],
            calls=row["clip_calls"],
        )
    logged = json.loads(row["logged"]) if row["logged"] else {}
    scores = json.loads(row["scores"]) if row["scores"] else {}
    return StepRecord(
        step=row["step"],
        time=row["time"],
        seconds=row["seconds"],
        loss=row["loss"],
        losses=tuple(row["losses"] or ()),
        lr=tuple(row["lr"] or ()),
        grad_norm=row["grad_norm"],
        clip=clip,
        batches=tuple(
            BatchRef(epoch, index, ordinal, None if ids is None else tuple(ids))
            for epoch, index, ordinal, ids in json.loads(row["batches"] or "[]")
        ),
        scale=row["scale"],
        logged={key: _float(value) for key, value in logged.items()},
        rank=row["rank"] or 0,
        overhead=row["overhead"] or 0.0,
        skipped=bool(row["skipped"]),
        remarks=tuple(row["remarks"] or ()),
        scores={key: _float(value) for key, value in scores.items()},
        **tables,
    )


def event_line(event: Event) -> bytes:
    """One line of `events.jsonl`, newline included, strict JSON."""
    return to_json(event_to_dict(event)).encode() + b"\n"


def parse_event(line: bytes) -> Event | None:
    """The event of a line; None for what is torn, foreign or of a kind not known here."""
    try:
        data = json.loads(line)
        hints = _hints(data["kind"])
        return event_from_dict(
            {key: _revive(value, hints.get(key, Any)) for key, value in data.items()}
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


@functools.cache
def _hints(kind: str) -> dict[str, Any]:
    return typing.get_type_hints(EVENT_TYPES[kind])


def _float(value: Any) -> Any:
    return _NONFINITE.get(value, value) if isinstance(value, str) else value


def _revive(value: Any, hint: Any) -> Any:
    """What JSON flattened, as the annotation says it was: non-finite floats, tuples, records."""
    if hint is float:
        return _float(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        fitting = _fitting(value, arguments)
        return _revive(value, fitting[0]) if len(fitting) == 1 else value
    if origin is tuple and isinstance(value, list):
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_revive(item, arguments[0]) for item in value)
        return tuple(_revive(v, a) for v, a in zip(value, arguments, strict=True))
    if isinstance(value, dict) and len(arguments) == 2:
        key_type = int if arguments[0] is int else str
        return {key_type(key): _revive(item, arguments[1]) for key, item in value.items()}
    if isinstance(value, list) and len(arguments) == 1:
        return [_revive(item, arguments[0]) for item in value]
    if isinstance(value, dict) and dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        return hint(**{key: _revive(item, hints[key]) for key, item in value.items()})
    return value


def _fitting(value: Any, hints: Iterable[Any]) -> list[Any]:
    """The members of a union that `value` may have been."""
    if value is None:
        return []
    if isinstance(value, str) and str in hints:
        return [str]
    return [hint for hint in hints if hint not in (type(None), str)]
