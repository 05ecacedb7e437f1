"""A character-level GPT of about a million parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, length, width] to the same shape."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return self.out(mixed)  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on a normalised copy of the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From [batch, length, width] to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class CharLM(nn.Module):
    """Predicts the next character; input and output embeddings are one tensor."""

    def __init__(
        self,
        vocabulary: int,
        *,
        length: int = 64,
        width: int = 128,
        heads: int = 4,
        depth: int = 5,
    ) -> None:
        super().__init__()
        self.length = length
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.token.weight
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            # Each block adds to the stream twice; this keeps its variance apart from the depth.
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of what follows each of `tokens` [batch, length]."""
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self, tokens: Tensor, count: int, *, temperature: float = 0.7, seed: int = 0
    ) -> Tensor:
        """`tokens` [length] continued by `count` sampled ones."""
        generator = torch.Generator().manual_seed(seed)
        for _ in range(count):
            logits = self(tokens[None, -self.length :])[0, -1] / temperature
            chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            tokens = torch.cat([tokens, chosen])
        return tokens
