"""Wrong arguments raise at the call, with a message that helps, and leave nothing behind."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, SpikeFiles, gradtrace
from gradtrace.testing import RecordingExporter

MODEL = nn.Linear(2, 2)
DATA = TensorDataset(torch.zeros(4, 2))

WRONG: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "no parameters": (ValueError, {"model": nn.ReLU()}, "no parameters.*pass the module whose"),
    "no module": (TypeError, {"model": "resnet"}, "model is a str; expected.*pass the model"),
    "a list of modules": (TypeError, {"model": [MODEL]}, "model is a list; expected"),
    "a mapping of other things": (TypeError, {"model": {"a": 3}}, "entry 'a': int; expected"),
    "a mapping without names": (TypeError, {"model": {0: MODEL}}, "entry 0: Linear; expected"),
    "unknown exporter": (
        ValueError,
        {"exporters": ["pigeon"]},
        "'pigeon'; expected one of",
    ),
    "a single name": (TypeError, {"exporters": "console"}, "'console'; expected a list"),
    "a single exporter": (TypeError, {"exporters": RecordingExporter()}, "expected a list"),
    "an exporter class": (
        TypeError,
        {"exporters": [RecordingExporter]},
        "write RecordingExporter",
    ),
    "no exporter": (TypeError, {"exporters": [object()]}, "lacks name, open, export, close"),
    "no loader": (TypeError, {"loader": [1, 2]}, r"expected a torch DataLoader.*trace\.batches"),
    "ids that are no function": (TypeError, {"sample_ids": [1]}, "sample_ids is a list; expected"),
    "no sampling": (
        TypeError,
        {"sampling": 10},
        "sampling is a int; expected",
    ),
    "no mapping of config": (TypeError, {"config": argparse.Namespace()}, r"use vars\(args\)"),
    "no bytes": (ValueError, {"max_bytes": 0}, "max_bytes is 0; expected"),
    "no number of bytes": (TypeError, {"max_bytes": "2G"}, "max_bytes is '2G'; expected"),
    "no time to close": (ValueError, {"close_timeout": -1}, "close_timeout is -1; expected"),
    "a run above": (ValueError, {"run": "../evil"}, "run name '../evil'; expected.*choose"),
    "a run below": (ValueError, {"run": "a/b"}, "run name 'a/b'; expected"),
    "a hidden run": (ValueError, {"run": ".."}, "run name '..'; expected"),
    "half a character": (ValueError, {"run": "a\ud800"}, "half a character.*choose"),
    "an empty run": (ValueError, {"run": ""}, "run name ''; expected"),
    "no run name": (TypeError, {"run": 7}, "run name 7; expected a string"),
    "a very long run": (ValueError, {"run": "x" * 300}, "300 bytes; expected at most 200"),
    "lazy layers": (
        ValueError,
        {"model": nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 1))},
        "parameter '0.weight' is not initialised.*after its lazy layers have been initialised",
    ),
    "one wrong loader": (
        TypeError,
        {"loader": [DataLoader(DATA), DATA]},
        r"loader\[1\] is a TensorDataset; expected a torch DataLoader.*trace\.batches",
    ),
    "a number to call": (TypeError, {"on_spike": 3}, "on_spike is 3; expected a callable"),
    "a name to call": (TypeError, {"on_spike": "print"}, "on_spike is 'print'; expected"),
    "one thing not to call": (
        TypeError,
        {"on_spike": [print, 3]},
        r"on_spike\[1\] is a int; expected a callable",
    ),
    "a class to call": (
        TypeError,
        {"on_spike": SpikeFiles},
        r"on_spike is the class SpikeFiles; expected.*make an instance, SpikeFiles\(\.\.\.\)",
    ),
    "nothing to take the spike": (
        TypeError,
        {"on_spike": lambda: None},
        r"on_spike cannot be called with one argument.*\(\); expected",
    ),
    "too much to take": (
        TypeError,
        {"on_spike": [lambda spike, trace: None]},
        r"on_spike\[0\] cannot be called with one argument.*'trace'.*expected",
    ),
    "callbacks without spikes": (
        ValueError,
        {"on_spike": print, "spikes": None},
        "together with spikes=None.*leave spikes out",
    ),
    "a number for a directory": (TypeError, {"directory": 3}, "directory is 3; expected the path"),
    "yes for a directory": (TypeError, {"directory": True}, "directory is True; expected the path"),
    "an empty directory": (ValueError, {"directory": ""}, "directory is ''; expected.*or '.'"),
    "NUL in a directory": (ValueError, {"directory": "a\0b"}, "directory is 'a.x00b'; expected"),
    "endless bytes": (ValueError, {"max_bytes": float("inf")}, "max_bytes is inf; expected"),
    "no known bytes": (ValueError, {"max_bytes": float("nan")}, "max_bytes is nan; expected"),
    "endless closing": (
        ValueError,
        {"close_timeout": float("inf")},
        "close_timeout is inf; expected a finite",
    ),
    "nothing selected": (
        ValueError,
        {"sampling": Sampling(include=("encoder.*",))},
        "no parameter matches.*for instance, 'weight'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_raises_at_the_call(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call itself raises, says what was got, what was expected and what to do."""
    monkeypatch.chdir(tmp_path)
    error, arguments, message = WRONG[case]
    with pytest.raises(error, match=f"(?s){message}"):
        gradtrace(**({"model": MODEL} | arguments))
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file in the directory's place raises at the call."""
    place = tmp_path / "runs"
    place.write_text("not a folder")
    with pytest.raises(ValueError, match="which is a file; expected a folder"):
        gradtrace(MODEL, directory=place)


def test_two_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    """A name that is taken raises at the call, and the first run stays as it was."""
    with gradtrace(MODEL, directory=tmp_path, run="one") as trace:
        pass
    assert trace.path is not None
    before = (trace.path / "run.json").read_bytes()
    with pytest.raises(ValueError, match=r"'one', which exists already.*choose another"):
        gradtrace(MODEL, directory=tmp_path, run="one")
    first = gradtrace(MODEL, directory=tmp_path, run="two")
    second = gradtrace(MODEL, directory=tmp_path, run="two")
    with first, pytest.raises(ValueError, match="'two', which exists already"):
        second.start()
    assert (trace.path / "run.json").read_bytes() == before


def test_an_exporter_that_cannot_open_ends_the_start(tmp_path: Path) -> None:
    """What `open` raises comes out at the `with`, and nothing stays patched or running."""
    import threading

    class Wrong(RecordingExporter):
        def open(self, run: Any) -> None:
            raise ValueError("no such server")

    threads = threading.active_count()
    with pytest.raises(ValueError, match="no such server"):
        gradtrace(MODEL, directory=tmp_path, exporters=[RecordingExporter(), Wrong()]).start()
    assert threading.active_count() == threads


def test_logged_values_are_checked_at_the_call() -> None:
    """`trace.log` takes floats and single values, and says so for anything else."""
    import torch

    with gradtrace(MODEL, directory=None) as trace:
        with pytest.raises(TypeError, match="reduce it first"):
            trace.log(many=torch.ones(3))
        with pytest.raises(TypeError, match="got a str; expected a float"):
            trace.log(word="high")  # type: ignore[arg-type]
        trace.log(fine=1, also=torch.tensor(2.0))


def test_callbacks_whose_parameters_fit_or_are_not_known() -> None:
    """Built-in functions, methods, defaults and `*args` are taken as they are."""
    heard: list[Any] = []
    fitting: list[Any] = [heard.append, print, lambda spike, more=1: None, lambda *all: None, max]
    for callback in fitting:
        gradtrace(MODEL, directory=None, on_spike=callback)
    gradtrace(MODEL, directory=None, on_spike=(), spikes=None)
