"""Each test has a W&B of its own, offline."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from patience import patience


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """W&B reads its settings once, when the first run is made; the folder is the test's."""
    if find_spec("wandb") is None and not os.environ.get("CI"):
        pytest.skip("wandb is not installed")
    import wandb
    from wandb.sdk.lib.module import unset_globals

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("SILENT", "true")):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)
    yield
    # A thread that its trace has left would make W&B anew, with the settings of this test.
    for thread in threading.enumerate():
        if thread.name.startswith("gradtrace-export"):
            thread.join(patience(30))
    with contextlib.suppress(Exception, SystemExit):
        if wandb.run is not None:
            wandb.run.finish()
    # A run whose core died stays the active one otherwise.
    unset_globals()  # type: ignore[no-untyped-call]
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()
