"""The `gradtrace` command: one file a command, which imports what it needs when it is called.

Shown at once is what a command prints, so none loads torch but `demo`.
"""

from __future__ import annotations

from gradtrace.cli.app import main

__all__ = ["main"]
