"""Certificates and passwords of the endpoint, as they are given to the exporter."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence

Tls = ssl.SSLContext | Sequence[str | os.PathLike[str]]
"""Paths of certificate and key, with a third one of the clients' authority; or a context."""


def tls_context(tls: Tls | None) -> ssl.SSLContext | None:
    """The server's context. Raises TypeError or ValueError for what is none, OSError for files."""
    if tls is None or isinstance(tls, ssl.SSLContext):
        return tls
    expected = (
        "expected the paths of certificate and key, a third of the clients' authority where they "
        "need certificates, or an ssl.SSLContext"
    )
    paths = () if isinstance(tls, (str, bytes)) or not isinstance(tls, Sequence) else tuple(tls)
    if len(paths) not in (2, 3) or not all(isinstance(p, (str, os.PathLike)) for p in paths):
        raise TypeError(f"tls is {tls!r}; {expected}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(paths[0], paths[1])
        if len(paths) == 3:
            context.load_verify_locations(paths[2])
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise ValueError(f"tls is {tls!r}, which OpenSSL refuses ({error}); {expected}") from error
    except OSError as error:
        raise type(error)(error.errno, f"tls is {tls!r}: {error.strerror}; {expected}") from error
    return context


def checked_auth(name: str, auth: object) -> tuple[str, str] | None:
    """User and password. Raises TypeError or ValueError, without repeating the password."""
    expected = 'expected user and password, such as ("prometheus", "...")'
    if auth is None:
        return None
    if (
        isinstance(auth, str)
        or not isinstance(auth, Sequence)
        or len(auth) != 2
        or not all(isinstance(part, str) for part in auth)
    ):
        raise TypeError(f"{name} is a {type(auth).__name__}; {expected}")
    user, password = auth
    if not user or ":" in user or not password:
        raise ValueError(f"{name} has no user, one with a colon, or no password; {expected}")
    return user, password
