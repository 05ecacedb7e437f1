"""The checksum equals the slow one of TensorBoard for every length."""

from __future__ import annotations

import random

import pytest
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c as slow

from gradtrace.exporters._crc32c import ROWS, WIDTH, crc32c, masked_crc32c

BLOCK = WIDTH * ROWS


def test_the_known_value() -> None:
    """The check value of CRC-32C's definition."""
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("size", [*range(140), 1000, *range(BLOCK - 2, BLOCK + 6), 3 * BLOCK])
def test_it_equals_tensorboards(size: int) -> None:
    """For every length around a word and a block, of random bytes and of the extreme ones."""
    for data in (random.Random(size).randbytes(size), b"\0" * size, b"\xff" * size):
        assert masked_crc32c(data) == slow(data)
