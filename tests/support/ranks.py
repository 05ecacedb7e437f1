"""Several processes that train together, on gloo."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch
from patience import patience
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from gradtrace.guard import Guard

T = TypeVar("T")


class RankError(AssertionError):
    """A rank failed, or did not come to an end."""


def on_ranks(
    function: Callable[..., T],
    *args: Any,
    world: int = 2,
    within: float = 60.0,
    joined: bool = True,
) -> list[T]:
    """What `function` returns on each of `world` ranks, in processes of their own.

    They are one process group. `within` seconds of an idle machine bound a rank that hangs. Raises
    RankError with the traceback of a rank that failed; an error that gradtrace held back is one.
    """
    limit = patience(within)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as place:
        ends, processes = [], []
        for rank in range(world):
            mine, theirs = spawn.Pipe(duplex=False)
            task = (theirs, rank, world, Path(place) / "store", limit, function, args)
            process = spawn.Process(target=_rank, args=task, daemon=True)
            process.start()
            theirs.close()
            ends.append(mine)
            processes.append(process)
        try:
            return _collected(ends, time.monotonic() + limit)
        finally:
            for process in processes:
                process.kill()
                process.join()


@contextmanager
def alone() -> Iterator[Callable[[Tensor, str], DTensor]]:
    """A process group of this process alone; what it gives makes DTensors of local tensors.

    Their placement is "replicate", "shard" or "partial".
    """
    distributed.init_process_group(
        "gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        placements = {"replicate": Replicate(), "shard": Shard(0), "partial": Partial()}

        def make(tensor: Tensor, placement: str) -> DTensor:
            return DTensor.from_local(tensor, mesh, [placements[placement]])

        yield make
    finally:
        distributed.destroy_process_group()


def _collected(ends: list[Connection], deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ends):
        open_ = [end for rank, end in enumerate(ends) if rank not in results]
        ready = wait(open_, max(0.0, deadline - time.monotonic()))
        if not ready:
            raise RankError(f"ranks {sorted(set(range(len(ends))) - set(results))} hang")
        for end in ready:
            assert isinstance(end, Connection)
            rank = ends.index(end)
            try:
                done, value = end.recv()
            except EOFError:
                raise RankError(f"rank {rank} died") from None
            if not done:
                raise RankError(f"rank {rank} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(ends))]


def _rank(
    end: Connection,
    rank: int,
    world: int,
    store: Path,
    limit: float,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    # Where a rank hangs is worth knowing.
    faulthandler.dump_traceback_later(0.9 * limit)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    errors: list[Exception] = []
    held_back = Guard.failed

    def failed(self: Guard, source: str, error: Exception) -> None:
        errors.append(error)
        held_back(self, source, error)

    Guard.failed = failed  # type: ignore[method-assign]
    try:
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=limit),
        )
        result = function(*args)
        if errors:
            raise ExceptionGroup("gradtrace held back errors of its own", errors)
        end.send((True, result))
        distributed.barrier()  # nobody takes the connections of others away
    except BaseException:
        end.send((False, traceback.format_exc()))
