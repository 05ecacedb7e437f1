"""A folder with everything that watches runs from outside: `gradtrace monitoring init`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from gradtrace.monitoring.rules import grafana_rules, prometheus_rules, quoted

TARGET = "host.docker.internal:9464"

_COPIED = {
    "prometheus.yml": "prometheus.yml",
    "alertmanager.yml": "alertmanager.yml",
    "docker-compose.yml": "docker-compose.yml",
    "README.md": "README.md",
    "grafana/provisioning/datasources/gradtrace.yml": "datasource.yml",
    "grafana/provisioning/dashboards/gradtrace.yml": "dashboards.yml",
    "grafana/dashboards/gradtrace.json": "dashboard.json",
}


def write_monitoring(
    directory: Path, *, targets: Sequence[str] = (TARGET,), force: bool = False
) -> list[Path]:
    """Writes Prometheus, Alertmanager, Grafana and docker-compose files; returns their paths.

    `targets` are the host:port pairs of exporters as Prometheus reaches them. Raises ValueError
    for what is no host:port, FileExistsError naming what is there already unless `force`, and
    OSError when the folder cannot be written. Nothing is written before all is known to be right.
    """
    for target in targets:
        if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9_.-]+):[0-9]{1,5}", target):
            raise ValueError(
                f"target is {target!r}; expected host:port as Prometheus reaches it, such as "
                f"{TARGET!r}"
            )
    contents = {name: _template(source, targets) for name, source in _COPIED.items()}
    contents["gradtrace.rules.yml"] = prometheus_rules()
    contents["grafana/provisioning/alerting/gradtrace.yml"] = grafana_rules()
    present = [name for name in contents if (directory / name).exists()]
    if present and not force:
        raise FileExistsError(
            f"{str(directory)!r} already has {', '.join(present)}: choose another folder, or "
            "overwrite them with --force"
        )
    written = []
    for name, text in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _template(name: str, targets: Sequence[str]) -> str:
    text = (files("gradtrace.monitoring") / "templates" / name).read_text(encoding="utf-8")
    text = text.replace("@TARGETS@", ", ".join(f"`{target}`" for target in targets))
    return text.replace("@TARGET@", ", ".join(map(quoted, targets)))
