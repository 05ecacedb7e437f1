"""What flows through gradtrace: frozen records of plain Python and numpy, never tensors.

Nothing here knows who makes a record or who reads it. `StepRecord` is one optimizer step, the
`Event` classes are what happened at a step, `RunInfo` is what an exporter learns when it opens.
"""

from gradtrace.records.events import (
    EVENT_TYPES,
    Cause,
    ClipFinding,
    Event,
    LayerRise,
    LevelShift,
    NonFinite,
    Record,
    RunNote,
    Severity,
    SkippedStep,
    Spike,
    Suspect,
    event_from_dict,
    event_to_dict,
)
from gradtrace.records.histograms import LayerHistograms
from gradtrace.records.run import RunInfo
from gradtrace.records.steps import (
    BatchRef,
    Clip,
    ClipKind,
    Discard,
    MicroBatch,
    SampleId,
    StepRecord,
    table_bytes,
    without_histograms,
)
from gradtrace.records.tables import (
    ACTIVATION_COLUMNS,
    HISTOGRAMS,
    LAYER_TABLES,
    MOMENT_COLUMNS,
    TABLE_COLUMNS,
    UPDATE_COLUMNS,
    Array,
    LayerTable,
)

__all__ = [
    "ACTIVATION_COLUMNS",
    "EVENT_TYPES",
    "HISTOGRAMS",
    "LAYER_TABLES",
    "MOMENT_COLUMNS",
    "TABLE_COLUMNS",
    "UPDATE_COLUMNS",
    "Array",
    "BatchRef",
    "Cause",
    "Clip",
    "ClipFinding",
    "ClipKind",
    "Discard",
    "Event",
    "LayerHistograms",
    "LayerRise",
    "LayerTable",
    "LevelShift",
    "MicroBatch",
    "NonFinite",
    "Record",
    "RunInfo",
    "RunNote",
    "SampleId",
    "Severity",
    "SkippedStep",
    "Spike",
    "StepRecord",
    "Suspect",
    "event_from_dict",
    "event_to_dict",
    "table_bytes",
    "without_histograms",
]
