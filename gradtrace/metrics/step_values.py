"""A run as keys and numbers, for backends that take those: values a step, and a summary at the end.

The keys are those of `gradtrace.metrics`, below `gradtrace/`. What the user logged stands below
`gradtrace/logged/`. Names in them, of layers and of users, are made such that every backend takes
them: see `gradtrace.metrics.keys`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from gradtrace.metrics.keys import Keys
from gradtrace.metrics.layers import Layers, LayerSeries
from gradtrace.metrics.modules import ModuleSeries
from gradtrace.metrics.totals import Totals
from gradtrace.records import Record, RunInfo, StepRecord
from gradtrace.records.histograms import Counts, Floats

PREFIX = "gradtrace/"


class StepValues:
    """The values of each step, from records fed in order. One thread, bounded memory.

    `layers` as in `gradtrace.metrics.layers`. `finite` leaves out NaN and Inf: the counts of
    `nonfinite_steps` tell of them. Otherwise Inf is a value anywhere, and NaN one of the loss, the
    gradient norm and what the user logged; elsewhere it says that nothing was measured.
    """

    def __init__(self, run: RunInfo, *, layers: Layers = 20, finite: bool = True) -> None:
        self._totals = Totals()
        self._layers = LayerSeries(layers, run.parameters)
        self._modules = ModuleSeries(layers)
        self._finite = finite
        self._keys = Keys()
        self._dropped: Callable[[], Mapping[str, int]] | None = None

    def watch(self, dropped: Callable[[], Mapping[str, int]]) -> None:
        """Adds how many records all exporters of the trace have lost."""
        self._dropped = dropped

    def update(self, record: Record) -> dict[str, float] | None:
        """Keys and values of a step; None for an event, which the next step's values count."""
        self._totals.update(record)
        if not isinstance(record, StepRecord):
            return None
        values = self._totals.values()
        for series in (self._layers.update(record), self._modules.update(record)):
            for layer, metrics in series.items():
                for metric, value in metrics.items():
                    values[f"layers/{layer}/{metric}"] = value
        if self._dropped is not None:
            values["dropped_records"] = sum(self._dropped().values())
        for name, value in record.logged.items():
            values[f"logged/{name}"] = value
        return {
            self._keys[PREFIX + key]: float(value)
            for key, value in values.items()
            if math.isfinite(value) or (not self._finite and _is_told(key, value))
        }

    def histograms(self, record: StepRecord) -> dict[str, tuple[Counts, Floats]]:
        """Keys, counts and edges of a step's gradients; ask after `update` with the same step."""
        return {
            self._keys[f"{PREFIX}layers/{layer}/gradients"]: found
            for layer, found in self._layers.histograms(record).items()
        }


def _is_told(key: str, value: float) -> bool:
    return not math.isnan(value) or key in ("loss", "grad_norm") or key.startswith("logged/")
