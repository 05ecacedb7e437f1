"""The folder that `gradtrace monitoring init` writes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from patience import patience
from prometheus_servers import is_missing

from gradtrace.monitoring import grafana_rules, write_monitoring


def test_the_folder_is_complete(tmp_path: Path) -> None:
    """Every file that the compose file mounts is there, and servers are for this machine only."""
    written = write_monitoring(tmp_path, targets=["gpu1:9464"])
    assert all(path.is_file() for path in written)
    compose = yaml.safe_load((tmp_path / "docker-compose.yml").read_text())
    assert set(compose["services"]) == {"prometheus", "alertmanager", "grafana"}
    for service in compose["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        assert re.search(r":v?\d", service["image"])  # pinned
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (tmp_path / source).exists(), source
            else:
                assert source in compose["volumes"]
    text = "".join(path.read_text() for path in written)
    assert "@TARGET" not in text
    provisioned = yaml.safe_load(
        (tmp_path / "grafana/provisioning/datasources/gradtrace.yml").read_text()
    )
    [source] = provisioned["datasources"]
    used = re.findall(
        r'"uid": "(gradtrace-\w+)"', (tmp_path / "grafana/dashboards/gradtrace.json").read_text()
    )
    used += re.findall(r"datasourceUid: (gradtrace\S+)", grafana_rules())
    assert set(used) == {source["uid"]}


def test_wrong_targets_are_refused(tmp_path: Path) -> None:
    """A target that is no host:port is refused before anything is written."""
    for target in ("gpu1", "http://gpu1:9464", 'gpu1:9464"', "a b:1", "gpu1:123456"):
        with pytest.raises(ValueError, match="host:port"):
            write_monitoring(tmp_path / "new", targets=[target])
    assert not (tmp_path / "new").exists()
    write_monitoring(tmp_path / "new", targets=["[::1]:9464"])


@pytest.mark.skipif(
    is_missing("promtool", "amtool"),
    reason="Debian's packages prometheus and prometheus-alertmanager are not installed",
)
def test_the_servers_take_their_files(tmp_path: Path) -> None:
    """`promtool check config`, `promtool check rules` and `amtool check-config` are content."""
    write_monitoring(tmp_path)
    for command in (
        ["promtool", "check", "config", "prometheus.yml"],
        ["promtool", "check", "rules", "gradtrace.rules.yml"],
        ["amtool", "check-config", "alertmanager.yml"],
    ):
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=patience(60)
        )
        assert done.returncode == 0, done.stdout + done.stderr
