"""The user's own sample ids: what their function may return, kept from later changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradtrace.measure import flat

_EXPECTED = (
    "expected the ids of the batch's samples: ints or strings in a list, a tuple, an array or a "
    "tensor on the CPU"
)


class SampleIds:
    """Calls the user's `sample_ids` on each batch. Training thread; O(1) but for iterators.

    What it raises, or returns that are no ids, is noted once; the batch is then without any.
    """

    def __init__(self, function: Callable[[Any], Any], note: Callable[[str, str], None]) -> None:
        self._function = function
        self._note = note
        self._told = False

    def of(self, batch: Any) -> Any:
        """What names the samples, kept from later changes; None where nothing does."""
        try:
            ids = _kept(self._function(batch))
        except Exception as error:  # the user's, and told
            problem: str | None = f"raised {type(error).__name__}: {error}"
        else:
            problem = _problem(ids)
        if not problem:
            return ids
        if not self._told:
            self._told = True
            self._note("sample_ids", f"sample_ids {problem}; {_EXPECTED}. Such batches have no ids")
        return None


def _kept(ids: Any) -> Any:
    """A copy of what may change later."""
    if isinstance(ids, Tensor):
        return ids.detach().clone()
    if isinstance(ids, np.ndarray):
        return ids.copy()
    whole = ids is None or isinstance(ids, (str, bytes, int, tuple, Mapping))
    return tuple(ids) if isinstance(ids, Iterable) and not whole else ids


def _problem(ids: Any) -> str | None:
    """What is wrong with ids, as far as the first one tells."""
    if isinstance(ids, Tensor):
        if ids.is_floating_point() or ids.is_complex() or ids.dtype is torch.bool:
            return f"returned a tensor of {ids.dtype}"
        if ids.device.type != "cpu":
            return f"returned a tensor on {ids.device}, which cannot be read without waiting"
        if flat.whole(ids) is None:
            return f"returned a {type(ids).__name__} of which this rank holds a part"
        return None
    if isinstance(ids, np.ndarray):
        return None if ids.dtype.kind in "iuUSO" else f"returned an array of {ids.dtype}"
    if ids is None or isinstance(ids, (str, bytes, int)):
        return None
    if not isinstance(ids, tuple):
        return f"returned a {type(ids).__name__}"
    first = ids[0] if ids else ""
    if isinstance(first, Tensor):
        return _problem(first) or (
            f"returned tensors of {first.numel()} values each" if first.numel() != 1 else None
        )
    if isinstance(first, (bool, np.bool_, float, np.floating, np.ndarray, list, Mapping)):
        return f"returned a sequence of {type(first).__name__}"
    return None
