"""All exporters of a trace as one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from gradtrace.exporter import Exporter
from gradtrace.pipeline.adapter import Adapter
from gradtrace.pipeline.position import safe_name
from gradtrace.pipeline.queue import Backlog
from gradtrace.pipeline.worker import ExporterWorker, is_in_use
from gradtrace.records import Record, RunInfo

FAILED_OPEN = 1.0
"""Seconds that exporters get to close when another one could not be opened."""


class Delivery:
    """Opens a trace's exporters, feeds each from a queue and a thread of its own, and ends them.

    Exporters of one name are told apart: the second is `mlflow-2`. None holds up another. Without
    exporters every call does nothing.
    """

    def __init__(self, exporters: Sequence[Exporter]) -> None:
        names = unique_names(exporters)
        self._adapters = [Adapter(e, name) for e, name in zip(exporters, names, strict=True)]
        self._workers: list[ExporterWorker] = []

    def open(self, info: RunInfo, backlog: Callable[[], Backlog] | None) -> None:
        """Opens each in order, on this thread; `backlog` makes a reader of the run log for each.

        Raises ValueError for an exporter that feeds on a trace which has not ended, and whatever
        an exporter's `open` raises; those that were opened by then are closed.
        """
        try:
            for adapter in self._adapters:
                if is_in_use(adapter.exporter):
                    raise ValueError(
                        f"the exporter {adapter.name!r} is in use by another trace that has not "
                        "ended; expected one for each trace: make another"
                    )
                adapter.open(info)
                worker = ExporterWorker(
                    adapter,
                    backlog=None if backlog is None else backlog(),
                    cursor=adapter.cursor(info.path),
                )
                self._workers.append(worker)
            for adapter in self._adapters:
                adapter.watch(lambda: self.dropped)
        except BaseException:
            self.close(FAILED_OPEN)
            self._workers = []
            raise

    def start(self) -> None:
        """Starts the threads."""
        for worker in self._workers:
            worker.start()

    def offer(self, records: Sequence[Record]) -> None:
        """Takes records in order; never waits for a backend and never raises. Any one thread."""
        for worker in self._workers:
            worker.offer(records)

    def flush(self, timeout: float) -> bool:
        """Waits until everything offered so far is delivered; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        done = True
        for worker in self._workers:
            done = worker.flush(max(0.0, deadline - time.monotonic())) and done
        return done

    def close(self, timeout: float) -> dict[str, str]:
        """Ends all exporters together, waiting at most `timeout` seconds for all of them.

        Returns what is still owed, in words, by name; "" where everything was delivered. One that
        hangs is left behind: its thread is a daemon. Those that were only opened are closed too.
        """
        deadline = time.monotonic() + timeout
        for worker in self._workers:
            worker.begin_close()
        owed: dict[str, str] = {}
        for worker in self._workers:
            worker.join(deadline - time.monotonic())
            owed[worker.name] = worker.debt
        return owed

    @property
    def dropped(self) -> dict[str, int]:
        """How many records each exporter has lost, by name. Any thread."""
        return {worker.name: worker.dropped for worker in self._workers}

    def troubles(self, owed: Mapping[str, str], run: Path | None) -> Iterator[tuple[str, str]]:
        """What to tell the user after `close`: source and message, `owed` being what it returned.

        With the command that delivers it, where there is a run directory.
        """
        for worker in self._workers:
            debt, name = owed.get(worker.name), repr(worker.name)
            if debt and run is not None:
                command = worker.adapter.send_command(str(run))
                message = f"exporter {name} still owes {debt}: deliver it with `{command}`"
                yield f"exporter {worker.name}", message
            elif debt:
                message = f"exporter {name} still owes {debt}, which is lost: there is no run log"
                yield f"exporter {worker.name}", message
        for worker in self._workers:
            if worker.dropped:
                message = (
                    f"exporter {worker.name!r} lost {worker.dropped} records: it could not keep up"
                    " and they could not be read back from a run log"
                )
                yield f"exporter {worker.name}", message


def unique_names(exporters: Sequence[Exporter]) -> list[str]:
    """The exporters' names, later ones of the same name numbered: `mlflow`, `mlflow-2`.

    Names that would share a cursor file count as the same.
    """
    names: list[str] = []
    taken: set[str] = set()
    for exporter in exporters:
        name, k = exporter.name, 1
        while safe_name(name).casefold() in taken:
            k += 1
            name = f"{exporter.name[:80]}-{k}"
        names.append(name)
        taken.add(safe_name(name).casefold())
    return names
