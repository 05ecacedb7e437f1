"""Gradients of every type and layout, listed and drawn, and a step on them."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gradtrace import Sampling, Trace, gradtrace

NAN, INF = float("nan"), float("inf")
EVERYTHING = Sampling(activations=1, updates=1)


def noise(*shape: int, dtype: torch.dtype = torch.float32, shift: float = 0.0) -> Tensor:
    values = torch.randn(shape, dtype=dtype if dtype.is_complex else torch.float32)
    return (values + shift).to(dtype)


def transposed() -> Tensor:
    return noise(96, 400).t()


def strided() -> Tensor:
    return noise(40, 60)[::2, ::3]


def zeros_among() -> Tensor:
    x = noise(300, 300)
    x[x.abs() < 0.5] = 0
    x[0] = -0.0
    return x


def with_nan() -> Tensor:
    x = noise(50, 70)
    x[3, 4] = NAN
    x[5, 6] = INF
    return x


def large_with_inf() -> Tensor:
    x = noise(400, 500)
    x[7, 7] = -INF
    x[8, :20] = 0
    return x


def sparse() -> Tensor:
    index = torch.tensor([[0, 2, 2, 17], [1, 0, 0, 3]])
    return torch.sparse_coo_tensor(index, torch.tensor([1.0, -2.0, 3.0, 0.5]), (20, 6))


CASES: dict[str, Callable[[], Tensor]] = {
    "small": lambda: noise(30, 7),
    "one_value": lambda: torch.tensor([3.5]),
    "scalar": lambda: torch.tensor(-2.25),
    "empty": lambda: torch.empty(0, 5),
    "large": lambda: noise(1500, 1000),
    "bfloat16": lambda: noise(77, 300, dtype=torch.bfloat16),
    "float16": lambda: noise(77, 300, dtype=torch.float16),
    "large_bfloat16": lambda: noise(900, 300, dtype=torch.bfloat16, shift=3.0),
    "large_float16_that_overflows_when_squared": lambda: (noise(300, 300) * 1000).half(),
    "float64": lambda: noise(40, 40).double() * 1e100,
    "large_float64": lambda: noise(300, 300).double() * 1e-100,
    "complex64": lambda: noise(20, 9, dtype=torch.complex64),
    "large_complex64": lambda: noise(300, 200, dtype=torch.complex64),
    "transposed": transposed,
    "strided": strided,
    "expanded": lambda: torch.tensor([[0.5]]).expand(30, 40),
    "channels_last": lambda: noise(8, 16, 20, 20).to(memory_format=torch.channels_last),
    "zeros": lambda: torch.zeros(100, 300),
    "small_zeros": lambda: torch.zeros(10),
    "zeros_among": zeros_among,
    "constant": lambda: torch.ones(700, 300),
    "mean_far_above_std": lambda: noise(500, 500, shift=95.0),
    "small_mean_far_above_std": lambda: noise(50, 50, shift=95.0),
    "mean_above_std": lambda: noise(500, 500, shift=15.0),
    "huge": lambda: noise(200, 200) * 1e30,
    "small_huge": lambda: noise(20, 20) * 1e30,
    "tiny": lambda: noise(200, 200) * 1e-30,
    "small_tiny": lambda: noise(20, 20) * 1e-30,
    "with_nan": with_nan,
    "large_with_inf": large_with_inf,
    "sparse": sparse,
}


TYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)


def any_tensor(
    chance: random.Random, *, largest: int = 40, huge: bool = True, bad: bool = True
) -> Tensor:
    """A tensor of any type, shape, layout and size of values, of 0 to 3 dimensions.

    Some hold zeros and minus zeros, with `huge` some 1e20, with `bad` some NaN and Inf. Draws from
    `chance` and from torch's generator.
    """
    shape = [
        chance.choice((0, 1, 2, 3, chance.randint(1, largest)))
        for _ in range(chance.choice((0, 1, 2, 2, 3)))
    ]
    dtype = chance.choice(TYPES)
    values = noise(*shape, dtype=torch.complex128 if dtype.is_complex else torch.float64)
    values = (values + chance.choice((0.0, 0.0, 3.0))) * 10.0 ** chance.uniform(-3, 3)
    flat = values.view(-1)
    if flat.numel() and chance.random() < 0.4:
        for special, wanted in (
            (0.0, True),
            (-0.0, True),
            (1e20, huge),
            (NAN, bad),
            (INF, bad),
            (-INF, bad),
        ):
            if wanted and chance.random() < 0.4:
                flat[chance.randrange(flat.numel())] = special
    return laid_out(chance, values.to(dtype))


def laid_out(chance: random.Random, tensor: Tensor) -> Tensor:
    """The same values or some of them, lying in memory in another way."""
    kind = chance.randrange(6)
    if kind == 1 and tensor.dim() >= 2:
        return tensor.transpose(0, -1)
    if kind == 2 and tensor.dim() >= 1:
        return tensor[::2]
    if kind == 3 and tensor.dim() >= 1 and len(tensor):
        return tensor[:1].expand(3, *tensor.shape[1:])
    if kind == 4 and tensor.is_complex():
        return tensor.conj()
    if kind == 5 and tensor.is_complex():
        return tensor.conj().imag  # a view that is negated when it is read
    return tensor


class Holder(nn.Module):
    """Parameters that are given any gradient."""

    def __init__(self, gradients: dict[str, Tensor]) -> None:
        super().__init__()
        for name, gradient in gradients.items():
            dense = gradient.to_dense() if gradient.layout is not torch.strided else gradient
            # Laid out like the gradient, for torch brings a gradient into its parameter's layout.
            parameter = nn.Parameter(torch.empty_like(dense).fill_(1.0))
            parameter.grad = gradient
            self.register_parameter(name, parameter)


def one_step(model: nn.Module, sampling: Sampling = EVERYTHING) -> Trace:
    """A traced step on the gradients that are there."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with gradtrace(model, directory=None, sampling=sampling) as trace:
        optimizer.step()
    return trace
