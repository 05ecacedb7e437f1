"""Parameters, marks and texts as a tracking server takes them."""

from __future__ import annotations

from typing import Any

from gradtrace.exporters._keys import flat_params


def test_parameters_are_flat_texts() -> None:
    """Nested mappings are joined with dots; same keys stay apart; odd values do no harm."""

    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    params = flat_params({"a": {"b": 1}, "a.b": 2, "c": {}, "d": None, "e": Odd(), "f": "\ud800\0"})
    assert params["a.b"] == "1" and sorted(params.values()) == [
        "1",
        "2",
        "?",
        "None",
        "a Odd",
        "{}",
    ]
    endless: dict[str, Any] = {}
    endless["self"] = endless
    assert len(flat_params(endless)) == 1
