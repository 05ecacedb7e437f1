"""`gradtrace bad-batches`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradtrace.cli.arguments import RunArgument, failed, load


def bad_batches(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option(help="Where to write it.", show_default="standard output")
    ] = None,
) -> None:
    """Write the samples and batches behind a run's spikes as JSON, with the evidence.

    SkipSamples and SkipBatches take the file.
    """
    from gradtrace.attribution.bad_samples import find_bad

    bad = find_bad(load(run))
    if output is None:
        typer.echo(bad.to_json(), nl=False)
        return
    try:
        output.write_text(bad.to_json(), encoding="utf-8")
    except OSError as error:
        raise failed(f"{str(output)!r} cannot be written: {error}") from error
    typer.echo(f"{len(bad.samples)} samples and {len(bad.batches)} batches written to {output}")
