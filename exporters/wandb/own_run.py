"""Runs of our own in W&B, one after the other where wandb-core dies."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gradtrace.exporters._ending import has_failed
from gradtrace.exporters.wandb import core
from gradtrace.exporters.wandb.exit_guard import ExitGuard
from gradtrace.exporters.wandb.texts import plain, plain_config
from gradtrace.records import RunInfo

logger = logging.getLogger("gradtrace")

FLUSH = 1.0
"""Seconds after which wandb-core writes what it has to its file."""

MAX_NAME = 128


@dataclass(frozen=True, slots=True)
class Options:
    """What the user has chosen of W&B's settings; None follows the active run or W&B's own."""

    project: str | None = None
    mode: str | None = None
    directory: str | None = None
    group: str | None = None
    name: str | None = None
    timeout: float = 15.0


class OwnRun:
    """A run beside the one that was active; `run` is the present one, None until it is made."""

    commit = True
    """Each row is one of the run's."""

    def __init__(
        self, wandb: Any, options: Options, info: RunInfo, beside: Any, guard: ExitGuard
    ) -> None:
        self.run: Any = None
        self._wandb = wandb
        self._options = options
        self._info = info
        self._beside = beside
        self._guard = guard
        self._starting = threading.Lock()

    def prepare(self, seconds: float) -> None:
        """What can be done before the first record, as far as the time reaches.

        An offline run is made, online a login looked for. Raises ValueError where there is none,
        and in a sweep; other trouble is logged, for all is tried again.
        """
        for error in _errors_of(self._prepare, seconds):
            if isinstance(error, (ValueError, self._wandb.errors.UsageError)):
                raise error
            logger.warning(
                "exporter wandb: a run cannot be made, and is tried again: %s: %s",
                type(error).__name__,
                error,
            )

    def start(self) -> Any:
        """The run; made if there is none. Waits for another thread that is making it."""
        with self._starting:
            if self.run is None:
                try:
                    run = self._init()
                except Exception as error:
                    # W&B's own errors tell of servers and settings; with others the core is gone.
                    if isinstance(error, self._wandb.Error) or not core.is_lost(error):
                        raise
                    self._guard.hold_at_exit()
                    core.renew(self._wandb)
                    run = self._init()
                core.set_aside(self._wandb, run)
                self._guard.core_started()
                self.run = run
            return self.run

    def give_up(self, error: Exception) -> bool:
        """Whether the run fails for good: then it is left, and the next `start` makes another."""
        self._guard.hold_at_exit()
        if not core.is_lost(error):
            return False
        logger.warning(
            "exporter wandb: W&B run %s is lost (%s: %s); run %s goes on in another one",
            getattr(self.run, "id", None),
            type(error).__name__,
            error,
            self._info.name,
        )
        self.run = None
        return True

    def end(self, status: str) -> None:
        """Ends the run, if there is one."""
        if self.run is not None:
            # W&B shows a run as failed that ends with another code than 0.
            self.run.finish(exit_code=int(status == "killed" or has_failed(status)))

    def _prepare(self) -> None:
        settings = self._wandb.setup().settings
        if settings.sweep_id:
            raise ValueError(
                f"this process runs in W&B's sweep {settings.sweep_id}, where it can have one run "
                "only: call wandb.init() before the trace, and use WandbExporter(attach=True)"
            )
        if self._mode(settings) == "online":
            self._check_login()
        else:
            self.start()

    def _mode(self, settings: Any) -> str:
        beside = self._beside
        mode = self._options.mode or (settings if beside is None else beside.settings).mode
        return {"dryrun": "offline", "run": "online"}.get(str(mode), str(mode))

    def _check_login(self) -> None:
        # W&B would ask for a key in the terminal, in the middle of the training's output.
        if not self._wandb.login(verify=False, prompt=False):
            raise ValueError(
                "nobody is logged in to W&B: run `wandb login`, set WANDB_API_KEY, or use "
                'WandbExporter(mode="offline")'
            )

    def _init(self) -> Any:
        settings, beside, options = self._wandb.setup().settings, self._beside, self._options
        mode = self._mode(settings)
        if mode == "online":
            self._check_login()
        group = self._group(settings)
        name = options.name or self._info.name
        if self._info.world_size > 1:
            name = f"{name[: MAX_NAME - 12]}-rank{self._info.rank}"
        fixed = {
            # The user's prints shall not wait for a core that hangs.
            "console": "off",
            "x_disable_stats": beside is not None,
        }
        wanted = {
            "x_transaction_log_flush_interval": FLUSH,
            "init_timeout": options.timeout,
            "finish_timeout": 60.0,
            "silent": True,
        }
        wanted = {key: v for key, v in wanted.items() if key not in settings.model_fields_set}
        return self._wandb.init(
            reinit="create_new",
            # The environment may name the user's run: it is not to be joined.
            id=uuid.uuid4().hex[:12],
            resume="never",
            job_type="gradtrace",
            project=options.project or (beside.project if beside is not None else None),
            entity=beside.entity if beside is not None and options.project is None else None,
            mode=mode,
            dir=options.directory,
            group=None if group is None else plain(group, MAX_NAME),
            name=plain(name, MAX_NAME),
            config=plain_config(self._info.config),
            settings=self._wandb.Settings(**fixed | wanted),
        )

    def _group(self, settings: Any) -> str | None:
        group, beside = self._options.group, self._beside
        if group is None and beside is not None:
            group = beside.group or beside.id
        if group is None and self._info.world_size > 1:
            group = settings.run_group or self._info.name
        return group


class AttachedRun:
    """The user's own run, of which order and end are theirs."""

    commit = False
    """Rows ride on the user's."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def start(self) -> Any:
        """The run."""
        return self.run

    def give_up(self, error: Exception) -> bool:
        """There is no other one."""
        return False

    def end(self, status: str) -> None:
        """It goes on."""


def _errors_of(work: Callable[[], object], seconds: float) -> list[Exception]:
    """Does this in a thread, and tells what it raised; nothing if it takes longer."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="gradtrace-open-wandb", daemon=True)
    thread.start()
    thread.join(seconds)
    return list(errors)
