"""The arguments of a trace: named once, checked at the call, with messages that help."""

from __future__ import annotations

import argparse
import dataclasses
import gc
import inspect
import pydoc
import re
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import Sampling, SpikeFiles, Trace, gradtrace
from gradtrace.session.settings import Settings, takes
from gradtrace.testing import RecordingExporter

MODEL = nn.Linear(2, 2)
DATA = TensorDataset(torch.zeros(4, 2))

WRONG: dict[str, tuple[type[Exception], dict[str, Any], str]] = {
    "no parameters": (ValueError, {"model": nn.ReLU()}, "no parameters.*expected the module whose"),
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
    "no optimizer": (
        TypeError,
        {"step_after": MODEL},
        r"step_after is a Linear; expected the torch optimizer.*trace\.step\(\)",
    ),
    "somebody else's optimizer": (
        ValueError,
        {"step_after": torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)},
        "step_after is a SGD that holds none of the model's parameters.*expected one that does",
    ),
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
        "parameter '0.weight' is not initialised.*expected.*send one batch through the model",
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
        "no parameter matches.*expected globs.*such as 'weight'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_raises_at_the_call(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call itself raises, says what was got, what was expected and what to do."""
    monkeypatch.chdir(tmp_path)
    error, arguments, message = WRONG[case]
    with pytest.raises(error, match=f"(?s){message}") as caught:
        gradtrace(**({"model": MODEL} | arguments))
    assert re.search(r"\w.*[;,] (expected|which holds) ", str(caught.value), re.DOTALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("gradients", -1, ValueError),
        ("activations", 0.5, TypeError),
        ("updates", True, TypeError),
        ("first", -3, ValueError),
        ("include", "encoder.*", TypeError),
        ("include", None, TypeError),
        ("exclude", 3, TypeError),
        ("exclude", (1,), TypeError),
        ("histograms", -10, ValueError),
    ],
)
def test_a_wrong_cadence_raises_where_it_is_written(
    field: str, value: Any, error: type[Exception]
) -> None:
    """`Sampling` refuses what is no number of steps or no globs, naming field and value."""
    with pytest.raises(
        error,
        match=rf"Sampling\.{field} is {value!r}".replace("(", r"\(")
        .replace(")", r"\)")
        .replace("*", r"\*"),
    ):
        Sampling(**{field: value})


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


def test_globs_may_come_from_a_generator() -> None:
    """Checking them does not use them up."""
    assert Sampling(include=(name for name in ("a", "b"))).include == ("a", "b")  # type: ignore[arg-type]


def given() -> list[inspect.Parameter]:
    """What `Settings` takes, by its own fields."""
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY
            if field.kw_only
            else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty
            if field.default is dataclasses.MISSING
            else field.default,
            annotation=field.type,
        )
        for field in dataclasses.fields(Settings)
        if field.init
    ]


def test_gradtrace_has_the_arguments_of_the_settings() -> None:
    """Names, order, kinds, defaults and types are those of `Settings`; it returns a `Trace`."""
    signature = inspect.signature(gradtrace)
    assert list(signature.parameters.values()) == given()
    assert signature.return_annotation == "Trace"
    assert [p.name for p in given() if p.kind is not inspect.Parameter.KEYWORD_ONLY] == ["model"]
    assert list(signature.parameters) == [
        *("model", "exporters", "loader", "sample_ids", "step_after", "sampling", "spikes"),
        *("on_spike", "directory", "run", "config", "max_bytes", "close_timeout"),
    ]


def test_gradtrace_looks_like_any_function() -> None:
    """Its name, module, text and annotations are its own, and `help` shows all arguments."""
    assert (gradtrace.__name__, gradtrace.__qualname__) == ("gradtrace", "gradtrace")
    assert gradtrace.__module__ == "gradtrace.session.trace"
    assert not hasattr(gradtrace, "__wrapped__")
    annotations = {parameter.name: parameter.annotation for parameter in given()}
    assert inspect.get_annotations(gradtrace) == {**annotations, "return": "Trace"}
    text = pydoc.plain(pydoc.render_doc(gradtrace))
    for parameter in given():
        assert f"`{parameter.name}`: " in text, parameter.name
        assert re.search(rf"\b{parameter.name}: ", text.split("Traces the")[0])


def test_every_argument_is_explained() -> None:
    """The docstring names each argument once, in the order of the signature."""
    text = inspect.getdoc(gradtrace) or ""
    places = [text.find(f"`{parameter.name}`: ") for parameter in given()]
    assert -1 not in places and places == sorted(places)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((MODEL,), {"directry": None}, "unexpected keyword argument 'directry'; expected .*direct"),
        ((MODEL, []), {}, "too many positional arguments; expected the arguments model, exporters"),
        ((), {"loader": None}, "missing a required argument: 'model'; expected"),
        ((MODEL,), {"models": {}}, "unexpected keyword argument 'models'; expected"),
        ((MODEL,), {"model": MODEL}, "multiple values for argument 'model'; expected"),
    ],
)
def test_a_wrong_keyword_is_named(args: Any, kwargs: Any, message: str) -> None:
    """What does not fit the signature is told with the function's name and all arguments."""
    with pytest.raises(TypeError, match=rf"^gradtrace\(\): .*{message}") as caught:
        gradtrace(*args, **kwargs)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_what_settings_refuse_comes_out_as_it_is() -> None:
    """`takes` changes only what does not fit a signature: other errors are the maker's own."""

    def make(number: int, *, plus: int = 1) -> int:
        if number < 0:
            raise TypeError("negative")
        return number + plus

    @takes(make)
    def double(made: int) -> int:
        """Twice as much."""
        return 2 * made

    assert double(3) == 8 and double(3, plus=2) == 10 and double(number=0) == 2
    assert str(inspect.signature(double)) == "(number: 'int', *, plus: 'int' = 1) -> 'int'"
    assert double.__doc__ == "Twice as much."
    with pytest.raises(TypeError, match=r"^negative$"):
        double(-1)


def test_what_follows_from_the_arguments() -> None:
    """A single model has the prefix "", exporters are made, callbacks and loaders are lists."""
    loader, exporter = DataLoader(DATA), RecordingExporter()
    settings = Settings(MODEL, loader=loader, exporters=[exporter], on_spike=print, directory="d")
    assert settings.models == {"": MODEL} and settings.loaders == [loader]
    assert settings.targets == [exporter] and settings.callbacks == (print,)
    assert settings.folder == Path("d") and re.match(r"\d{8}-\d{6}-[0-9a-f]{10}$", settings.name)
    assert (settings.rank, settings.world_size) == (0, 1)
    several = Settings({"a": MODEL}, directory=None, run="mine")
    assert several.models == {"a": MODEL} and several.folder is None and several.name == "mine"
    assert (several.loaders, several.targets, several.callbacks) == ([], [], ())


def test_every_rank_has_a_run_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that was given gets the rank's number, but for the first rank."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    for rank, name in (("0", "r"), ("3", "r.rank3")):
        monkeypatch.setenv("RANK", rank)
        assert Settings(MODEL, run="r", directory=None).name == name
    assert "rank" not in Settings(MODEL, directory=None).name


def test_ranks_agree_about_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is too long for the last rank is refused by the first one, too."""
    monkeypatch.setenv("WORLD_SIZE", "1000")
    for rank in ("0", "7", "999"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(ValueError, match="at most 200"):
            Settings(MODEL, run="r" * 193, directory=None)
        assert Settings(MODEL, run="r" * 192, directory=None).name.startswith("r" * 192)


def test_settings_do_not_change() -> None:
    """They are frozen, and letting go of the loaders makes a copy."""
    settings = Settings(MODEL, loader=DataLoader(DATA), directory=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.run = "other"  # type: ignore[misc]
    other = settings.without_loaders()
    assert (other.loader, list(other.loaders)) == (None, [])
    assert settings.loader is not None and len(settings.loaders) == 1
    assert other.models is settings.models and other.name == settings.name


@pytest.mark.parametrize("several", [False, True])
def test_an_ended_trace_keeps_no_loader_alive(several: bool) -> None:
    """Its persistent workers would live as long as the trace is looked at."""
    loader = DataLoader(DATA, batch_size=2)
    gone = weakref.ref(loader)
    trace: Trace = gradtrace(MODEL, loader=[loader] if several else loader, directory=None)
    with trace:
        for _ in loader:
            pass
    del loader
    gc.collect()
    assert gone() is None and trace.steps == []
