"""The `gradtrace` command."""

from gradtrace.cli.app import main

__all__ = ["main"]
