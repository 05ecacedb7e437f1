"""The dashboard: what the tool writes, and its queries against a real Prometheus."""

from __future__ import annotations

import json
import re

import pytest
from dashboard import ROWS, TARGET, dashboard_json
from prometheus_servers import Prometheus, is_missing

from gradtrace.metrics.table import METRICS

needs_prometheus = pytest.mark.skipif(
    is_missing("prometheus"), reason="Debian's package prometheus is not installed"
)


def test_the_dashboard_is_what_the_generator_makes() -> None:
    """The committed JSON is up to date: otherwise run tools/dashboard.py."""
    assert TARGET.read_text(encoding="utf-8") == dashboard_json()


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


PANELS = [
    (panel["title"], target["expr"])
    for panel in json.loads(TARGET.read_text(encoding="utf-8"))["panels"]
    for target in panel.get("targets", [])
]


@needs_prometheus
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


@needs_prometheus
def test_every_variable_has_values(scraped: Prometheus) -> None:
    """The dashboard's variables find the run and its rank."""
    board = json.loads(TARGET.read_text(encoding="utf-8"))
    found = {}
    for variable in board["templating"]["list"]:
        query = variable["query"]
        query = query if isinstance(query, str) else query["query"]
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        series = series.replace("$run", ".*")
        values = scraped.get(f"label/{label}/values", **{"match[]": series})
        found[variable["name"]] = values
    assert found == {"run": ["mine"], "rank": ["0"]}
