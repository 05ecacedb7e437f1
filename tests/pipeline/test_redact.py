"""Passwords stay out of the log."""

from __future__ import annotations

import pytest

from gradtrace.pipeline.redact import redacted


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("API request to http://me:s3cret@host:80/x failed", "http://***@host:80/x failed"),
        ("https://token@host", "https://***@host"),
        ("mail me@example.org about http://host/a@b", "me@example.org about http://host/a@b"),
    ],
)
def test_passwords_in_addresses_are_not_told(text: str, told: str) -> None:
    """What an exporter's error says is logged without the user and password of its URLs."""
    assert redacted(text).endswith(told) and "s3cret" not in redacted(text)
