"""Nothing on the training thread waits: all of it runs on meta, where every read raises."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import LOOPS, ON_META
from torch import nn

import gradtrace as package
from gradtrace import Sampling, Trace, gradtrace
from gradtrace.measure.blocks import Blocks
from gradtrace.measure.chunks import Scratch, _host_cells
from gradtrace.measure.foreach import read_foreach

EVERYTHING = Sampling(activations=1, updates=1, histograms=1)


@pytest.mark.parametrize("name", ON_META)
def test_a_traced_loop_reads_no_value(name: str, internal_errors: list[Exception]) -> None:
    """The whole loop with all statistics runs on meta, and no error had to be held back."""
    traces: list[Trace] = []

    def tracing(models: Any, loader: Any) -> Trace:
        traces.append(gradtrace(models, loader=loader, sampling=EVERYTHING, directory=None))
        return traces[0]

    outcome = LOOPS[name](tracing, "meta")
    assert internal_errors == []
    assert len(traces[0].steps) == len(outcome.losses)
    record = traces[0].steps[-1]
    assert record.gradients is not None and record.activations is not None
    assert record.loss is None and record.grad_norm is None
    assert traces[0].events == []


def test_the_host_plan_reads_no_value_either() -> None:
    """The CPU's own plan, run on meta tensors, looks at nothing but what only a CPU shows."""
    with torch.no_grad():
        tensors = [torch.empty(40, 30, device="meta"), torch.empty(7, device="meta")]
        assert Blocks([0, 1], tensors, torch.device("meta")).read(tensors)
        assert len(_host_cells(torch.empty(1000, device="meta"), Scratch())) == 6
        assert len(_host_cells(torch.empty(9, device="meta").bfloat16(), Scratch())) == 6
        assert read_foreach([0, 1], tensors, full=True)


def test_meta_refuses_reads() -> None:
    """The proof stands on this: every way to read a value raises on the meta device."""
    x = torch.ones((), device="meta")
    for reader in (float, bool, torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reader(x)


READS = {"item", "tolist", "cpu", "numpy", "synchronize", "nonzero"}
ALLOWED = {
    # The reader's side of the hand-over, in the background thread.
    ("handoff.py", "__init__"),
    ("handoff.py", "_values"),
}


def calls(function: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func.attr


def reads() -> Iterator[tuple[str, str, str]]:
    root = Path(package.__file__).parent
    for folder in ("taps", "measure"):
        for path in sorted((root / folder).glob("*.py")):
            for function in ast.walk(ast.parse(path.read_text())):
                if isinstance(function, ast.FunctionDef):
                    yield from (
                        (path.name, function.name, c) for c in calls(function) if c in READS
                    )


def test_no_reading_call_stands_in_taps_or_measure() -> None:
    """No `.item()` or its like is written where the training thread runs."""
    found = [read for read in reads() if read[:2] not in ALLOWED]
    assert found == []


def test_an_added_item_fails_the_proof(
    monkeypatch: pytest.MonkeyPatch, internal_errors: list[Exception]
) -> None:
    """Reading one value in a measurement is noticed on meta."""
    from gradtrace.measure import foreach

    original = foreach._read_group

    def reading(at: Any, pieces: Any, full: bool) -> Any:
        pieces[0].sum().item()
        return original(at, pieces, full)

    monkeypatch.setattr(foreach, "_read_group", reading)
    model = nn.Linear(2, 2, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradtrace(model, directory=None):
        model(torch.ones(1, 2, device="meta")).sum().backward()
        optimizer.step()
    assert internal_errors
    internal_errors.clear()
