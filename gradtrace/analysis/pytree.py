"""Tensors in nested tuples, lists and mappings, as batches come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch, depth first; what is neither tensor nor nesting is passed over."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for part in batch.values():
            yield from tensors_in(part)
    elif isinstance(batch, (tuple, list)):
        for part in batch:
            yield from tensors_in(part)


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """The same nesting with `function` of each tensor, in the order of `tensors_in`.

    Named tuples stay what they are, mappings become dicts, and what is no tensor is passed on.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(function, part) for key, part in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):  # a named tuple
        return type(batch)(*(map_tensors(function, part) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(map_tensors(function, part) for part in batch)
    return batch
