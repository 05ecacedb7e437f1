"""A loop without a torch optimizer: `trace.step()` says where a step ends."""

from __future__ import annotations

import torch
from torch import nn

from gradtrace import Trace, gradtrace


def main(steps: int = 100, directory: str = "gradtrace-runs") -> Trace:
    """Trains for some steps and returns the ended trace."""
    torch.manual_seed(0)
    model = nn.Linear(8, 1)
    truth = torch.randn(8, 1)

    with gradtrace(model, directory=directory) as trace:
        for step in range(steps):
            x = torch.randn(32, 8)
            loss = (model(x) - x @ truth).square().mean()
            loss.backward()
            rate = 0.1 / (1 + step / 50)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(rate * parameter.grad)
                        parameter.grad = None
            trace.log(rate=rate)
            trace.step()

    first, last = trace.steps[0], trace.steps[-1]
    print(f"steps: {last.step + 1}")
    print(f"loss: {first.loss} at first, {last.loss} at last")
    print(f"gradient norm: {first.grad_norm} at first, {last.grad_norm} at last")
    print(f"rate at the end: {last.logged['rate']}")
    return trace


if __name__ == "__main__":
    main()
