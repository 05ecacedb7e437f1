"""What has to be known of wandb-core."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
from fresh_runs import fresh_run
from wandb_runs import core as pid_of_core

from gradtrace.exporters.wandb import WandbExporter, core


@pytest.mark.parametrize("work", [core.set_aside, lambda wandb, run: core.call_off_exit(wandb)])
def test_a_wandb_that_is_another_inside_is_let_be(work: Any) -> None:
    """Where W&B has none of the parts that are asked for, nothing is raised."""
    work(SimpleNamespace(setup=SimpleNamespace), None)


def test_a_core_that_died_is_renewed() -> None:
    """After `renew` the next run is in a core of its own."""
    import wandb

    exporter = WandbExporter()
    exporter.open(fresh_run())
    before = pid_of_core()
    os.kill(before, signal.SIGKILL)
    core.renew(wandb)
    with wandb.init(mode="offline"):
        assert pid_of_core() != before
    exporter.close()


def test_only_a_lost_core_loses_the_run() -> None:
    """Wrong values are the values' fault; what is no error at all does not count."""
    assert core.is_lost(ConnectionError()) and core.is_lost(RuntimeError())
    assert not core.is_lost(TypeError()) and not core.is_lost(ValueError())
    assert not core.is_lost(KeyboardInterrupt())
