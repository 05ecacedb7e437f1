"""What MLflow gets of a run when it ends: its summary, its end, tags and files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gradtrace.exporters._ending import how_it_ended
from gradtrace.exporters.mlflow.attempts import Attempts
from gradtrace.exporters.mlflow.curves import Curves
from gradtrace.exporters.mlflow.tracked_run import TrackedRun
from gradtrace.metrics.step_values import PREFIX
from gradtrace.records import RunInfo, StepRecord


def send_end(
    to: TrackedRun,
    run: RunInfo,
    last: StepRecord,
    summary: Mapping[str, float],
    curves: Curves,
    attempts: Attempts,
) -> None:
    """Sends what stands behind the last step. What fails is in `attempts`, and holds up nothing."""
    if not attempts.works(to.connect):
        attempts.missing.append("all of it")
        return
    when = int(last.time * 1000)
    status = how_it_ended(run.path)
    rows = [(key, value, when, last.step + 1) for key, value in summary.items()]
    attempts.attempt("summary", lambda: to.log_metrics(rows))
    if to.own:
        # Also when time is over, which is half of the timeout: a run left open looks alive.
        attempts.attempt("its end", lambda: to.end(status, when), always=True)
    spikes = str(int(summary[PREFIX + "spikes"]))
    tags = {"gradtrace.spikes": spikes, "gradtrace.status": status}
    attempts.attempt("tags", lambda: to.log_tags(tags))
    attempts.attempt("files", lambda: _send_files(to, run.path, curves, attempts))


def _send_files(to: TrackedRun, path: Path | None, curves: Curves, attempts: Attempts) -> None:
    with tempfile.TemporaryDirectory(prefix="gradtrace-") as folder:
        info, figure = Path(folder) / "run.json", Path(folder) / "loss_and_grad_norm.png"
        files = []
        if path is not None:
            files = [path / "events.jsonl"] if (path / "events.jsonl").is_file() else []
            files += [info] if _copy_info(path / "run.json", info) else []
        for file in files:
            attempts.attempt(file.name, partial(to.log_file, file))
        if curves.draw(figure):
            attempts.attempt(figure.name, partial(to.log_file, figure))


def _copy_info(source: Path, to: Path) -> bool:
    """`run.json` as it will be: while the trace closes it says that the run goes on."""
    try:
        info = json.loads(source.read_bytes())
        if info["status"] == "running":
            ended = how_it_ended(source.parent)
            info["status"] = "finished" if ended == "closed" else ended
        to.write_text(json.dumps(info, indent=1), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True
