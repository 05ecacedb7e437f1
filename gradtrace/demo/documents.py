"""The demo's corpus: short documents of real text, a few of them corrupted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from gradtrace.demo.text import help_text

SHORTEST, LONGEST = 32, 64
"""Characters of an ordinary document."""
LENGTH = 256
"""Symbols of a corrupted one: junk is long."""
JUNK = 1024
"""Symbols that ordinary text never holds, as a tokenizer makes them of binary files."""
IGNORED = -100
"""The target behind the end of a document, as `cross_entropy` skips it."""

KINDS = ("binary noise", "one endless token", "shuffled bytes")


class Documents(Dataset[Tensor]):
    """`count` documents, `corrupted` of them, chosen and made by `seed`.

    A sample is the document's symbols, int64 [length]. `corrupted` maps the numbers of bad
    documents to what is wrong with them.
    """

    def __init__(self, *, count: int = 2000, corrupted: int = 5, seed: int = 0) -> None:
        text = help_text()
        self._symbols = sorted(set(text))
        number = {symbol: n for n, symbol in enumerate(self._symbols)}
        tokens = torch.tensor([number[symbol] for symbol in text])
        generator = torch.Generator().manual_seed(seed)
        windows = len(tokens) // LONGEST
        if count > windows:
            raise ValueError(f"count is {count}; the text gives at most {windows} documents")
        starts = torch.randperm(windows, generator=generator)[:count] * LONGEST
        lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator)
        self._documents = [
            tokens[start : start + length]
            for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]
        self.corrupted: dict[int, str] = {}
        for n, index in enumerate(torch.randperm(count, generator=generator)[:corrupted].tolist()):
            kind = KINDS[n % len(KINDS)]
            start = int(starts[index]) % (len(tokens) - LENGTH)
            self.corrupted[index] = kind
            self._documents[index] = self._corrupt(tokens[start : start + LENGTH], kind, generator)

    def _corrupt(self, document: Tensor, kind: str, generator: torch.Generator) -> Tensor:
        known = len(self._symbols)
        if kind == "binary noise":
            return torch.randint(known, known + JUNK, document.shape, generator=generator)
        if kind == "one endless token":
            return torch.full_like(document, known + _one(JUNK, generator))
        table = known + torch.randperm(JUNK, generator=generator)
        return table[document]

    @property
    def vocabulary(self) -> int:
        """How many symbols there are."""
        return len(self._symbols) + JUNK

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Tensor:
        return self._documents[index]

    def encode(self, text: str) -> Tensor:
        """Characters of the help text as numbers."""
        return torch.tensor([self._symbols.index(symbol) for symbol in text])

    def decode(self, tokens: Tensor) -> str:
        """Numbers as text; symbols that are no text as <n>."""
        known = len(self._symbols)
        return "".join(self._symbols[n] if n < known else f"<{n - known}>" for n in tokens.tolist())


def collate(documents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Inputs and targets [batch, longest - 1], padded; IGNORED behind the end of a target."""
    inputs = pad_sequence([d[:-1] for d in documents], batch_first=True)
    targets = pad_sequence([d[1:] for d in documents], batch_first=True, padding_value=IGNORED)
    return inputs, targets


def _one(below: int, generator: torch.Generator) -> int:
    return int(torch.randint(below, (1,), generator=generator))
