"""The training loops that are timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Shape:
    """A GPT: vocabulary, width, layers, heads, context, and sequences per batch."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    context: int
    batch: int


SHAPES = {
    "small": Shape(65, 48, 4, 4, 64, 2),
    "mini": Shape(256, 256, 4, 4, 128, 8),
    "large": Shape(50257, 768, 12, 12, 512, 1),
}
"""0.12M parameters, 3.3M at 1,024 tokens a step, GPT-2-small's 124M at 512 tokens a step."""


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] to the same."""
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        total: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return total


class GPT(nn.Module):
    """A GPT with tied embeddings."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.token = nn.Embedding(shape.vocabulary, shape.width)
        self.place = nn.Embedding(shape.context, shape.width)
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [batch, time] to logits."""
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@dataclass
class Loop:
    """A model with its optimizer and one batch; a call trains it for one step.

    `after_backward` functions get the loss between backward and clipping.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    max_norm: float | None = None
    after_backward: list[Callable[[Tensor], object]] = field(default_factory=list)

    def __call__(self) -> None:
        """One optimizer step."""
        loss = self.loss()
        self.optimizer.zero_grad()
        loss.backward()
        for function in self.after_backward:
            function(loss)
        if self.max_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()


def language_model(name: str) -> Loop:
    """A GPT of `SHAPES`, clipped at 1.0."""
    shape = SHAPES[name]
    model = GPT(shape)
    ids = torch.randint(0, shape.vocabulary, (shape.batch, shape.context))

    def loss() -> Tensor:
        return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    return Loop(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loss, max_norm=1.0)


def perceptron(layers: int, width: int) -> Loop:
    """A stack of linear layers."""
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))
    x = torch.randn(8, width)

    def loss() -> Tensor:
        squares: Tensor = model(x).square()
        return squares.mean()

    return Loop(model, torch.optim.SGD(model.parameters(), lr=1e-6), loss)


def build(name: str) -> Loop:
    """A loop by name: a key of SHAPES, `layers-N` (N linear layers) or `width-N` (one)."""
    torch.manual_seed(0)
    kind, _, size = name.partition("-")
    if kind == "layers":
        return perceptron(int(size), 32)
    if kind == "width":
        return perceptron(1, int(size))
    return language_model(name)
