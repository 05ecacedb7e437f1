"""`gradtrace monitoring`."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run

from gradtrace.monitoring import TARGET


def test_monitoring_init(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is written for the targets given, once; wrong targets and old files are told."""
    monkeypatch.chdir(tmp_path)
    code, text = run("monitoring", "init", "a b", "--target", "gpu1:9464", "--target", "gpu2:9465")
    assert code == 0 and "docker compose --project-directory 'a b' up" in text
    config = (tmp_path / "a b" / "prometheus.yml").read_text()
    assert '"gpu1:9464", "gpu2:9465"' in config
    code, text = run("monitoring", "init", "a b")
    assert code == 1 and "prometheus.yml" in text and "--force" in text
    assert (tmp_path / "a b" / "prometheus.yml").read_text() == config
    assert run("monitoring", "init", "a b", "--force")[0] == 0
    assert "host.docker.internal:9464" in (tmp_path / "a b" / "prometheus.yml").read_text()
    code, text = run("monitoring", "init", "other", "--target", "http://gpu1")
    assert code == 1 and "host:port" in text and not (tmp_path / "other").exists()


def test_the_default_target_is_told() -> None:
    """The help names the target that is written where none is given."""
    assert TARGET in run("monitoring", "init", "--help")[1].replace(" ", "")
