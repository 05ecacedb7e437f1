"""The front door: every public name, and what is loaded for it when."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import gradtrace


def loaded_by(code: str) -> set[str]:
    """The modules in a new interpreter after this code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_loads_nothing() -> None:
    """`import gradtrace` loads none of its rooms, no torch and no numpy; nor does its version."""
    loaded = loaded_by("import gradtrace; gradtrace.__version__; dir(gradtrace)")
    assert not loaded & {"torch", "numpy", "pyarrow"}
    assert [name for name in loaded if name.startswith("gradtrace")] == ["gradtrace"]


@pytest.mark.parametrize(
    "names",
    [
        "LayerTable, Run, Sampling, Spike, SpikeRule, find_spikes, load_run",
        "exporter, exporters, metrics, monitoring, sampling, testing",
        "BadList, Suspects, find_bad, plots",
    ],
)
def test_names_that_need_no_torch_load_none(names: str) -> None:
    """What only reads a recorded run is there without torch, and so are the public modules."""
    assert "torch" not in loaded_by(f"from gradtrace import {names}")


@pytest.mark.parametrize("name", gradtrace.__all__)
def test_every_public_name_works(name: str) -> None:
    """It is a class, a function or the version, under its own name, and found again at once."""
    value = getattr(gradtrace, name)
    if name == "__version__":
        assert value == version("gradtrace")
    elif name != "Event":
        assert value.__name__ == name and value.__module__.startswith("gradtrace.")
        assert vars(gradtrace)[name] is value


@pytest.mark.slow
def test_functions_are_not_hidden_by_modules() -> None:
    """`gradtrace.suspects` is the function also after every module has been imported."""
    code = """
import importlib, pkgutil, gradtrace
for module in pkgutil.walk_packages(gradtrace.__path__, "gradtrace."):
    if not module.name.startswith(("gradtrace.exporters", "gradtrace.integrations")) and (
        "__main__" not in module.name
    ):
        importlib.import_module(module.name)
from gradtrace import attribute, find_bad, gradtrace as trace, suspects
assert all(map(callable, (attribute, find_bad, suspects, trace)))
"""
    assert "gradtrace.attribution.suspects" in loaded_by(code)


def test_the_directory_lists_what_is_not_loaded_yet() -> None:
    """`dir(gradtrace)` has every public name and module before any was asked for."""
    code = "import gradtrace\nassert {*gradtrace.__all__, 'plots', 'testing'} <= {*dir(gradtrace)}"
    assert "torch" not in loaded_by(code)


def test_public_modules_come_by_attribute() -> None:
    """`import gradtrace` is enough to write `gradtrace.testing`."""
    assert "gradtrace.testing" in loaded_by("import gradtrace; gradtrace.testing.MemoryBacklog()")


def test_other_names_are_refused() -> None:
    """A name that is not public is an AttributeError with that name."""
    name = "no_such_name"
    with pytest.raises(AttributeError, match=repr(name)):
        getattr(gradtrace, name)
