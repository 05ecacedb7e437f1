"""Long use in a process of its own, where nothing but gradtrace's own memory can grow."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradtrace import gradtrace

T = TypeVar("T")


@dataclass(frozen=True)
class Size:
    """What a process holds at present; `memory` in bytes."""

    memory: int
    files: int
    objects: int
    threads: int


def measured() -> Size:
    """After a garbage collection."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Size(
        memory=pages * resource.getpagesize(),
        files=len(os.listdir("/proc/self/fd")),
        objects=len(gc.get_objects()),
        threads=threading.active_count(),
    )


def in_its_own_process(function: Callable[[Path], T], directory: Path) -> T:
    """What the function returns in a fresh interpreter."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, directory).result()


def many_traces(directory: Path) -> tuple[Size, Size]:
    """The process after 100 and after 1,000 traces."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(torch.randn(64, 6), torch.arange(64) % 3), batch_size=8)
    sizes = []
    for k in range(1, 1001):
        with gradtrace(model, loader=loader, directory=directory if k % 10 == 0 else None):
            x, y = next(iter(loader))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if k in (100, 1000):
            sizes.append(measured())
    return sizes[0], sizes[1]


def many_steps(directory: Path) -> tuple[Size, Size, int]:
    """The process after 2,000 and after 12,000 steps, and how many steps were lost."""
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(4, 6), torch.randint(0, 2, (4,))
    sizes = []
    with gradtrace(model, directory=directory) as trace:
        for k in range(1, 12_001):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if k in (2_000, 12_000):
                trace.flush()
                sizes.append(measured())
    return sizes[0], sizes[1], trace.dropped
