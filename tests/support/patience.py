"""How long a test may wait: its time-outs grow with what slows the machine down.

A time-out of a test is only the bound of a failure. One that an idle machine keeps by far is
broken by a busy one, and then a test fails by time alone.
"""

from __future__ import annotations

import functools
import math
import os
import statistics
from time import perf_counter

VARIABLE = "GRADTRACE_TEST_PATIENCE"
MOST = 10.0
"""No machine is taken for slower than this, for a test that hangs has to fail some time."""

_ROUNDS = 200_000
_IDLE_SECONDS = 0.010
"""What `_work` takes on an idle core of 2.5 GHz."""


def patience(seconds: float) -> float:
    """`seconds`, which are enough on an idle machine, in the time of this one."""
    return seconds * factor()


def factor() -> float:
    """How many times slower than an idle machine this one is: at least 1.

    The number in GRADTRACE_TEST_PATIENCE, and ValueError where that is none. Else the larger of
    what a short computation took, measured once, and of the processes that wait for each core, as
    they are now; at most MOST.
    """
    text = os.environ.get(VARIABLE)
    if text is not None:
        return _checked(text)
    return min(MOST, max(1.0, _slowness(), _waiting()))


def _checked(text: str) -> float:
    try:
        given = float(text)
    except ValueError:
        given = math.nan
    if not 1.0 <= given < math.inf:
        raise ValueError(
            f"{VARIABLE} is {text!r}; expected a number of at least 1, by which the time-outs of "
            "tests are multiplied: leave it out to have it measured"
        )
    return given


@functools.cache
def _slowness() -> float:
    return statistics.median(_work() for _ in range(5)) / _IDLE_SECONDS


def _work() -> float:
    start = perf_counter()
    total = 0
    for number in range(_ROUNDS):
        total += number * number
    return perf_counter() - start


def _waiting() -> float:
    """Processes that want to run, for each core, over the last minute."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):  # not on every system
        return 1.0
