"""Certificates and passwords as they are given."""

from __future__ import annotations

import pytest

from gradtrace.exporters import PrometheusExporter


def test_a_password_in_the_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Basic authentication without TLS on other addresses than this machine's is told."""
    PrometheusExporter(auth=("me", "secret"))
    assert not caplog.text
    PrometheusExporter(host="0.0.0.0", auth=("me", "secret"))
    assert "unencrypted" in caplog.text and "secret" not in caplog.text
