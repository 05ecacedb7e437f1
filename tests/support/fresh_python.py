"""Code in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

from patience import patience


def run_python(code: str, within: float = 120.0) -> subprocess.CompletedProcess[str]:
    """How a new interpreter ends with this code, and what it prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=patience(within))
