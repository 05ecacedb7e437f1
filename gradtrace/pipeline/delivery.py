"""All exporters of a trace as one object."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gradtrace.exporter import Exporter, Watching, introduce, send_command
from gradtrace.pipeline.worker import Backlog, ExporterWorker, close_all, is_in_use, unique_names
from gradtrace.records import Record, RunInfo


class Delivery:
    """All exporters of a trace."""

    def __init__(self, exporters: Sequence[Exporter]) -> None:
        self._exporters = list(exporters)
        self._workers: list[ExporterWorker] = []

    def open(self, info: RunInfo, backlog: Callable[[], Backlog] | None) -> None:
        """Opens."""
        for exporter, name in zip(self._exporters, unique_names(self._exporters), strict=True):
            if is_in_use(exporter):
                raise ValueError(
                    f"the exporter {name!r} is in use by another trace that has not ended; "
                    "expected one for each trace: make another"
                )
            introduce(exporter, name)
            exporter.open(info)
            self._workers.append(
                ExporterWorker(
                    exporter, name=name, backlog=backlog() if backlog else None, run=info.path
                )
            )
        for exporter in self._exporters:
            if isinstance(exporter, Watching):
                exporter.watch(lambda: self.dropped)

    def start(self) -> None:
        """Starts."""
        for worker in self._workers:
            worker.start()

    def offer(self, records: Sequence[Record]) -> None:
        """Offers."""
        for worker in self._workers:
            worker.offer(records)

    def flush(self, timeout: float) -> bool:
        """Flushes."""
        deadline = time.monotonic() + timeout
        return all(w.flush(max(0.0, deadline - time.monotonic())) for w in self._workers)

    def close(self, timeout: float) -> dict[str, str]:
        """Closes."""
        return close_all(self._workers, timeout)

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped."""
        return {w.name: w.dropped for w in self._workers}

    def troubles(self, owed: dict[str, str], run: Path | None) -> Iterator[tuple[str, str]]:
        """Troubles."""
        for w in self._workers:
            if owed.get(w.name):
                command = send_command(w.exporter, str(run), w.name)
                yield (
                    f"exporter {w.name}",
                    f"exporter {w.name!r} still owes {owed[w.name]}"
                    + (
                        f": deliver it with `{command}`"
                        if run is not None
                        else ", which is lost: there is no run log"
                    ),
                )
        for w in self._workers:
            if w.dropped:
                text = (
                    f"exporter {w.name!r} lost {w.dropped} records: it could not keep up and they "
                    "could not be read back from a run log"
                )
                yield f"exporter {w.name}", text
