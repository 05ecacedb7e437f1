"""What has to be known of wandb-core: the process all W&B runs of a program share.

W&B has no public way to say these things, so each is given up quietly where its inside is another.
"""

from __future__ import annotations

import contextlib
from typing import Any


def set_aside(wandb: Any, run: Any) -> None:
    """Lets a `wandb.init()` of the user's make a run, where it would return or finish this one."""
    with contextlib.suppress(AttributeError):
        wandb.setup().remove_active_run(run)


def renew(wandb: Any) -> None:
    """Forgets a core that has died, so that the next `wandb.init` starts one.

    The user's run in the dead core stays as it is: dead.
    """
    # It says goodbye to the dead process, and so it always raises, when all is done.
    with contextlib.suppress(Exception, SystemExit):
        wandb.teardown()


def call_off_exit(wandb: Any) -> None:
    """At the interpreter's exit: no waiting for the core, unless a run of the user's is in it.

    A core that is only slow notices that its program is gone, writes what it has, and ends.
    """
    with contextlib.suppress(AttributeError):
        core = wandb.setup()
        if core.most_recent_active_run is None:
            core._connection._cleanup()


def is_lost(error: BaseException) -> bool:
    """Whether a run that raised this is of no use any more; else the fault is in what was sent."""
    return isinstance(error, Exception) and not isinstance(error, (TypeError, ValueError))
