"""What constructors refuse, and in which words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from gradtrace.exporters import (
    MLflowExporter,
    OpenMetricsExporter,
    PrometheusExporter,
    TensorBoardExporter,
    WandbExporter,
)
from gradtrace.exporters._checks import (
    check_count,
    check_optional_text,
    check_seconds,
    check_text,
    checked_path,
    needed,
)


def test_modules_come_in_order() -> None:
    """What is installed is given back as it was asked for."""
    import json
    import os.path

    assert needed("os.path", "json", by="X", extra="x") == [os.path, json]


def test_a_missing_package_is_named_with_its_pip_line() -> None:
    """The error says who needs what, and how it is installed, in quotes that every shell takes."""
    with pytest.raises(ImportError) as caught:
        needed("json", "no_such_package", by="Exporter", extra="more")
    assert str(caught.value) == (
        "Exporter needs a package that is not installed (No module named 'no_such_package'): "
        'pip install "gradtrace[more]"'
    )
    assert caught.value.name == "no_such_package"


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (3, TypeError, "^host is 3; expected an address$"),
        (None, TypeError, "^host is None; expected an address$"),
        ("", ValueError, "^host is empty; expected an address$"),
    ],
)
def test_texts(value: object, error: type[Exception], words: str) -> None:
    """Texts with something in them are right."""
    check_text("host", "here", "an address")
    check_optional_text("host", None, "an address")
    with pytest.raises(error, match=words):
        check_text("host", value, "an address")
    if value is not None:
        with pytest.raises(error, match="or leave it out"):
            check_optional_text("host", value, "an address")


@pytest.mark.parametrize("value", [True, "7", 7.0, None])
def test_counts_are_integers(value: object) -> None:
    """What looks like a number is none, and its type is told."""
    with pytest.raises(TypeError, match=rf"is {value!r}, a {type(value).__name__}; expected a few"):
        check_count("count", value, 1, 9, "a few")


@pytest.mark.parametrize("value", [0, 10, -1])
def test_counts_have_bounds(value: int) -> None:
    """The bounds themselves are right."""
    for right in (1, 9):
        check_count("count", right, 1, 9, "a few")
    with pytest.raises(ValueError, match=f"count is {value}; expected a few"):
        check_count("count", value, 1, 9, "a few")


def test_seconds() -> None:
    """Numbers from `least` on, or above it, that a thread can wait for."""
    assert check_seconds("t", 0, "some") == 0.0 and check_seconds("t", 2, "some", least=2.0) == 2.0
    for number in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="expected seconds, some"):
            check_seconds("t", number, "some")
    with pytest.raises(ValueError, match="t is 0"):
        check_seconds("t", 0, "some", above=True)
    for wrong in ("1", True, None):
        with pytest.raises(TypeError, match="expected seconds, some"):
            check_seconds("t", wrong, "some")


def test_paths() -> None:
    """Texts and paths become paths; what is neither, or empty, is refused."""
    assert (
        checked_path("file", "a/b", "a path")
        == checked_path("file", Path("a/b"), "")
        == Path("a/b")
    )
    for wrong in ("", 3, None):
        with pytest.raises(TypeError, match=r"file is .*; expected a path"):
            checked_path("file", wrong, "a path")


@pytest.mark.parametrize(
    ("exporter", "attribute"),
    [
        (OpenMetricsExporter, "_target"),
        (TensorBoardExporter, "_directory"),
    ],
)
def test_the_first_argument_may_come_from_a_command_line(exporter: Any, attribute: str) -> None:
    """`gradtrace send --to X ARG` hands on a text, a program a path: both name the same place."""
    if exporter is TensorBoardExporter:
        pytest.importorskip("tensorboard")
    found = {getattr(exporter(given), attribute) for given in ("a/b", Path("a/b"))}
    assert found == {Path("a/b")}


def test_a_port_in_text_is_refused_by_its_type() -> None:
    """`PrometheusExporter("9999")` says what is wrong with it."""
    port: Any = "9999"
    with pytest.raises(TypeError, match=r"^port is '9999', a str; expected an int, a port such as"):
        PrometheusExporter(port)


def test_servers_and_projects_come_first() -> None:
    """The first argument of MLflow's is the server, that of W&B's the project."""
    pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    assert MLflowExporter("http://127.0.0.1:5").resent()[0] == {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5"
    }
    assert WandbExporter("digits").resent()[0] == {"WANDB_PROJECT": "digits"}
