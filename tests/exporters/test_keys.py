"""Parameters, marks and texts as a tracking server takes them."""

from __future__ import annotations

from typing import Any

from build import run_info

from gradtrace.exporters._keys import flat_params, run_mark, spelt


def test_parameters_are_flat_texts() -> None:
    """Nested mappings are joined with dots; same keys stay apart; odd values do no harm."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    params = flat_params({"a": {"b": 1}, "a.b": 2, "c": {}, "d": None, "e": Odd(), "f": "\ud800\0"})
    texts = ["1", "2", "?", "None", "a Odd", "{}"]
    assert params["a.b"] == "1" and sorted(params.values()) == texts
    endless: dict[str, Any] = {}
    endless["self"] = endless
    assert len(flat_params(endless)) == 1


def test_no_parameter_is_a_folder_of_another() -> None:
    """For servers that keep a file for each, as for metrics."""
    params = flat_params({"a": 1, "a/b": 2, "c/d": 3, "c": 4, "e/f": 5})
    assert sorted(params.values()) == ["1", "2", "3", "4", "5"]
    assert {"a", "c/d", "e/f"} <= params.keys()
    assert not [(x, y) for x in params for y in params if y.startswith(x + "/")]


def test_a_run_has_one_mark() -> None:
    """Name, start, rank and what else tells runs apart change it, nothing else does."""
    mark = run_mark(run_info("a", started=1.0))
    assert mark == run_mark(run_info("a", started=1.0, config={"lr": 1}))
    others = [
        run_mark(run_info("b", started=1.0)),
        run_mark(run_info("a", started=2.0)),
        run_mark(run_info("a", started=1.0, rank=1)),
        run_mark(run_info("a", started=1.0), "mlflow-2"),
        run_mark(run_info("\ud800", started=1.0)),
    ]
    assert len({mark, *others}) == 6 and all(len(one) == 64 for one in (mark, *others))


def test_lone_surrogates_are_spelt_out() -> None:
    """What UTF-8 has bytes for stays as it is."""
    assert spelt("a\ud800\N{FIRE}") == "a\\ud800\N{FIRE}"
