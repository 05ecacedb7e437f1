"""The present values of a run as Prometheus' samples, from records fed in order."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gradtrace.metrics.layers import METRICS as LAYER_METRICS
from gradtrace.metrics.layers import Layers, LayerSeries
from gradtrace.metrics.modules import METRICS as MODULE_METRICS
from gradtrace.metrics.modules import ModuleSeries
from gradtrace.metrics.table import METRICS, Metric
from gradtrace.metrics.totals import Totals
from gradtrace.records import Record, RunInfo, Spike, StepRecord

logger = logging.getLogger("gradtrace")

SIGNALS = ("loss", "grad_norm")
"""Their spikes are counted from 0 on, so that the first one is an increase."""

_BY_KEY = {metric.key: metric for metric in METRICS if metric.key}
_BY_NAME = {metric.prometheus: metric for metric in METRICS}
_PLAIN = ("loss", "grad_norm", "grad_norm_clipped", "clip/coefficient", "clip/fraction")
_OF_LAYERS = (*LAYER_METRICS, *MODULE_METRICS)
_ONCE = ("nonfinite_steps", "skipped_steps", "clipped_steps")
"""Steps that are counted; the newest one of each is told by an exemplar."""


NO_BATCH = -1
"""The index of the last spike's batch where none is to blame: a series that ends would let the
index of an older spike stand for it, for as long as somebody looks back."""

Form = TypeVar("Form")


class Labels:
    """Names and values of one series: one object as long as the series is shown.

    It is hashed by identity, so that what a format makes of it can be kept cheaply: see `Forms`.
    """

    __slots__ = ("pairs",)

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)


class Forms(dict[Labels, Form]):
    """What `make` makes of labels, once a series. All are forgotten when there are `most`."""

    def __init__(self, make: Callable[[Labels], Form], *, most: int) -> None:
        super().__init__()
        self._make = make
        self._most = most

    def __missing__(self, labels: Labels) -> Form:
        if len(self) >= self._most:  # the layers have changed again and again
            self.clear()
        made = self[labels] = self._make(labels)
        return made


@dataclass(frozen=True, slots=True)
class Exemplar:
    """What a counter's newest increase was about; `time` in unix seconds."""

    labels: Labels
    value: float
    time: float


Sample = tuple[Labels, float, Exemplar | None]

Family = tuple[Metric, Sequence[Sample]]


@dataclass(frozen=True, slots=True)
class _SpikeCount:
    total: int = 0
    newest: Exemplar | None = None


class RunSamples:
    """Takes records in; gives the run's samples as they are now. Not for two threads at once.

    `layers` as in `gradtrace.metrics.layers`. At most `max_series` series in all: layers beyond
    that are left out, which is logged once. A layer's value that is measured on some steps only
    stays until the next one, unless `keep` is False. Memory is bounded by the number of layers.
    """

    def __init__(self, run: RunInfo, *, layers: Layers, max_series: int, keep: bool = True) -> None:
        self._own = (("run", run.name), ("rank", str(run.rank)))
        self._known: dict[tuple[tuple[str, str], ...], Labels] = {}
        self._max_series = max_series
        self._keep = keep
        self._totals = Totals()
        self._layers = LayerSeries(layers, run.parameters)
        self._modules = ModuleSeries(layers)
        self._by_layer: dict[str, dict[str, float]] = {metric: {} for metric in _OF_LAYERS}
        self._names: dict[str, dict[str, Labels]] = {metric: {} for metric in _OF_LAYERS}
        self._counts: dict[str, float] = {}
        self._newest: dict[str, Exemplar] = {}
        self._spikes = {signal: _SpikeCount() for signal in SIGNALS}
        self._last: StepRecord | None = None
        self._last_spike: Spike | None = None
        self._last_nonfinite: StepRecord | None = None
        self._crowded = False
        self._all = self._labels()

    def update(self, record: Record) -> None:
        """Takes one more record. Costs some 50 us, most of it for the layers."""
        self._totals.update(record)
        if isinstance(record, StepRecord):
            self._last = record
            self._count(record)
            self._take_layers(record)
            self._take_modules(record)
            for signal in record.scores:
                self._spikes.setdefault(signal, _SpikeCount())
        elif isinstance(record, Spike):
            if record.duration == 1:
                before = self._spikes.get(record.signal, _SpikeCount())
                exemplar = _exemplar(record.step, blamed_batch(record), record.time)
                self._spikes[record.signal] = _SpikeCount(before.total + 1, exemplar)
            # One that lasted is told again when others may have come.
            if self._last_spike is None or record.step >= self._last_spike.step:
                self._last_spike = record

    def families(
        self, *, dropped: Mapping[str, int] | None = None, active: bool = True
    ) -> list[Family]:
        """All samples, by metric, in the order of the metrics' table. Costs 0.3 us a series."""
        values = self._totals.values()
        found: dict[str, list[Sample]] = {
            "gradtrace_run_active": [(self._all, float(active), None)],
            "gradtrace_overhead_seconds_total": [(self._all, values["overhead_seconds"], None)],
        }
        for key in _ONCE:
            name = _BY_KEY[key].prometheus
            found[name] = [(self._all, values[key], self._newest.get(key))]
        for key in _PLAIN:
            if key in values:
                found[_BY_KEY[key].prometheus] = [(self._all, values[key], None)]
        found["gradtrace_spikes_total"] = [
            (self._labels(signal=signal), float(count.total), count.newest)
            for signal, count in self._spikes.items()
        ]
        found["gradtrace_dropped_records_total"] = [
            (self._labels(exporter=name), float(lost), None)
            for name, lost in (dropped or {}).items()
        ]
        found |= self._of_last_step() | self._of_last_spike() | self._of_last_nonfinite()
        room = self._max_series - sum(map(len, found.values()))
        found |= self._of_layers(room)
        return [(metric, found[name]) for name, metric in _BY_NAME.items() if found.get(name)]

    def _count(self, record: StepRecord) -> None:
        values = self._totals.values()
        for key in _ONCE:
            if values[key] > self._counts.get(key, 0.0):
                self._newest[key] = _exemplar(record.step, first_batch(record), record.time)
                if key == "nonfinite_steps":
                    self._last_nonfinite = record
            self._counts[key] = values[key]

    def _take_layers(self, record: StepRecord) -> None:
        update = self._layers.update(record)
        if not self._keep:
            for known in self._by_layer.values():
                known.clear()
        if not update:
            return
        for known in [self._by_layer[metric] for metric in LAYER_METRICS]:
            if known and not known.keys() <= update.keys():
                for gone in [layer for layer in known if layer not in update]:
                    del known[gone]
        for layer, metrics in update.items():
            if math.isnan(metrics.get("grad_norm", 0.0)):
                # It has no gradient any more, or one that is not finite: the old one is no news.
                for metric in ("grad_norm", "zero_fraction"):
                    self._by_layer[metric].pop(layer, None)
            for metric, value in metrics.items():
                if not math.isnan(value):
                    self._by_layer[metric][layer] = value

    def _take_modules(self, record: StepRecord) -> None:
        update = self._modules.update(record)
        for metric in MODULE_METRICS if update else ():
            self._by_layer[metric] = {
                name: metrics[metric] for name, metrics in update.items() if metric in metrics
            }

    def _of_last_step(self) -> dict[str, list[Sample]]:
        last = self._last
        steps = 0 if last is None else last.step + 1
        found: dict[str, list[Sample]] = {"gradtrace_steps_total": [(self._all, steps, None)]}
        if last is not None:
            found["gradtrace_last_step_timestamp_seconds"] = [(self._all, last.time, None)]
            found |= self._place("step", None, first_batch(last))
            found["gradtrace_learning_rate"] = [
                (self._labels(group=str(group)), lr, None) for group, lr in enumerate(last.lr)
            ]
            found["gradtrace_spike_score"] = [
                (self._labels(signal=signal), score, None) for signal, score in last.scores.items()
            ]
        return found

    def _of_last_spike(self) -> dict[str, list[Sample]]:
        spike = self._last_spike
        if spike is None:
            return {}
        batch = blamed_batch(spike)
        return self._place("spike", spike.step, NO_BATCH if batch is None else batch)

    def _of_last_nonfinite(self) -> dict[str, list[Sample]]:
        record = self._last_nonfinite
        return {} if record is None else self._place("nonfinite", record.step, first_batch(record))

    def _place(self, what: str, step: int | None, batch: int | None) -> dict[str, list[Sample]]:
        places = {"step": step, "batch_index": batch}
        return {
            f"gradtrace_last_{what}_{name}": [(self._all, at, None)]
            for name, at in places.items()
            if at is not None
        }

    def _of_layers(self, room: int) -> dict[str, list[Sample]]:
        total = sum(map(len, self._by_layer.values()))
        if total > room and not self._crowded:
            self._crowded = True
            logger.warning(
                "run %s has %d series of layers, more than max_series=%d leaves room for; the last "
                "ones are left out: choose fewer layers, or raise max_series",
                self._own[0][1],
                total,
                self._max_series,
            )
        found: dict[str, list[Sample]] = {}
        # Those with few series leave room for the others.
        metrics = sorted(_OF_LAYERS, key=lambda metric: len(self._by_layer[metric]))
        for at, metric in enumerate(metrics):
            samples = self._of_metric(metric, max(0, room) // (len(metrics) - at))
            room -= len(samples)
            found[_BY_KEY[f"layers/<name>/{metric}"].prometheus] = samples
        return found

    def _of_metric(self, metric: str, most: int) -> list[Sample]:
        names, values = self._names[metric], self._by_layer[metric]
        if values.keys() != names.keys():
            self._names[metric] = names = {
                layer: names.get(layer) or Labels((*self._own, ("layer", layer)))
                for layer in values
            }
        samples: list[Sample] = [(names[layer], value, None) for layer, value in values.items()]
        return samples[:most]

    def _labels(self, **more: str) -> Labels:
        key = tuple(more.items())
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = Labels((*self._own, *key))
        return found


def blamed_batch(spike: Spike) -> int | None:
    """The index of the first batch that is held responsible; None where none is."""
    return spike.blamed[0].batch_index if spike.blamed else None


def first_batch(record: StepRecord) -> int | None:
    """The index of the step's first batch; None where no loader is watched."""
    return record.batches[0].batch_index if record.batches else None


def _exemplar(step: int, batch: int | None, time: float) -> Exemplar:
    labels = {"step": str(step)} | ({} if batch is None else {"batch_index": str(batch)})
    return Exemplar(Labels(labels.items()), 1.0, time)
