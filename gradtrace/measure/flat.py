"""Any gradient as flat dense real values, copying nothing where that is possible."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlap, in any order."""
    expected = 1
    for stride, size in sorted(
        (stride, size)
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
        if size > 1
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def flatten(tensor: Tensor) -> Tensor:
    """The tensor's values as one dimension, in memory order; complex as (real, imaginary) pairs.

    A transposed or channels-last tensor is read where it lies (`reshape` would copy it, 17 times
    slower); only one with gaps or overlaps (a slice, an expanded scalar) is copied.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    if tensor.is_contiguous():
        return tensor.view(-1)
    if is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return tensor.reshape(-1)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a DTensor's own shard, any other tensor itself.

    Never a collective: any operation on a DTensor may be one. `type(...) is Tensor` is tried first,
    for it is true of almost all; `to_local()` would make a node of autograd's.
    """
    if type(tensor) is Tensor:
        return tensor
    inner = getattr(tensor, "_local_tensor", None)
    return inner if isinstance(inner, Tensor) else tensor


def is_partial(tensor: Tensor) -> bool:
    """Whether the ranks hold summands of a tensor: what it is shows after a collective only."""
    return type(tensor) is not Tensor and any(
        placement.is_partial() for placement in getattr(tensor, "placements", ())
    )


def whole(tensor: Tensor) -> Tensor | None:
    """All values of a tensor, as a plain one; None where this process does not hold them.

    Never a collective. A value that is made of several tensors has none, as no one else knows how
    they make one.
    """
    if type(tensor) is Tensor:
        return tensor
    if hasattr(tensor, "placements"):
        same = all(placement.is_replicate() for placement in tensor.placements)
        return local(tensor) if same else None
    return None if hasattr(tensor, "__tensor_flatten__") else tensor.as_subclass(Tensor)


def stored(tensor: Tensor) -> Tensor | None:
    """The values a tensor stores: itself, or the coalesced values of a sparse one.

    None where they cannot be read without waiting or at all: an uncoalesced sparse tensor on an
    accelerator (coalescing asks the device for a size), or a layout that is not known here.
    """
    if tensor.layout is torch.strided:
        return tensor
    if tensor.layout is torch.sparse_coo:
        if tensor.is_coalesced():
            return tensor.values()
        return tensor.coalesce().values() if tensor.device.type == "cpu" else None
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.values()
    return None
