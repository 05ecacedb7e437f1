"""Certificates and passwords as they are given."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from gradtrace.exporters import PrometheusExporter
from gradtrace.exporters.prometheus.security import checked_auth, tls_context


def test_a_password_in_the_clear_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Basic authentication without TLS on other addresses than this machine's is told."""
    PrometheusExporter(auth=("me", "secret"))
    assert not caplog.text
    PrometheusExporter(host="0.0.0.0", auth=("me", "secret"))
    assert "unencrypted" in caplog.text and "secret" not in caplog.text


def test_without_settings_there_is_no_security() -> None:
    """None stays None; a context of the user's own is taken as it is."""
    assert tls_context(None) is None and checked_auth("auth", None) is None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert tls_context(context) is context
    assert checked_auth("auth", ["me", "sec:ret"]) == ("me", "sec:ret")


@pytest.mark.parametrize(
    ("auth", "error"),
    [
        ("me:secret", TypeError),
        (("me", 3), TypeError),
        (("me",), TypeError),
        (("", "secret"), ValueError),
        (("m:e", "secret"), ValueError),
        (("me", ""), ValueError),
    ],
)
def test_wrong_passwords_are_not_repeated(auth: Any, error: type[Exception]) -> None:
    """The error names the argument and what was expected, and no part of the password."""
    with pytest.raises(error, match=r"^push_auth .*expected user and password") as caught:
        checked_auth("push_auth", auth)
    assert "secret" not in str(caught.value)
