"""Prometheus' samples of a run, as they are after each record."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from build import batch, clip, run_info, spike, step, table
from rich_records import rich_records

from gradtrace.metrics.samples import Forms, Labels, RunSamples, blamed_batch
from gradtrace.metrics.table import METRICS
from gradtrace.records import ACTIVATION_COLUMNS, UPDATE_COLUMNS, Record


def fed(*records: Record, **options: Any) -> RunSamples:
    samples = RunSamples(run_info("r", rank=3), **{"layers": 20, "max_series": 1000} | options)
    for record in records:
        samples.update(record)
    return samples


def shown(samples: RunSamples, **options: Any) -> dict[tuple[str, ...], float]:
    """Values by name and the labels' values beside run and rank."""
    found: dict[tuple[str, ...], float] = {}
    for metric, of in samples.families(**options):
        for labels, value, _ in of:
            pairs = dict(labels.pairs)
            assert (pairs.pop("run"), pairs.pop("rank")) == ("r", "3")
            assert tuple(pairs) == metric.labels
            key = (metric.prometheus, *pairs.values())
            assert key not in found, f"{key} is there twice"
            found[key] = value
    return found


def exemplars(samples: RunSamples) -> dict[str, dict[str, str]]:
    return {
        metric.prometheus: dict(exemplar.labels.pairs)
        for metric, of in samples.families()
        for _, _, exemplar in of
        if exemplar is not None
    }


def test_a_rich_run_has_every_metric_in_the_order_of_the_table() -> None:
    """One family a metric, none that the table does not have."""
    families = fed(*rich_records()).families(dropped={"mlflow": 2})
    assert [metric for metric, _ in families] == list(METRICS)


def test_before_the_first_step_there_are_the_counters() -> None:
    """At zero, so that the first of anything is an increase; and the run is active."""
    page = shown(fed(), dropped={"mlflow": 0})
    assert page.pop(("gradtrace_run_active",)) == 1.0
    assert set(page.values()) == {0} and ("gradtrace_spikes_total", "loss") in page
    assert ("gradtrace_last_spike_step",) not in page
    assert shown(fed(), active=False)["gradtrace_run_active",] == 0.0


def test_the_last_spike_is_the_newest_step() -> None:
    """A spike that lasted is told again after others; that does not set the last one back."""
    one, two = spike(4, blamed=(batch(40),)), spike(7, blamed=(batch(70), batch(71)))
    page = shown(fed(one, two, replace(one, duration=5)))
    assert page["gradtrace_last_spike_step",] == 7
    assert page["gradtrace_last_spike_batch_index",] == 70
    assert page["gradtrace_spikes_total", "loss"] == 2


def test_a_spike_without_a_blamed_batch_says_so() -> None:
    """What the step consumed is not the answer, nor what an older spike was blamed on."""
    nobody = spike(7, batches=(batch(70),), previous_batches=(batch(69),))
    samples = fed(spike(4, blamed=(batch(40),)), nobody)
    assert blamed_batch(nobody) is None
    page = shown(samples)
    assert page["gradtrace_last_spike_step",] == 7
    assert page["gradtrace_last_spike_batch_index",] == -1
    assert exemplars(samples)["gradtrace_spikes_total"] == {"step": "7"}


def test_counters_name_the_step_of_their_newest_increase() -> None:
    """And its batch, where one is known; a step that adds nothing changes nothing."""
    clipped = step(3, clip=clip(1.0, 4.0), batches=(batch(9), batch(10)))
    samples = fed(clipped, step(4, clip=clip(1.0, 0.5), batches=(batch(11),)), spike(3, signal="x"))
    assert exemplars(samples) == {
        "gradtrace_clipped_steps_total": {"step": "3", "batch_index": "9"},
        "gradtrace_spikes_total": {"step": "3"},
    }


def layers_of(samples: RunSamples, metric: str) -> dict[str, float]:
    return {key[1]: value for key, value in shown(samples).items() if key[0] == metric}


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_measured_now_and_then_stays_if_it_shall(keep: bool) -> None:
    """The newest update's ratio is shown until the next one, or at its own step only."""
    names = ["a.weight", "b.weight"]
    measured = step(0, gradients=table(names, norm=1.0), updates=table(names, UPDATE_COLUMNS))
    samples = fed(measured, step(1, gradients=table(names, norm=2.0)), keep=keep, layers=["*"])
    ratios = layers_of(samples, "gradtrace_layer_update_ratio")
    assert set(ratios) == (set(names) if keep else set())
    assert set(layers_of(samples, "gradtrace_layer_grad_norm").values()) == {2.0}


def test_layers_and_modules_that_are_gone_end() -> None:
    """When others are measured, the old series are no news."""

    def record(number: int, *names: str) -> Record:
        outputs = table(names, ACTIVATION_COLUMNS, max_abs=3.0)
        return step(number, gradients=table(names, norm=1.0), activations=outputs)

    samples = fed(record(0, "a", "b"), record(1, "b", "c"), layers=["*"])
    for metric in ("gradtrace_layer_grad_norm", "gradtrace_layer_activation_max_abs"):
        assert set(layers_of(samples, metric)) == {"b", "c"}


def test_series_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """Layers beyond `max_series` are left out, each metric has its part, and it is told once."""
    names = [f"layer{k}" for k in range(500)]
    samples = fed(step(0, gradients=table(names, norm=1.0)), layers=["*"], max_series=100)
    for _ in range(2):
        page = shown(samples)
        assert len(page) <= 100
    for metric in ("grad_norm", "zero_fraction"):
        assert len(layers_of(samples, f"gradtrace_layer_{metric}")) > 30
    assert caplog.text.count("run r has 1000 series of layers, more than max_series=100") == 1


def test_a_series_keeps_its_labels() -> None:
    """The same object each time, so that what a format makes of it can be kept."""
    samples = fed(*rich_records())
    first, second = (
        [labels for _, of in samples.families() for labels, _, _ in of] for _ in range(2)
    )
    assert all(one is two for one, two in zip(first, second, strict=True))


def test_forms_are_made_once_and_bounded() -> None:
    """Each labels' form is made when first asked for; at `most` all are forgotten."""
    made: list[Labels] = []

    def make(labels: Labels) -> str:
        made.append(labels)
        return "".join(value for _, value in labels.pairs)

    forms = Forms(make, most=3)
    some = [Labels([("n", str(n))]) for n in range(4)]
    assert [forms[labels] for labels in [*some[:3], *some[:3]]] == ["0", "1", "2"] * 2
    assert made == some[:3]
    assert forms[some[3]] == "3" and list(forms) == [some[3]]
