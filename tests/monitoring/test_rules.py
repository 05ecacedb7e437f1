"""The alerts under promtool, the written folder, and the dashboard against a real Prometheus."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_servers import Prometheus, eventually, is_missing, prometheus
from promtool_cases import EVERY, RUN, healthy, minutes, verdict
from spiking import dataset, train

from gradtrace.exporters import PrometheusExporter
from gradtrace.metrics.table import METRICS
from gradtrace.monitoring import grafana_rules, prometheus_rules, rules, write_monitoring
from gradtrace.monitoring.dashboard import ROWS, dashboard_json
from gradtrace.monitoring.rules import grafana_expr

TEMPLATES = Path(__file__).parents[2] / "gradtrace/monitoring/templates"
NAMES = [rule.name.removeprefix("Gradtrace") for rule in rules()]

needs_promtool = pytest.mark.skipif(
    is_missing("promtool"), reason="Debian's package prometheus is not installed"
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


@needs_promtool
@pytest.mark.parametrize("case", CASES)
def test_alerts_fire_when_they_should(case: str, tmp_path: Path, rule_file: str) -> None:
    """In each case just the alerts it names fire, and all others stay quiet."""
    changes, firing = CASES[case]
    wrong = verdict(tmp_path, rule_file, healthy() | changes, prefixed(firing))
    assert wrong == ""


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


def test_the_dashboard_is_what_the_generator_makes() -> None:
    """The committed JSON is up to date: otherwise run tools/make_dashboard.py."""
    assert (TEMPLATES / "dashboard.json").read_text(encoding="utf-8") == dashboard_json()


def test_the_dashboard_has_its_rows() -> None:
    """Seven rows, panels with unique ids that do not overlap, variables for run and rank."""
    board = json.loads(dashboard_json())
    titles = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert titles == [title for title, _ in ROWS]
    assert titles == [
        "Overview",
        "Gradients",
        "Clipping",
        "Spikes",
        "Layers",
        "Activations",
        "Pipeline health",
    ]
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells and at["x"] + at["w"] <= 24, panel["title"]
        cells |= own
    assert [variable["name"] for variable in board["templating"]["list"]] == ["run", "rank"]
    # All but what is told by alerts can be seen.
    shown = {name for panel in panels for t in panel["targets"] for name in NAME.findall(t["expr"])}
    assert {metric.prometheus for metric in METRICS} - shown == {
        "gradtrace_last_step_batch_index",
        "gradtrace_last_nonfinite_step",
        "gradtrace_last_nonfinite_batch_index",
    }


NAME = re.compile(r"gradtrace_\w+")


def test_the_folder_is_complete(tmp_path: Path) -> None:
    """Every file that the compose file mounts is there, and servers are for this machine only."""
    written = write_monitoring(tmp_path, targets=["gpu1:9464"])
    assert all(path.is_file() for path in written)
    compose = yaml.safe_load((tmp_path / "docker-compose.yml").read_text())
    assert set(compose["services"]) == {"prometheus", "alertmanager", "grafana"}
    for service in compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        assert re.search(r":v?\d", service["image"])  # pinned
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (tmp_path / source).exists(), source
            else:
                assert source in compose["volumes"]
    text = "".join(path.read_text() for path in written)
    assert "@TARGET" not in text
    provisioned = yaml.safe_load(
        (tmp_path / "grafana/provisioning/datasources/gradtrace.yml").read_text()
    )
    [source] = provisioned["datasources"]
    used = re.findall(r'"uid": "(gradtrace-\w+)"', dashboard_json())
    used += re.findall(r"datasourceUid: (gradtrace\S+)", grafana_rules())
    assert set(used) == {source["uid"]}


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    """A target that is no host:port is refused before anything is written."""
    for target in ("gpu1", "http://gpu1:9464", 'gpu1:9464"', "a b:1", "gpu1:123456"):
        with pytest.raises(ValueError, match="host:port"):
            write_monitoring(tmp_path / "new", targets=[target])
    assert not (tmp_path / "new").exists()
    write_monitoring(tmp_path / "new", targets=["[::1]:9464"])


@needs_promtool
@pytest.mark.skipif(is_missing("amtool"), reason="prometheus-alertmanager is not installed")
def test_the_servers_take_their_files(tmp_path: Path) -> None:
    """`promtool check config`, `promtool check rules` and `amtool check-config` are content."""
    write_monitoring(tmp_path)
    for command in (
        ["promtool", "check", "config", "prometheus.yml"],
        ["promtool", "check", "rules", "gradtrace.rules.yml"],
        ["amtool", "check-config", "alertmanager.yml"],
    ):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a real training with a spike, as long as the tests need it."""
    folder = tmp_path_factory.mktemp("scraped")
    exporter = PrometheusExporter(port=0)
    done = threading.Event()

    class OverError(Exception):
        """The way out of the loop."""

    def during(trace: Any, step: int) -> None:
        if step > 60:
            done.wait(0.05)
        if done.is_set():
            raise OverError

    def until_over() -> None:
        with contextlib.suppress(OverError):
            train(dataset(77), folder, epochs=2000, run="mine", exporters=[exporter], during=during)

    thread = threading.Thread(target=until_over)
    thread.start()
    try:
        url = str(eventually(lambda: exporter.url))
        config = f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: gradtrace
    honor_labels: true
    static_configs: [{{targets: ["{url.split("/")[2]}"]}}]
"""
        with prometheus(folder, config) as server:
            eventually(lambda: server.value("gradtrace_last_spike_step") is not None)
            eventually(lambda: (server.value("count_over_time(gradtrace_loss[1m])") or 0) >= 4)
            yield server
    finally:
        done.set()
        thread.join()


PANELS = [
    (panel["title"], target["expr"])
    for panel in json.loads((TEMPLATES / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    for target in panel.get("targets", [])
]


@pytest.mark.skipif(is_missing("prometheus"), reason="Debian's package prometheus is not installed")
@pytest.mark.parametrize(("title", "expr"), PANELS)
def test_every_panel_shows_something(title: str, expr: str, scraped: Prometheus) -> None:
    """Each query of the dashboard has an answer on a server that scraped a real run."""
    query = expr.replace("$__rate_interval", "4s").replace("$run", ".*").replace("$rank", ".*")
    assert "$" not in query
    found = scraped.query(query)
    assert found, query
    assert scraped.query(query.replace('run=~".*"', 'run=~"mine"'))
    for series in found:
        assert series["value"][1] not in ("NaN", "+Inf", "-Inf"), series


@pytest.mark.skipif(is_missing("prometheus"), reason="Debian's package prometheus is not installed")
def test_every_variable_has_values(scraped: Prometheus) -> None:
    """The dashboard's variables find the run and its rank."""
    board = json.loads((TEMPLATES / "dashboard.json").read_text(encoding="utf-8"))
    found = {}
    for variable in board["templating"]["list"]:
        query = variable["query"]
        query = query if isinstance(query, str) else query["query"]
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        series = series.replace("$run", ".*")
        values = scraped.get(f"label/{label}/values", **{"match[]": series})
        found[variable["name"]] = values
    assert found == {"run": ["mine"], "rank": ["0"]}


@pytest.mark.skipif(is_missing("prometheus"), reason="Debian's package prometheus is not installed")
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
            assert labels["batch_index"] == ("unknown" if index is None else f"{index:.0f}")
            assert series["value"][1] == "1"


@pytest.mark.skipif(is_missing("prometheus"), reason="Debian's package prometheus is not installed")
def test_every_rule_can_be_asked(scraped: Prometheus) -> None:
    """The server evaluates each expression, and Grafana's form of it, without an error."""
    for rule in rules(scale=0.01):
        scraped.query(rule.expr)
        scraped.query(grafana_expr(rule))
    assert time.time() - (scraped.value("gradtrace_last_step_timestamp_seconds") or 0) < 60
