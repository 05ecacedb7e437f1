"""Mixed precision with a loss scaler, and four micro-batches per optimizer step.

The trace reports gradients unscaled, the mean loss of the micro-batches, and the steps that the
scaler skipped. Runs on the CPU; on a GPU replace "cpu" by "cuda".
"""

from __future__ import annotations

import torch
from torch import nn

from gradtrace import SkippedStep, Trace, gradtrace


def main(steps: int = 60, directory: str = "gradtrace-runs") -> Trace:
    """Trains for some optimizer steps and returns the ended trace."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    # A scale this large overflows float16 at first, so that the scaler skips steps and lowers it.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    micro_batches = 4

    with gradtrace(model, directory=directory) as trace:
        for _ in range(steps):
            for _ in range(micro_batches):
                x = torch.randn(16, 32)
                y = x.sin().sum(1, keepdim=True)
                with torch.autocast("cpu", dtype=torch.float16):
                    loss = nn.functional.mse_loss(model(x).float(), y)
                scaler.scale(loss / micro_batches).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()

    last = trace.steps[-1]
    skipped = [event.step for event in trace.events if isinstance(event, SkippedStep)]
    print(f"skipped steps: {skipped}")
    print(f"scale at the end: {last.scale}")
    print(f"losses of the last step's micro-batches: {last.losses}")
    print(f"unscaled gradient norm of the last step: {last.grad_norm}")
    return trace


if __name__ == "__main__":
    main()
