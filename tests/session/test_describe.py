"""What a run says of its model."""

from __future__ import annotations

from torch import nn

from gradtrace import Sampling
from gradtrace.measure.parameters import Parameters
from gradtrace.session.describe import describe_modules, describe_parameters, is_sharded


def test_parameters_and_modules_are_described() -> None:
    """Names with the model's, shapes, types, and what is trained."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    model[0].bias.requires_grad_(False)
    models = {"critic": model}
    parameters = Parameters(models, Sampling())
    assert describe_parameters(parameters) == [
        {
            "name": f"critic.0.{name}",
            "shape": shape,
            "dtype": "float32",
            "device": "cpu",
            "trainable": name == "weight",
        }
        for name, shape in (("weight", [3, 2]), ("bias", [3]))
    ]
    assert describe_modules(models) == [
        {"name": "critic", "type": "Sequential"},
        {"name": "critic.0", "type": "Linear"},
        {"name": "critic.1", "type": "ReLU"},
    ]
    assert not is_sharded(parameters, models)
