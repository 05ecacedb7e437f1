"""Alert rules under `promtool test rules`: series written by hand, and which alerts fire when."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml
from patience import patience

RUN = 'run="r",rank="0"'
EVERY = 15
"""Seconds between two samples; four make a minute."""


def minutes(count: float) -> int:
    """Samples in so many minutes."""
    return round(count * 60 / EVERY)


def healthy(count: float = 240) -> dict[str, str]:
    """Every series of a run in which nothing is wrong, for so many minutes: 1 step a second."""
    n = minutes(count)
    return {
        f"gradtrace_run_active{{{RUN}}}": f"1x{n}",
        f"gradtrace_steps_total{{{RUN}}}": f"0+{EVERY}x{n}",
        f"gradtrace_last_step_timestamp_seconds{{{RUN}}}": f"0+{EVERY}x{n}",
        f"gradtrace_loss{{{RUN}}}": f"1000-0.1x{n}",
        f"gradtrace_grad_norm{{{RUN}}}": f"1x{n}",
        f"gradtrace_clip_fraction{{{RUN}}}": f"0.1x{n}",
        f'gradtrace_spikes_total{{{RUN},signal="loss"}}': f"0x{n}",
        f'gradtrace_spikes_total{{{RUN},signal="grad_norm"}}': f"0x{n}",
        f"gradtrace_nonfinite_steps_total{{{RUN}}}": f"0x{n}",
        f"gradtrace_skipped_steps_total{{{RUN}}}": f"0x{n}",
        f'gradtrace_dropped_records_total{{{RUN},exporter="mlflow"}}': f"0x{n}",
        f'gradtrace_layer_grad_norm{{{RUN},layer="a"}}': f"0.5x{n}",
        f'gradtrace_layer_grad_norm{{{RUN},layer="b"}}': f"0.2x{n}",
    }


def verdict(
    folder: Path,
    rules: str,
    series: Mapping[str, str],
    firing: Mapping[float, set[str]],
    notes: Mapping[tuple[float, str], Mapping[str, str]] | None = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """What promtool finds wrong with it; empty when just those alerts fire at those minutes.

    `notes`: the annotations of some of them, by minute and name; `labels`: theirs, beside run, rank
    and severity.
    """
    (folder / "gradtrace.rules.yml").write_text(rules)
    severity = {
        rule["alert"]: rule["labels"]["severity"]
        for rule in yaml.safe_load(rules)["groups"][0]["rules"]
    }
    test = {
        "rule_files": ["gradtrace.rules.yml"],
        "evaluation_interval": f"{EVERY}s",
        "tests": [
            {
                "interval": f"{EVERY}s",
                "input_series": [{"series": k, "values": v} for k, v in series.items()],
                "promql_expr_test": [
                    {
                        "expr": 'max by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": f"{round(at * 60)}s",
                        "exp_samples": [
                            {"labels": f'{{alertname="{name}"}}', "value": 1} for name in names
                        ],
                    }
                    for at, names in firing.items()
                ],
                "alert_rule_test": [
                    {
                        "eval_time": f"{round(at * 60)}s",
                        "alertname": name,
                        "exp_alerts": [
                            {
                                "exp_labels": {"run": "r", "rank": "0", "severity": severity[name]}
                                | dict(labels or {}),
                                "exp_annotations": dict(expected),
                            }
                        ],
                    }
                    for (at, name), expected in (notes or {}).items()
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", path], capture_output=True, text=True, timeout=patience(60)
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr
