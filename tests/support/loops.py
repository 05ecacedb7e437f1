"""Training loops of every kind, each runnable with and without a trace.

A loop takes `tracing(models, loader)`, a context manager factory, and returns an `Outcome`: every
number that a trace must not change, and what a trace must have counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

Tracing = Callable[[Any, Any], AbstractContextManager[Any]]


@dataclass
class Outcome:
    """`numbers` must be bitwise equal with and without a trace; the rest is what to count."""

    numbers: dict[str, Tensor] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)
    """One list of backward losses per optimizer step."""
    clips: list[int] = field(default_factory=list)
    """Clipping calls per step."""
    batches: list[list[tuple[int, ...]]] = field(default_factory=list)
    """The sample ids of each batch of each step."""
    skipped: list[int] = field(default_factory=list)

    def finish(self, *modules: nn.Module) -> Outcome:
        """Takes parameters, gradients, buffers and the random state."""
        for k, module in enumerate(modules):
            for name, value in module.state_dict().items():
                self.numbers[f"{k}.{name}"] = value.detach().clone()
            for name, parameter in module.named_parameters():
                if parameter.grad is not None:
                    self.numbers[f"{k}.{name}.grad"] = parameter.grad.detach().clone()
        self.numbers["rng"] = torch.get_rng_state()
        return self

    def keep(self, name: str, value: Tensor) -> None:
        self.numbers[f"{name}#{len(self.numbers)}"] = value.detach().clone()


class Indexed(TensorDataset):
    """Samples whose first tensor is their own index."""


def data(n: int, *shape: int, classes: int = 4) -> Indexed:
    generator = torch.Generator().manual_seed(n)
    return Indexed(
        torch.arange(n),
        torch.randn(n, *shape, generator=generator),
        torch.randint(0, classes, (n,), generator=generator),
    )


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.25),
            nn.Conv2d(6, 8, 3),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(8 * 4 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).flatten(1))
        return logits


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.out(y.transpose(1, 2).reshape(b, t, c)))
        total: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return total


class GPT(nn.Module):
    """A small transformer with tied embeddings; `recompute` checkpoints its blocks."""

    def __init__(self, *, width: int = 32, layers: int = 2, recompute: bool | None = None) -> None:
        super().__init__()
        self.token = nn.Embedding(40, width)
        self.place = nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.token.weight
        self.recompute = recompute

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place.weight[: ids.shape[1]]
        for block in self.blocks:
            if self.recompute is None:
                x = block(x)
            else:
                x = checkpoint(block, x, use_reentrant=self.recompute)
        logits: Tensor = self.head(self.norm(x))
        return logits


def text(n: int = 24, length: int = 16) -> Indexed:
    generator = torch.Generator().manual_seed(7)
    return Indexed(torch.arange(n), torch.randint(0, 40, (n, length), generator=generator))


def language_loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(ids)[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def ids_of(index: Tensor) -> tuple[int, ...]:
    return tuple(index.tolist())


def read(loss: Tensor) -> float:
    return float("nan") if loss.device.type == "meta" else float(loss.detach())


def convolution(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(0)
    model = ConvNet().to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    loader = DataLoader(data(32, 1, 8, 8), batch_size=8, shuffle=True)
    out = Outcome()
    with tracing(model, loader):
        for _ in range(2):
            for index, x, y in loader:
                x, y = x.to(device), y.to(device)
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                scheduler.step()
                out.keep("loss", loss)
                out.losses.append([read(loss)])
                out.clips.append(1)
                out.batches.append([ids_of(index)])
            model.eval()
            with torch.no_grad():
                out.keep("eval", model(x).square().mean())
            model.train()
    return out.finish(model)


def transformer(tracing: Tracing, device: str = "cpu", recompute: bool | None = None) -> Outcome:
    torch.manual_seed(1)
    model = GPT(recompute=recompute).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(text(), batch_size=4, shuffle=True)
    out = Outcome()
    with tracing(model, loader):
        for index, ids in loader:
            loss = language_loss(model, ids.to(device))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(1)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def reentrant(tracing: Tracing, device: str = "cpu") -> Outcome:
    return transformer(tracing, device, recompute=True)


def non_reentrant(tracing: Tracing, device: str = "cpu") -> Outcome:
    return transformer(tracing, device, recompute=False)


def recurrent(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(2)
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(6, 12, num_layers=2, dropout=0.2, batch_first=True),
            "head": nn.Linear(12, 4),
        }
    ).to(device)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    loader = DataLoader(data(24, 5, 6), batch_size=6)
    out = Outcome()
    with tracing(model, loader):
        for index, x, y in loader:
            states, _ = model["lstm"](x.to(device))
            loss = F.cross_entropy(model["head"](states[:, -1]), y.to(device))
            optimizer.zero_grad(set_to_none=False)
            loss.backward()
            nn.utils.clip_grad_value_(model.parameters(), 0.01)
            optimizer.step()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(1)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def accumulation(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(3)
    model = ConvNet().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    loader = DataLoader(data(36, 1, 8, 8), batch_size=4, shuffle=True)
    out = Outcome()
    losses: list[float] = []
    batches: list[tuple[int, ...]] = []
    with tracing(model, loader):
        for k, (index, x, y) in enumerate(loader):
            loss = F.cross_entropy(model(x.to(device)), y.to(device)) / 3
            loss.backward()
            out.keep("loss", loss)
            losses.append(read(loss))
            batches.append(ids_of(index))
            if k % 3 == 2:
                optimizer.step()
                optimizer.zero_grad()
                out.losses.append(losses)
                out.batches.append(batches)
                out.clips.append(0)
                losses, batches = [], []
    return out.finish(model)


def scaled(tracing: Tracing, device: str = "cpu", fused: bool = False) -> Outcome:
    torch.manual_seed(4)
    model = ConvNet().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**10)
    loader = DataLoader(data(24, 1, 8, 8), batch_size=4, shuffle=True)
    out = Outcome()
    with tracing(model, loader):
        for k, (index, x, y) in enumerate(loader):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            if k == 2:
                loss = loss * float("inf")
            scaler.scale(loss).backward()
            if k % 2:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
            out.keep("loss", loss)
            out.keep("scale", torch.tensor(scaler.get_scale()))
            out.losses.append([read(loss)])
            out.clips.append(k % 2)
            out.batches.append([ids_of(index)])
            if k == 2:
                out.skipped.append(k)
    return out.finish(model)


def scaled_fused(tracing: Tracing, device: str = "cpu") -> Outcome:
    return scaled(tracing, device, fused=True)


def autocast(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(5)
    model = GPT().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loader = DataLoader(text(), batch_size=4)
    out = Outcome()
    with tracing(model, loader):
        for index, ids in loader:
            with torch.autocast(device, dtype=torch.bfloat16):
                loss = language_loss(model, ids.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(0)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def closure(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)).to(device)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    loader = DataLoader(data(16, 5), batch_size=8)
    out = Outcome()
    with tracing(model, loader):
        for index, x, y in loader:
            losses: list[float] = []

            def evaluate(x: Tensor = x, y: Tensor = y, losses: list[float] = losses) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x.to(device)), y.to(device))
                loss.backward()
                losses.append(read(loss))
                return loss

            out.keep("loss", optimizer.step(evaluate))
            out.losses.append(losses[-1:])  # only these gradients moved what is left at the end
            out.clips.append(0)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def two_optimizers(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(7)
    model = ConvNet().to(device)
    first = torch.optim.SGD(model.body.parameters(), lr=0.05)
    second = torch.optim.AdamW(model.head.parameters(), lr=1e-3)
    loader = DataLoader(data(32, 1, 8, 8), batch_size=8, shuffle=True)
    out = Outcome()
    with tracing(model, loader):
        for index, x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            first.zero_grad()
            second.zero_grad()
            loss.backward()
            first.step()
            second.step()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(0)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def adversarial(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(8)
    maker = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6)).to(device)
    critic = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).to(device)
    make = torch.optim.Adam(maker.parameters(), lr=1e-3)
    judge = torch.optim.Adam(critic.parameters(), lr=1e-3)
    loader = DataLoader(data(40, 6), batch_size=8, shuffle=True)
    out = Outcome()
    with tracing({"maker": maker, "critic": critic}, loader):
        for index, real, _ in loader:
            fake = maker(torch.randn(len(real), 4).to(device))
            doubt = critic(fake.detach()).mean() - critic(real.to(device)).mean()
            judge.zero_grad()
            doubt.backward()
            nn.utils.clip_grad_norm_(critic.parameters(), 0.1)
            judge.step()
            lie = -critic(fake).mean()
            make.zero_grad()
            lie.backward()
            make.step()
            out.keep("doubt", doubt)
            out.keep("lie", lie)
            out.losses.append([read(doubt), read(lie)])
            out.clips.append(1)
            out.batches.append([ids_of(index)])
    return out.finish(maker, critic)


def by_hand(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).to(device)
    loader = DataLoader(data(32, 6), batch_size=8)
    out = Outcome()
    with tracing(model, loader) as trace:
        for index, x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
            if trace is not None:
                trace.step()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(0)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def compiled(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(10)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 4)).to(device)
    fast: Any = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(data(48, 6), batch_size=8, drop_last=True)
    out = Outcome()
    with tracing(fast, loader):
        for index, x, y in loader:
            loss = F.cross_entropy(fast(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(fast.parameters(), 0.5)
            optimizer.step()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(1)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def deterministic(tracing: Tracing, device: str = "cpu") -> Outcome:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        return convolution(tracing, device)
    finally:
        torch.use_deterministic_algorithms(before)


def in_backward(tracing: Tracing, device: str = "cpu") -> Outcome:
    """An optimizer per parameter that steps as soon as its gradient is there."""
    torch.manual_seed(11)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).to(device)
    optimizers: dict[Tensor, torch.optim.Optimizer] = {
        p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()
    }

    def step(parameter: Tensor) -> None:
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    loader = DataLoader(data(32, 6), batch_size=8)
    out = Outcome()
    with tracing(model, loader):
        for index, x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            loss.backward()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(0)
            out.batches.append([ids_of(index)])
    return out.finish(model)


def home_made_clipping(tracing: Tracing, device: str = "cpu") -> Outcome:
    torch.manual_seed(12)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(data(32, 6), batch_size=8)
    out = Outcome()
    with tracing(model, loader):
        for index, x, y in loader:
            loss = F.cross_entropy(model(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
            for gradient in gradients:
                gradient.mul_((0.05 / norm).clamp(max=1.0))
            optimizer.step()
            out.keep("loss", loss)
            out.losses.append([read(loss)])
            out.clips.append(1)
            out.batches.append([ids_of(index)])
    return out.finish(model)


LOOPS: dict[str, Callable[..., Outcome]] = {
    f.__name__: f
    for f in (
        convolution,
        transformer,
        recurrent,
        accumulation,
        reentrant,
        non_reentrant,
        scaled,
        scaled_fused,
        autocast,
        closure,
        two_optimizers,
        compiled,
        deterministic,
        adversarial,
        by_hand,
        in_backward,
        home_made_clipping,
    )
}

ON_META = (
    "convolution",
    "transformer",
    "recurrent",
    "accumulation",
    "reentrant",
    "non_reentrant",
    "two_optimizers",
    "deterministic",
    "adversarial",
    "by_hand",
    "in_backward",
    "home_made_clipping",
)
"""Loops that read no value themselves; GradScaler, LBFGS and the compiler do."""
