"""How long tests wait: more on a machine that is slow or loaded."""

from __future__ import annotations

import os


def patience(seconds: float) -> float:
    """As many seconds as a test may wait where an idle machine would need a part of `seconds`."""
    return seconds * float(os.environ.get("GRADTRACE_TEST_PATIENCE", "1"))
