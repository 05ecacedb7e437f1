"""The `gradtrace` command, as typed."""

from __future__ import annotations

from typer.testing import CliRunner

from gradtrace.cli.app import app


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and output, each run of blanks as one."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())
