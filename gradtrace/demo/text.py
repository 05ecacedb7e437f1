"""The demo's data: the text of Python's own `help()`, about 460,000 characters of English."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset


def help_text() -> str:
    """All topics of `help()`, in alphabetical order. Raises RuntimeError where they are missing."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise RuntimeError(
            "this Python was installed without the texts of help(), which the demo trains on: "
            "install your system's full Python standard library"
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics))


class TextWindows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of `length` characters, each with the same window one character on."""

    def __init__(self, text: str, length: int) -> None:
        self.characters = "".join(sorted(set(text)))
        self._number = {character: n for n, character in enumerate(self.characters)}
        self._length = length
        self._tokens = self.encode(text)

    def __len__(self) -> int:
        return (len(self._tokens) - 1) // self._length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = index * self._length
        window = self._tokens[start : start + self._length + 1]
        return window[:-1], window[1:]

    def encode(self, text: str) -> Tensor:
        """Characters as numbers; all must occur in the text that was learned from."""
        return torch.tensor([self._number[character] for character in text])

    def decode(self, tokens: Tensor) -> str:
        """The inverse of `encode`."""
        return "".join(self.characters[n] for n in tokens.tolist())
