"""Two models and two optimizers in one trace: a GAN that learns a ring of points.

Layer names start with the name each model has in the mapping.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gradtrace import Trace, gradtrace


def ring(count: int) -> Tensor:
    """Points on a circle, with a little noise."""
    angle = 2 * math.pi * torch.rand(count)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.02 * torch.randn(count, 2)


def main(steps: int = 200, directory: str = "gradtrace-runs") -> Trace:
    """Trains both models for some rounds and returns the ended trace."""
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
    generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    critic_optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.9))
    criterion = nn.BCEWithLogitsLoss()
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)

    with gradtrace({"generator": generator, "critic": critic}, directory=directory) as trace:
        for _ in range(steps):
            fake = generator(torch.randn(64, 8))
            real_loss = criterion(critic(ring(64)), ones)
            fake_loss = criterion(critic(fake.detach()), zeros)
            critic_optimizer.zero_grad()
            (real_loss + fake_loss).backward()
            critic_optimizer.step()

            generator_optimizer.zero_grad()
            criterion(critic(fake), ones).backward()
            generator_optimizer.step()

    last = trace.steps[-1]
    print(f"steps: {len(trace.steps)} seen, the last with loss {last.loss}")
    if last.gradients is not None:
        for name, norm in zip(last.gradients.names, last.gradients.column("norm"), strict=True):
            print(f"{name}: {norm:.4f}")
    return trace


if __name__ == "__main__":
    main()
