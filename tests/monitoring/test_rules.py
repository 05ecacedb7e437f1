"""The alerts under promtool, and asked of a real Prometheus."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from patience import patience
from prometheus_servers import Prometheus, is_missing
from promtool_cases import EVERY, RUN, healthy, minutes, verdict

from gradtrace.metrics.table import METRICS
from gradtrace.monitoring import grafana_rules, prometheus_rules, rules
from gradtrace.monitoring.rules import grafana_expr

NAMES = [rule.name.removeprefix("Gradtrace") for rule in rules()]

needs_promtool = pytest.mark.skipif(
    is_missing("promtool"), reason="Debian's package prometheus is not installed"
)

needs_prometheus = pytest.mark.skipif(
    is_missing("prometheus"), reason="Debian's package prometheus is not installed"
)

SPIKES = f'gradtrace_spikes_total{{{RUN},signal="loss"}}'
NORMS = f'gradtrace_spikes_total{{{RUN},signal="grad_norm"}}'
NONFINITE = f"gradtrace_nonfinite_steps_total{{{RUN}}}"
SKIPPED = f"gradtrace_skipped_steps_total{{{RUN}}}"
STEPS = f"gradtrace_steps_total{{{RUN}}}"
LAST = f"gradtrace_last_step_timestamp_seconds{{{RUN}}}"
LOSS = f"gradtrace_loss{{{RUN}}}"
CLIPPED = f"gradtrace_clip_fraction{{{RUN}}}"
DROPPED = f'gradtrace_dropped_records_total{{{RUN},exporter="mlflow"}}'
LAYER = f'gradtrace_layer_grad_norm{{{RUN},layer="a"}}'

TEN, HALF_HOUR, HOUR = minutes(10), minutes(30), minutes(60)


def later(before: str, at: int, after: str) -> str:
    """`before` for `at` samples, then `after`."""
    return f"{before}x{at - 1} {after}"


CASES: dict[str, tuple[dict[str, str], dict[float, set[str]]]] = {
    # What changes in a healthy run of four hours, and what fires at which minute.
    "a spike of the loss": (
        {SPIKES: later("0", TEN, f"1x{HOUR}")},
        {9: set(), 10.5: {"Spike"}, 11.5: {"Spike"}, 13: set(), 60: set()},
    ),
    "a spike of the norm": (
        {NORMS: later("7", TEN, f"8x{HOUR}")},
        {9: set(), 10.5: {"Spike"}, 13: set()},
    ),
    "a spike before the first scrape": (
        {SPIKES: f"_x{TEN - 1} 1x{HOUR}"},
        {9: set(), 10.5: {"Spike"}, 13: set()},
    ),
    "a restart that counts from 0 again": (
        {
            SPIKES: later("7", TEN, f"0x{HOUR}"),
            NONFINITE: later("7", TEN, f"0x{HOUR}"),
            SKIPPED: later("70", TEN, f"0x{HOUR}"),
            DROPPED: later("7", TEN, f"0x{HOUR}"),
            STEPS: f"0+15x{TEN - 1} 0+15x{HOUR}",
        },
        {5: set(), 9: set(), 10.5: set(), 12: set(), 30: set()},
    ),
    "more spikes in this hour than in the last": (
        {SPIKES: f"0x{HOUR} 0+1x1 1x{HOUR - 60} 1+1x5 6x{2 * HOUR}"},
        {59: set(), 119: {"SpikeRateRising"}, 170: set(), 230: set()},
    ),
    "as many spikes as before": (
        {SPIKES: f"0x{minutes(20)} 5x{HOUR} 10x{HOUR} 15x{HOUR}"},
        {25: set(), 50: set(), 90: set(), 140: set(), 230: set()},
    ),
    "spikes every eight minutes": (
        {SPIKES: " ".join(f"{k}x{minutes(8) - 1}" for k in range(30))},
        {5: set(), 30: set(), 70: {"PeriodicSpikes"}, 230: {"PeriodicSpikes"}},
    ),
    "three spikes in one hour": (
        {SPIKES: f"0x{minutes(63)} 1x{minutes(15)} 2x{minutes(15)} 3x{3 * HOUR}"},
        {62: set(), 100: set(), 130: set()},
    ),
    "NaN in the gradients": (
        {NONFINITE: later("0", TEN, f"1x{HOUR}")},
        {9: set(), 10: {"NonFinite"}, 11.5: {"NonFinite"}, 13: set()},
    ),
    "NaN before the first scrape": (
        {NONFINITE: f"_x{TEN - 1} 3x{HOUR}"},
        {9: set(), 10: {"NonFinite"}, 13: set()},
    ),
    "the scaler skips most steps": (
        {SKIPPED: f"0x{TEN - 1} 0+12x{TEN} {12 * TEN}x{HOUR}"},
        {9: set(), 15: {"StepsSkipped"}, 30: set()},
    ),
    "the scaler skips a step now and then": (
        {SKIPPED: "0+1x240"},
        {1: set(), 30: set(), 55: set()},
    ),
    "the scaler finds its scale at the start": (
        {SKIPPED: f"_ 8x{HOUR}"},
        {1: set(), 5: set(), 30: set()},
    ),
    "slow steps are all skipped": (
        {
            SKIPPED: " ".join(f"{k}x{minutes(1) - 1}" for k in range(60)),
            STEPS: " ".join(f"{k}x{minutes(1) - 1}" for k in range(60)),
            LAST: f"0+15x{HOUR}",
        },
        {5: set(), 20: {"StepsSkipped"}, 50: {"StepsSkipped"}},
    ),
    "the loss stops falling, with a NaN in between": (
        {LOSS: f"1000-1x{HOUR} 760x{HALF_HOUR} NaN 760x{4 * HOUR}"},
        {59: set(), 110: set(), 225: {"LossNotFalling"}},
    ),
    "nearly every step is clipped": (
        {CLIPPED: later("0.1", TEN, f"0.97x{minutes(20)} 0.5x{HOUR}")},
        {15: set(), 21: {"ClippingAlways"}, 29: {"ClippingAlways"}, 31: set()},
    ),
    "every step of the first ones is clipped": (
        {CLIPPED: f"1x{minutes(4)} 0.2x{HOUR}", STEPS: f"0+1x{HOUR}"},
        {3: set(), 12: set()},
    ),
    "no gradient reaches a layer": (
        {LAYER: later("0.5", TEN, f"1e-9x{minutes(20)} 0.5x{HOUR}")},
        {14: set(), 16: {"VanishingLayer"}, 29: {"VanishingLayer"}, 31: set()},
    ),
    "a layer's gradient is small": (
        {LAYER: f"1e-5x{HOUR}"},
        {1: set(), 50: set()},
    ),
    "a layer explodes": (
        {LAYER: later("0.5", HALF_HOUR, f"80x{minutes(10)} 0.5x{HOUR}")},
        {29: set(), 31: set(), 33: {"ExplodingLayer"}, 41: set()},
    ),
    "a layer is big for a moment": (
        {LAYER: later("0.5", HALF_HOUR, f"80x2 0.5x{HOUR}")},
        {30.5: set(), 31: set(), 34: set()},
    ),
    "a layer that was frozen moves": (
        {LAYER: f"0x2 1e-3x{HALF_HOUR} 0.04x{HOUR}"},
        {29: set(), 33: set(), 40: set()},
    ),
    "the loss has stopped falling": (
        {LOSS: f"1000-1x{HOUR} 760x{4 * HOUR}"},
        {59: set(), 110: set(), 175: set(), 225: {"LossNotFalling"}},
    ),
    "the loss rises at the start": (
        {LOSS: f"1+1x{minutes(50)}"},
        {10: set(), 45: set()},
    ),
    "the loop stands still": (
        {
            LAST: f"0+15x{minutes(40) - 1} {40 * 60 - 15}x{HOUR}",
            STEPS: f"0+15x{minutes(40) - 1} {40 * 60 - 15}x{HOUR}",
        },
        {39: set(), 41: set(), 43: {"TrainerStuck"}, 60: {"TrainerStuck"}},
    ),
    "slow steps are no standstill": (
        {
            LAST: " ".join(f"{300 * k}x{minutes(5) - 1}" for k in range(20)),
            STEPS: " ".join(f"{k + 1}x{minutes(5) - 1}" for k in range(20)),
        },
        {4: set(), 44: set(), 64: set()},
    ),
    "the first step does not come": (
        {LAST: f"_x{HOUR}", STEPS: f"0x{HOUR}", LOSS: f"_x{HOUR}"},
        {9: set(), 11: {"TrainerStuck"}, 30: {"TrainerStuck"}},
    ),
    "an exporter loses records": (
        {DROPPED: later("0", TEN, f"50x{HOUR}")},
        {9: set(), 10: {"ExporterDropping"}, 13: set()},
    ),
}


@pytest.fixture(scope="module")
def rule_file() -> str:
    return prometheus_rules()


def prefixed(firing: dict[float, set[str]]) -> dict[float, set[str]]:
    return {at: {f"Gradtrace{name}" for name in names} for at, names in firing.items()}


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_when_they_should(case: str, tmp_path: Path, rule_file: str) -> None:
    """In each case just the alerts it names fire, and all others stay quiet."""
    changes, firing = CASES[case]
    wrong = verdict(tmp_path, rule_file, healthy() | changes, prefixed(firing))
    assert wrong == ""


@pytest.mark.slow
@needs_promtool
def test_a_healthy_run_raises_nothing(tmp_path: Path, rule_file: str) -> None:
    """From its first sample to the end of four hours."""
    quiet: dict[float, set[str]] = {at: set() for at in (0, 0.25, 1, 5, 30, 61, 125, 200, 239)}
    assert verdict(tmp_path, rule_file, healthy(), quiet) == ""


@needs_promtool
def test_a_run_that_vanishes_is_told_and_nothing_else(tmp_path: Path, rule_file: str) -> None:
    """All series end at minute 60, with every alert on: those resolve, one begins, and ends too."""
    series = healthy(60) | {
        SPIKES: f"0x{HOUR - 2} 1x1",
        NONFINITE: f"0x{HOUR - 2} 1x1",
        DROPPED: f"0x{HOUR - 2} 1x1",
        CLIPPED: f"1x{HOUR}",
        LAYER: f"1e-9x{HOUR}",
    }
    series = {name: f"{values} stale" for name, values in series.items()}
    lasting = {"Spike", "NonFinite", "ExporterDropping"}
    firing: dict[float, set[str]] = {
        60: lasting | {"ClippingAlways", "VanishingLayer"},
        # What happened in the last two minutes stays told for that long, whoever told it.
        61: lasting,
        62.5: {"RunVanished"},
        70: {"RunVanished"},
        80: set(),
    }
    assert verdict(tmp_path, rule_file, series, prefixed(firing)) == ""


@needs_promtool
@pytest.mark.parametrize("gap", [1, 2, TEN])
def test_a_scrape_that_fails_brings_up_nothing_old(
    gap: int, tmp_path: Path, rule_file: str
) -> None:
    """Counters that are not 0, all series gone for a moment and back: what is told is the gap."""
    counts = {SPIKES: 3, NORMS: 2, NONFINITE: 3, SKIPPED: 40, DROPPED: 7}
    series = healthy() | {name: f"{count}x{8 * HOUR}" for name, count in counts.items()}
    nothing = f"_x{gap - 2} " if gap > 2 else "_ " * (gap - 1)
    series = {
        name: f"{spelt(name, values, HOUR)} stale {nothing}"
        f"{spelt(name, values, 2 * HOUR, after=HOUR + gap)}"
        for name, values in series.items()
    }
    back = 60 + gap / 4
    told = {"RunVanished"} if gap == TEN else set()
    firing: dict[float, set[str]] = {back - 0.25: told}
    firing |= {back + later: set() for later in (0.5, 1, 1.75, 2, 2.25, 3, 5, 10)}
    assert verdict(tmp_path, rule_file, series, prefixed(firing)) == ""


def spelt(name: str, values: str, samples: int, after: int = 0) -> str:
    """A stretch of a healthy series, which grows evenly or stays: its samples from `after` on."""
    found = re.fullmatch(r"([\d.]+)([+-][\d.]+)?x\d+", values)
    assert found is not None, name
    start, slope = float(found[1]), float(found[2] or 0)
    return f"{start + slope * after}{slope:+}x{samples}"


def test_every_rule_has_cases() -> None:
    """Each rule fires in some case and is not expected in others."""
    fired = {name for _, firing in CASES.values() for names in firing.values() for name in names}
    assert fired | {"RunVanished"} == set(NAMES)
    assert len(NAMES) == 12


@pytest.mark.slow
@needs_promtool
@pytest.mark.parametrize("loader", [True, False])
def test_alerts_name_their_own_step_and_batch(loader: bool, tmp_path: Path, rule_file: str) -> None:
    """An event's alert names the event's place, a lasting one the last step's, also of the gone."""
    changed = {
        NONFINITE: later("0", TEN, f"1x{TEN}"),
        f"gradtrace_last_nonfinite_step{{{RUN}}}": later("_", TEN, f"597x{TEN}"),
        CLIPPED: f"0.95x{2 * TEN - 1}",
    }
    if loader:
        changed |= {
            f"gradtrace_last_nonfinite_batch_index{{{RUN}}}": later("_", TEN, f"47x{TEN}"),
            f"gradtrace_last_step_batch_index{{{RUN}}}": f"0+{EVERY}x{2 * TEN}",
        }
    series = {n: v.replace(f"x{4 * HOUR}", f"x{2 * TEN}") for n, v in (healthy() | changed).items()}
    for name in series:
        series[name] += " stale"
    of = {rule.name: rule for rule in rules()}

    def notes(name: str, step: int, batch: int) -> dict[str, str]:
        index = str(batch) if loader else "-"
        return {
            "summary": f"r: {of[name].summary}",
            "description": f"run r rank 0, step {step}, batch index {index}",
            "next": of[name].advice,
            "step": str(step),
            "batch_index": index,
        }

    last = 2 * TEN * EVERY
    expected = {
        (10.25, "GradtraceNonFinite"): notes("GradtraceNonFinite", 597, 47),
        (15, "GradtraceClippingAlways"): notes("GradtraceClippingAlways", 899, 900),
        (22, "GradtraceRunVanished"): notes("GradtraceRunVanished", last - 1, last),
    }
    assert verdict(tmp_path, rule_file, series, {}, expected) == ""


@needs_promtool
def test_a_run_that_crashed_on_nan_is_told_with_its_step(tmp_path: Path, rule_file: str) -> None:
    """NaN, and at the next scrape no run any more: the alert knows step and batch all the same."""
    changed = {
        NONFINITE: later("0", TEN, "1"),
        f"gradtrace_last_nonfinite_step{{{RUN}}}": later("_", TEN, "597"),
        f"gradtrace_last_nonfinite_batch_index{{{RUN}}}": later("_", TEN, "47"),
    }
    series = {
        name: f"{changed.get(name) or values.replace(f'x{4 * HOUR}', f'x{TEN}')} stale"
        for name, values in (healthy() | changed).items()
    }
    rule = next(rule for rule in rules() if rule.name == "GradtraceNonFinite")
    expected = {
        "summary": f"r: {rule.summary}",
        "description": "run r rank 0, step 597, batch index 47",
        "next": rule.advice,
        "step": "597",
        "batch_index": "47",
    }
    assert verdict(tmp_path, rule_file, series, {}, {(11, rule.name): expected}) == ""


@needs_promtool
def test_an_old_batch_does_not_stand_for_a_new_spike(tmp_path: Path, rule_file: str) -> None:
    """A spike that no batch is blamed for is told without one, also soon after one that has one."""
    five = minutes(5)
    changed = {
        SPIKES: f"0x{TEN - 1} 1x{five - 1} 2x{TEN}",
        f"gradtrace_last_spike_step{{{RUN}}}": f"_x{TEN - 1} 597x{five - 1} 897x{TEN}",
        f"gradtrace_last_spike_batch_index{{{RUN}}}": f"_x{TEN - 1} 47x{five - 1} -1x{TEN}",
    }
    rule = next(rule for rule in rules() if rule.name == "GradtraceSpike")
    expected = {
        (at, rule.name): {
            "summary": "r: loss spiked",
            "description": f"run r rank 0, step {step}, batch index {batch}",
            "next": rule.advice,
            "step": step,
            "batch_index": batch,
        }
        for at, step, batch in ((11.0, "597", "47"), (16.0, "897", "-"))
    }
    series = healthy(30) | changed
    assert verdict(tmp_path, rule_file, series, {}, expected, {"signal": "loss"}) == ""


OF_EVENTS = {
    "Spike": "spike",
    "SpikeRateRising": "spike",
    "PeriodicSpikes": "spike",
    "NonFinite": "nonfinite",
}
"""Alerts that are about another step than the last one."""


def test_every_alert_says_where_and_what_next() -> None:
    """Annotations name run, step and batch index, and what to look at; metrics all exist."""
    [group] = yaml.safe_load(prometheus_rules())["groups"]
    known = {metric.prometheus for metric in METRICS}
    for rule in group["rules"]:
        notes = rule["annotations"]
        assert set(notes) == {"summary", "description", "next", "step", "batch_index"}
        assert "$labels.run" in notes["summary"] and "$labels.run" in notes["description"]
        asked = set(re.findall(r"gradtrace_\w+", "".join(notes.values())))
        about = OF_EVENTS.get(rule["alert"].removeprefix("Gradtrace"), "step")
        assert asked & known == {
            f"gradtrace_last_{about}_batch_index",
            "gradtrace_steps_total" if about == "step" else f"gradtrace_last_{about}_step",
        }
        assert asked <= known
        assert len(notes["next"]) > 40
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(re.findall(r"gradtrace_\w+", rule["expr"])) <= known


def test_grafana_has_the_same_rules() -> None:
    """Grafana's rules have the same names, expressions and waits; conditions name a query."""
    [group] = yaml.safe_load(grafana_rules())["groups"]
    [original] = yaml.safe_load(prometheus_rules())["groups"]
    assert [rule["title"] for rule in group["rules"]] == [r["alert"] for r in original["rules"]]
    for rule, same in zip(group["rules"], original["rules"], strict=True):
        queries = {query["refId"]: query["model"] for query in rule["data"]}
        assert rule["condition"] in queries
        assert f"({same['expr']}) ^ 0" in queries["A"]["expr"]
        named = "step {{ $labels.step }}" in rule["annotations"]["description"]
        assert named == (rule["title"].removeprefix("Gradtrace") in OF_EVENTS)
        assert queries[rule["condition"]]["expression"] == "A"
        assert rule["for"] == same.get("for", "0s")
        assert rule["annotations"]["next"] == same["annotations"]["next"]
        assert len(rule["uid"]) <= 40
    assert len({rule["uid"] for rule in group["rules"]}) == len(group["rules"])


@needs_prometheus
def test_grafana_names_the_spike(scraped: Prometheus) -> None:
    """Its alert on a real spike has the step and the batch index as labels."""
    spike = next(rule for rule in rules() if rule.name == "GradtraceSpike")
    at = time.time() - 1  # the training goes on
    [step, batch] = [
        float(scraped.query(f"gradtrace_last_spike_{name}", time=at)[0]["value"][1])
        for name in ("step", "batch_index")
    ]
    alarming = replace(spike, expr="gradtrace_spikes_total > 0")
    for index in (batch, None):
        expr = grafana_expr(alarming)
        if index is None:  # as without a loader
            expr = expr.replace("gradtrace_last_spike_batch_index", "gradtrace_nothing")
        found = scraped.query(expr, time=at)
        assert found
        for series in found:
            labels = series["metric"]
            assert labels["run"] == "mine" and labels["signal"] in ("loss", "grad_norm")
            assert labels["step"] == f"{step:.0f}"
            nobody = index is None or index < 0
            assert labels["batch_index"] == ("unknown" if nobody else f"{index:.0f}")
            assert series["value"][1] == "1"


@needs_prometheus
def test_every_rule_can_be_asked(scraped: Prometheus) -> None:
    """The server evaluates each expression, and Grafana's form of it, without an error."""
    for rule in rules(scale=0.01):
        scraped.query(rule.expr)
        scraped.query(grafana_expr(rule))
    assert time.time() - (scraped.value("gradtrace_last_step_timestamp_seconds") or 0) < patience(
        60
    )
