"""JSON of anything."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from gradtrace.runlog.jsontext import as_number, jsonable, to_json


def test_anything_can_be_put_into_json() -> None:
    """Objects, odd keys, numpy numbers, cycles and a broken repr end as text, without raising."""

    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    cycle: list[Any] = []
    cycle.append(cycle)
    value = {
        1: Broken(),
        "a": np.float32(0.5),
        "b": {
            2,
        },
        "c": (math.nan, -math.inf),
        "d": cycle,
    }
    plain = jsonable(value)
    assert plain["1"] == "<Broken>"
    assert plain["a"] == 0.5
    assert plain["c"] == ["NaN", "-Infinity"]
    assert json.loads(to_json(value)) == plain


def test_numbers_that_json_lacks_come_back() -> None:
    """NaN and both infinities are read as they were written; other text and numbers stay."""
    written = json.loads(to_json([math.inf, -math.inf, 1.5, "nan", None]))
    assert [as_number(value) for value in written] == [math.inf, -math.inf, 1.5, "nan", None]
    assert math.isnan(as_number(json.loads(to_json(math.nan))))
