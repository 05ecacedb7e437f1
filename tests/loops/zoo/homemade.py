"""Optimizers as people publish them: wrappers, subclasses and things that torch does not know."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class SAM(Optimizer):
    """Sharpness-aware minimisation, as in davda54/sam: two steps, or one with a closure."""

    def __init__(self, parameters: Iterable[nn.Parameter], base: type[Optimizer], **options: Any):
        super().__init__(parameters, {"rho": 0.05, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        """Climbs to the worst point nearby."""
        gradients = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old"] = parameter.data.clone()
                parameter.add_(parameter.grad * (group["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Comes back, and steps with the gradients from there."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = self.state[parameter]["old"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Both, with a closure that computes the second gradients."""
        self.first_step()
        torch.enable_grad()(closure)()
        self.second_step()


class Lookahead(Optimizer):
    """k steps forward, one back; never calls `Optimizer.__init__`, as the published ones do."""

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.param_groups = optimizer.param_groups
        self.state: Any = defaultdict(dict)
        self.count = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """A step of the inner one, and sometimes one of the slow weights."""
        self.optimizer.step()
        self.count += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                slow = self.state[parameter].setdefault("slow", parameter.data.clone())
                if self.count % self.k == 0:
                    slow.lerp_(parameter.data, self.alpha)
                    parameter.data.copy_(slow)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The inner one's."""
        self.optimizer.zero_grad(set_to_none)


class ScheduleFree(Optimizer):
    """Schedule-free SGD: gradients at an interpolation, evaluation at an average."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta})
        self.count, self.training = 0, True

    def swap(self, training: bool) -> None:
        """Moves the parameters from one point to the other."""
        for group in self.param_groups:
            beta = group["beta"]
            for parameter in group["params"]:
                z = self.state[parameter].get("z")
                if z is not None and training != self.training:
                    parameter.data.lerp_(z, 1 - beta if training else 1 - 1 / beta)
        self.training = training

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step at the point of training."""
        self.count += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                z = self.state[parameter].setdefault("z", parameter.clone())
                parameter.lerp_(z, 1 / self.count)
                parameter.add_(parameter.grad, alpha=-group["lr"] * (1 - 1 / self.count))
                z.sub_(parameter.grad, alpha=group["lr"])


class Unknown:
    """No optimizer of torch's: keeps its own momentum."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        self.lr = lr
        self.momentum = [(p, torch.zeros_like(p)) for p in parameters]

    @torch.no_grad()
    def step(self) -> None:
        """Moves, and forgets the gradients."""
        for parameter, momentum in self.momentum:
            if parameter.grad is not None:
                momentum.mul_(0.9).add_(parameter.grad)
                parameter.sub_(momentum, alpha=self.lr)
                parameter.grad = None


class Masters:
    """Moves float32 copies of a bfloat16 model with an optimizer of torch's."""

    def __init__(self, model: nn.Module, make: Callable[[list[Tensor]], Optimizer]) -> None:
        self.model = model
        self.copies = [p.detach().float().clone() for p in model.parameters()]
        self.optimizer = make(self.copies)

    def step(self) -> None:
        """Takes the gradients off the model, clips, steps and copies back."""
        for parameter, master in zip(self.model.parameters(), self.copies, strict=True):
            assert parameter.grad is not None
            master.grad, parameter.grad = parameter.grad.float(), None
        nn.utils.clip_grad_norm_(self.copies, 0.5)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(self.model.parameters(), self.copies, strict=True):
                parameter.copy_(master)
