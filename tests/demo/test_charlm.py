"""The demo's model."""

from __future__ import annotations

import torch

from gradtrace.demo.charlm import CharLM


def test_model_size() -> None:
    """The model has about a million parameters."""
    model = CharLM(100)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6


def test_model_is_causal() -> None:
    """What the model predicts depends on earlier characters only."""
    torch.manual_seed(0)
    model = CharLM(20, length=16, width=16, heads=2, depth=2)
    tokens = torch.randint(0, 20, (1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 20
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9], after[:, 9])


def test_generation_goes_beyond_the_window() -> None:
    """Generated text starts with the prompt and may be longer than the model's window."""
    model = CharLM(20, length=8, width=16, heads=2, depth=1)
    prompt = torch.tensor([1, 2, 3])
    tokens = model.generate(prompt, 30)
    assert tokens.shape == (33,)
    assert tokens[:3].equal(prompt)
