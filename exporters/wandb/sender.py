"""Rows and alerts on their way to W&B, and once more where wandb-core dies before it wrote them."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from gradtrace.exporters.wandb.own_run import AttachedRun, OwnRun
from gradtrace.exporters.wandb.texts import alert_text
from gradtrace.metrics.step_values import PREFIX
from gradtrace.records import Spike

STEP = PREFIX + "step"

KEEP, KEEP_ROWS = 5.0, 512
"""Seconds, and how many rows, that are sent again when wandb-core dies: more than it had to
write."""


class Sender:
    """Sends to one run after the other. One thread, bounded memory; `name` is the trace's."""

    def __init__(self, to: OwnRun | AttachedRun, name: str) -> None:
        self.rows: deque[dict[str, Any]] = deque()
        self.alerts: deque[Spike] = deque()
        """What is to be sent."""
        self._to = to
        self._name = name
        self._ready = False
        self._sent: deque[tuple[float, dict[str, Any]]] = deque()

    def deliver(self) -> None:
        """Sends, and if the run is lost on the way, once more: the trace may be about to end.

        Raises what W&B raises; called again it goes on behind the last row that was taken.
        """
        before = self._to.run
        try:
            self.send()
        except Exception:
            if before is None or self._to.run is not None:
                raise
            self.send()

    def send(self) -> Any:
        """Sends into the run, which is made if there is none; returns it."""
        run = self._to.start()
        try:
            if not self._ready:
                run.define_metric(PREFIX + "*", step_metric=STEP)
                self._ready = True
            while self.rows:
                run.log(self.rows[0], commit=self._to.commit)
                now = time.monotonic()
                self._sent.append((now, self.rows.popleft()))
                while len(self._sent) > KEEP_ROWS or self._sent[0][0] < now - KEEP:
                    self._sent.popleft()
            while self.alerts:
                spike = self.alerts[0]
                title = f"Spike in {spike.signal}"[:63]
                run.alert(title=title, text=alert_text(spike, self._name), level="WARN")
                self.alerts.popleft()
            # A dead core takes rows without a word for a while, but it does not answer.
            run.status()
        except Exception as error:
            self.give_up(error)
            raise
        return run

    def give_up(self, error: Exception) -> None:
        """A run that fails for good is left; the next one begins with what it may have lost."""
        if self._to.give_up(error):
            self.rows.extendleft(row for _, row in reversed(self._sent))
            self._sent.clear()
            self._ready = False
