"""Sample ids as plain ints and texts, whatever they were delivered as."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradtrace.records import SampleId


def plain(ids: Any) -> tuple[SampleId, ...] | None:
    """Ids as ints and strings; others as their text. Background thread."""
    if ids is None:
        return None
    if isinstance(ids, (Tensor, np.ndarray)):
        ids = ids.reshape(-1).tolist()
    elif isinstance(ids, (str, bytes, int)):
        ids = (ids,)
    if set(map(type, ids)) <= {int, str}:
        return tuple(ids)
    return tuple([_plain(one) for one in ids])


def _plain(one: Any) -> SampleId:
    if isinstance(one, np.integer) or (isinstance(one, Tensor) and one.numel() == 1):
        return int(one)
    if isinstance(one, (int, str)):
        return one
    try:
        return one.decode() if isinstance(one, bytes) else str(one)
    except Exception:  # the user's own __str__, or bytes that are no text
        return f"a {type(one).__name__}"
