"""Two models against each other, and other rounds of several optimizers and backwards."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.parts import ids, loader_of, mlp
from zoo.tracing import Tracer
from zoo.truth import Truth


def pair() -> tuple[dict[str, nn.Module], torch.optim.Optimizer, torch.optim.Optimizer]:
    """A generator and a critic with an optimizer each."""
    maker, critic = mlp(4, 8, 6), mlp(6, 8, 1)
    make = torch.optim.Adam(maker.parameters(), lr=1e-3)
    judge = torch.optim.Adam(critic.parameters(), lr=2e-3)
    return {"maker": maker, "critic": critic}, make, judge


def gan(truth: Truth, tracer: Tracer) -> None:
    """Critic, then generator, on each batch: one step a round. The critic is clipped."""
    models, make, judge = pair()
    maker, critic = models["maker"], models["critic"]
    loader = loader_of(40, shuffle=True)
    with tracer(models, loader=loader):
        for k, (index, real, _) in enumerate(loader):
            fake = maker(torch.randn(len(real), 4))
            doubt = critic(fake.detach()).mean() - critic(real).mean()
            judge.zero_grad()
            doubt.backward()
            truth.backward(doubt, (0, k, ids(index)))
            truth.gradients(models, judge)
            with truth.clipping("norm", critic.parameters()):
                nn.utils.clip_grad_norm_(critic.parameters(), 0.1)
            judge.step()
            lie = -critic(fake).mean()
            make.zero_grad()
            lie.backward()
            truth.backward(lie)
            truth.gradients(models, make)
            truth.step(judge, make)
            make.step()
    truth.finish(models=[maker, critic], optimizers=[make, judge], loader=loader, batch=real)


def gan_toggled(truth: Truth, tracer: Tracer) -> None:
    """The model whose turn it is not is frozen meanwhile, as in Lightning's toggle_optimizer."""
    models, make, judge = pair()
    maker, critic = models["maker"], models["critic"]
    loader = loader_of(40)
    with tracer(models, loader=loader):
        for k, (index, real, _) in enumerate(loader):
            critic.requires_grad_(False)
            lie = -critic(maker(torch.randn(len(real), 4))).mean()
            lie.backward()
            truth.backward(lie, (0, k, ids(index)))
            truth.gradients(models, make)
            make.step()
            make.zero_grad()
            critic.requires_grad_(True)
            maker.requires_grad_(False)
            fake = maker(torch.randn(len(real), 4))
            doubt = critic(fake).mean() - critic(real).mean()
            doubt.backward()
            truth.backward(doubt)
            truth.gradients(models, judge)
            truth.step(make, judge)
            judge.step()
            judge.zero_grad()
            maker.requires_grad_(True)
    truth.finish(models=[maker, critic], optimizers=[make, judge], loader=loader, batch=real)


def wgan_gp(truth: Truth, tracer: Tracer, rounds: int = 1) -> None:
    """A gradient penalty on the critic, which has `rounds` steps for one of the generator."""
    models, make, judge = pair()
    maker, critic = models["maker"], models["critic"]
    with tracer(models):
        for k in range(10 * rounds):
            real = torch.randn(5, 6)
            fake = maker(torch.randn(5, 4)).detach()
            doubt = critic(fake).mean() - critic(real).mean()
            mixed = torch.lerp(real, fake, torch.rand(5, 1)).requires_grad_()
            [slope] = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
            doubt = doubt + 10 * (slope.norm(dim=1) - 1).square().mean()
            judge.zero_grad()
            doubt.backward()
            truth.backward(doubt)
            truth.gradients(models, judge)
            judge.step()
            if k % rounds != rounds - 1:
                truth.step(judge)
                continue
            if rounds > 1:
                truth.step(judge)
            lie = -critic(maker(torch.randn(5, 4))).mean()
            make.zero_grad()
            lie.backward()
            truth.backward(lie)
            truth.gradients(models, make)
            # Whether the last critic step and the generator's are one step is a matter of taste.
            truth.step(*(() if rounds > 1 else (judge,)), make, joined=rounds > 1)
            make.step()
    truth.finish(models=[maker, critic], optimizers=[make, judge])


def wgan_gp_three_rounds(truth: Truth, tracer: Tracer) -> None:
    wgan_gp(truth, tracer, rounds=3)


def critic_alone(truth: Truth, tracer: Tracer) -> None:
    """Only the critic is traced: what the generator's backward leaves in it is not used."""
    models, make, judge = pair()
    maker, critic = models["maker"], models["critic"]
    with tracer(critic):
        for _ in range(12):
            fake = maker(torch.randn(5, 4))
            doubt = critic(fake.detach()).mean() - critic(torch.randn(5, 6)).mean()
            judge.zero_grad()
            doubt.backward()
            truth.backward(doubt)
            truth.gradients(critic)
            truth.step(judge)
            judge.step()
            lie = -critic(fake).mean()
            make.zero_grad()
            lie.backward()
            truth.backward(lie)
            truth.explore()
            make.step()
    truth.finish(models=[maker, critic], optimizers=[make, judge])


def actor_critic(truth: Truth, tracer: Tracer) -> None:
    """DDPG: the critic learns from a target network, the actor from the critic."""
    models: dict[str, nn.Module] = {"actor": mlp(4, 8, 2), "critic": mlp(6, 8, 1)}
    target = copy.deepcopy(nn.ModuleDict(models))
    act = torch.optim.Adam(models["actor"].parameters(), lr=1e-3)
    judge = torch.optim.Adam(models["critic"].parameters(), lr=1e-3)

    def value(nets: Any, states: Tensor, actions: Tensor) -> Tensor:
        found: Tensor = nets["critic"](torch.cat([states, actions], 1))
        return found

    with tracer(models):
        for _ in range(12):
            states, actions = torch.randn(5, 4), torch.randn(5, 2)
            with torch.no_grad():
                goal = torch.randn(5, 1) + 0.9 * value(target, states, target["actor"](states))
            judge.zero_grad()
            error = (value(models, states, actions) - goal).square().mean()
            error.backward()
            truth.backward(error)
            truth.gradients(models, judge)
            judge.step()
            act.zero_grad()
            loss = -value(models, states, models["actor"](states)).mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(models, act)
            truth.step(judge, act)
            act.step()
            with torch.no_grad():
                for mine, theirs in zip(
                    target.parameters(), nn.ModuleDict(models).parameters(), strict=True
                ):
                    mine.lerp_(theirs, 0.05)
    truth.finish(models=list(models.values()), optimizers=[act, judge])


def policy_and_value(truth: Truth, tracer: Tracer, early: bool = False) -> None:
    """PPO: some steps of the policy, then some of the value function; each is a step."""
    models: dict[str, nn.Module] = {"policy": nn.Linear(4, 2), "value": nn.Linear(4, 1)}
    improve = torch.optim.Adam(models["policy"].parameters(), lr=3e-2)
    estimate = torch.optim.Adam(models["value"].parameters(), lr=1e-3)
    with tracer(models):
        for _ in range(3):
            states, actions = torch.randn(32, 4), torch.randint(0, 2, (32,))
            goals = 10 * torch.randn(32, 1)
            with torch.no_grad():
                old = models["policy"](states).log_softmax(1)
            for k in range(4):
                improve.zero_grad()
                new = models["policy"](states).log_softmax(1)
                loss = -new.gather(1, actions[:, None]).mean()
                distance = (old.exp() * (old - new)).sum(1).mean()
                if early and (k == 3 or float(distance.detach()) > 0.02):
                    break  # too far from the old policy: this forward has no backward
                loss.backward()
                truth.backward(loss)
                truth.gradients(models, improve)
                truth.step(improve)
                improve.step()
            for _ in range(3):
                estimate.zero_grad()
                loss = (models["value"](states) - goals).square().mean()
                loss.backward()
                truth.backward(loss)
                truth.gradients(models, estimate)
                truth.step(estimate)
                estimate.step()
    truth.finish(models=list(models.values()), optimizers=[improve, estimate])


def policy_stopped_early(truth: Truth, tracer: Tracer) -> None:
    policy_and_value(truth, tracer, early=True)


def in_turns(truth: Truth, tracer: Tracer) -> None:
    """Coordinate descent: each backward reaches both halves, one optimizer uses its own.

    Whether two turns are one step or two is a matter of taste.
    """
    model = mlp()
    optimizers = [torch.optim.SGD(model[i].parameters(), lr=0.05) for i in (0, 2)]
    with tracer(model):
        for k in range(16):
            model.zero_grad()
            loss = model(torch.randn(5, 6)).square().mean()
            loss.backward()
            truth.backward(loss)
            truth.gradients(model, optimizers[k % 2])
            # The rows of what was computed and not used are nobody's business.
            truth.step(optimizers[k % 2], joined=bool(k % 2), unsure={"rows"})
            optimizers[k % 2].step()
    truth.finish(model=model, optimizers=optimizers)


def explicit_border(truth: Truth, tracer: Tracer) -> None:
    """Models that have nothing to do with each other; `step_after` says what one step is."""
    models: dict[str, nn.Module] = {"one": mlp(), "two": mlp()}
    one, two = (torch.optim.SGD(model.parameters(), lr=0.05) for model in models.values())
    loader = loader_of(40)
    with tracer(models, loader=loader, step_after=two):
        for k, (index, x, y) in enumerate(loader):
            for name, optimizer in (("one", one), ("one", one), ("two", two)):
                optimizer.zero_grad()
                loss = (models[name](x) - y).square().mean()
                loss.backward()
                truth.backward(loss, *(() if truth.open else ((0, k, ids(index)),)))
                if optimizer is two:
                    # Of the gradients that were used twice in a step, either may be shown.
                    truth.step(one, one, two, unsure={"norm", "rows"})
                optimizer.step()
    truth.finish(models=list(models.values()), optimizers=[one, two], loader=loader, batch=x)


LOOPS = (
    gan,
    gan_toggled,
    wgan_gp,
    wgan_gp_three_rounds,
    critic_alone,
    actor_critic,
    policy_and_value,
    policy_stopped_early,
    in_turns,
    explicit_border,
)
