"""The present values of a run as Prometheus' samples, from records fed in order."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

from gradtrace.exporters._exposition import Exemplar, Family, Labels, Sample
from gradtrace.metrics.layers import METRICS as LAYER_METRICS
from gradtrace.metrics.layers import Layers, LayerSeries
from gradtrace.metrics.modules import METRICS as MODULE_METRICS
from gradtrace.metrics.modules import ModuleSeries
from gradtrace.metrics.table import METRICS
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


@dataclass(frozen=True, slots=True)
class _SpikeCount:
    total: int = 0
    newest: Exemplar | None = None


class RunSamples:
    """Takes records in; gives the run's samples as they are now. Not for two threads at once.

    `layers` as in `gradtrace.layerseries`. At most `max_series` series in all: layers beyond that
    are left out, which is logged once. A layer's value that is measured on some steps only stays
    until the next one, unless `keep` is False. Memory is bounded by the number of layers.
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
                exemplar = _exemplar(record.step, spike_batch(record), record.time)
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
            found |= self._place("gradtrace_last_step_batch_index", first_batch(last))
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
        return self._place("gradtrace_last_spike_step", spike.step) | self._place(
            "gradtrace_last_spike_batch_index", spike_batch(spike)
        )

    def _of_last_nonfinite(self) -> dict[str, list[Sample]]:
        record = self._last_nonfinite
        if record is None:
            return {}
        return self._place("gradtrace_last_nonfinite_step", record.step) | self._place(
            "gradtrace_last_nonfinite_batch_index", first_batch(record)
        )

    def _place(self, name: str, at: int | None) -> dict[str, list[Sample]]:
        return {} if at is None else {name: [(self._all, at, None)]}

    def _of_layers(self, room: int) -> dict[str, list[Sample]]:
        total = sum(map(len, self._by_layer.values()))
        if total > room and not self._crowded:
            self._crowded = True
            logger.warning(
                "exporter prometheus: %d series of layers are more than max_series=%d leaves room "
                "for; the last ones are left out: choose fewer layers, or raise max_series",
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


def spike_batch(spike: Spike) -> int | None:
    """The index of the batch to look at: that of the worst micro-batch, or the step's first."""
    at = spike.micro_batch
    if at is not None and at < len(spike.batches):
        return spike.batches[at].batch_index
    return spike.batches[0].batch_index if spike.batches else None


def first_batch(record: StepRecord) -> int | None:
    """The index of the step's first batch; None where no loader is watched."""
    return record.batches[0].batch_index if record.batches else None


def _exemplar(step: int, batch: int | None, time: float) -> Exemplar:
    labels = {"step": str(step)} | ({} if batch is None else {"batch_index": str(batch)})
    return Exemplar(Labels(labels.items()), 1.0, time)
