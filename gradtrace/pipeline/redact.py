"""What is logged of other people's errors: without the passwords in their addresses."""

from __future__ import annotations

import re


def redacted(text: str) -> str:
    """The text without the user and the password that its URLs may hold."""
    return re.sub(r"(?<=://)[^/?#\s]*@", "***@", text)
