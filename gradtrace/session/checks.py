"""Checks of the arguments of `gradtrace(...)`: each says what was got, expected, and what to do."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from gradtrace.measure.flat import whole


def check_models(model: Any) -> dict[str, nn.Module]:
    """Models by prefix; a single one has the prefix "".

    Raises TypeError for what is no module, ValueError where there is no parameter to watch or one
    is not initialised yet.
    """
    models: dict[Any, Any]
    if isinstance(model, nn.Module):
        models = {"": model}
    elif isinstance(model, Mapping):
        models = dict(model)
        for key, value in models.items():
            if not isinstance(key, str) or not key or not isinstance(value, nn.Module):
                raise TypeError(
                    f"model has the entry {key!r}: {type(value).__name__}; expected names mapped "
                    'to torch.nn.Module objects, such as {"generator": g, "critic": c}'
                )
    else:
        raise TypeError(
            f"model is a {type(model).__name__}; expected a torch.nn.Module, or a mapping of names "
            "to modules: pass the model itself"
        )
    if not any(True for m in models.values() for _ in m.parameters()):
        raise ValueError(
            "the model has no parameters, so there is nothing to trace; expected the module whose "
            "parameters the optimizer updates: pass that one"
        )
    for name, parameter in (pair for m in models.values() for pair in m.named_parameters()):
        if is_lazy(parameter):
            raise ValueError(
                f"the model's parameter {name!r} is not initialised yet, so there is nothing to "
                "trace; expected a model whose lazy layers know their shapes: send one batch "
                "through the model first"
            )
    return models


def check_loaders(loader: Any) -> list[DataLoader[Any]]:
    """The loaders to watch. Raises TypeError for anything but DataLoaders."""
    if loader is None:
        return []
    found = [loader] if isinstance(loader, DataLoader) else loader
    if isinstance(found, Iterable) and not isinstance(found, (str, bytes, Mapping)):
        found = list(found) if isinstance(found, (list, tuple, set)) else None
        if found is not None and all(isinstance(one, DataLoader) for one in found):
            return found
        for place, one in enumerate(found or ()):
            if not isinstance(one, DataLoader):
                raise TypeError(
                    f"loader[{place}] is a {type(one).__name__}; expected a torch DataLoader: for "
                    "any other iterable write `for batch in trace.batches(iterable):`"
                )
    raise TypeError(
        f"loader is a {type(loader).__name__}; expected a torch DataLoader or a list of them: for "
        "any other iterable write `for batch in trace.batches(iterable):`"
    )


def check_callable(name: str, value: Any) -> Any:
    """`value` if it is None or callable; TypeError otherwise."""
    if value is not None and not callable(value):
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected a callable from a batch to its ids, or "
            "None"
        )
    return value


def check_step_after(optimizer: Any, models: Mapping[str, nn.Module]) -> None:
    """Raises TypeError for what is no optimizer, ValueError for one of other parameters."""
    if optimizer is None:
        return
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"step_after is a {type(optimizer).__name__}; expected the torch optimizer whose step "
            "ends a step of the training: for any other call trace.step() where a step ends"
        )
    watched = {id(p) for model in models.values() for p in model.parameters()}
    if not any(id(p) in watched for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(
            f"step_after is a {type(optimizer).__name__} that holds none of the model's parameters,"
            " so its steps would end nothing; expected one that does: pass the optimizer that steps"
            " last"
        )


def check_divisor(by: Any) -> float:
    """What losses were divided by. Raises TypeError or ValueError unless finite and above 0."""
    if isinstance(by, bool) or not isinstance(by, (int, float)):
        raise TypeError(
            f"trace.divide() got {by!r}; expected the number that losses are divided by before "
            "their backward, such as the micro-batches of a step"
        )
    if not 0 < by < math.inf:
        raise ValueError(
            f"trace.divide() got {by!r}; expected a finite number above 0: 1 where losses are not "
            "divided"
        )
    return float(by)


def check_callbacks(name: str, value: Any) -> tuple[Any, ...]:
    """The callbacks that `value` is or holds; each takes one argument. Raises TypeError."""
    if value is None:
        return ()
    if callable(value):
        found = [(name, value)]
    elif isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        found = [(f"{name}[{place}]", one) for place, one in enumerate(value)]
    else:
        raise TypeError(
            f"{name} is {value!r}; expected a callable that takes the Spike, or a list of them"
        )
    for place, one in found:
        if isinstance(one, type):
            raise TypeError(
                f"{place} is the class {one.__name__}; expected a callable that takes the Spike: "
                f"make an instance, {one.__name__}(...)"
            )
        if not callable(one):
            raise TypeError(
                f"{place} is a {type(one).__name__}; expected a callable that takes the Spike"
            )
        _check_takes_one(place, one)
    return tuple(one for _, one in found)


def _check_takes_one(place: str, function: Callable[..., Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not known, as of some built-in functions
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise TypeError(
            f"{place} cannot be called with one argument ({error}): its parameters are "
            f"{signature}; expected a callable that takes the Spike and nothing else"
        ) from None


def check_positive(name: str, value: Any, unit: str) -> None:
    """Raises TypeError or ValueError unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is {value!r}; expected a number of {unit} above 0")
    if not 0 < value < math.inf:
        raise ValueError(
            f"{name} is {value!r}; expected a finite number of {unit} above 0: leave it out for "
            "the default"
        )


def check_logged(values: Mapping[str, float | Tensor]) -> dict[str, float | Tensor]:
    """What `trace.log` was given: floats, and copies of tensors of one value, without a wait.

    Raises TypeError for anything else.
    """
    copies: dict[str, float | Tensor] = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise TypeError(
                    f"log({name}=...) got a tensor of shape {tuple(value.shape)}; expected one "
                    "value: reduce it first, for instance with .mean()"
                )
            if value.is_complex():
                raise TypeError(
                    f"log({name}=...) got a tensor of {value.dtype}; expected a real number: take "
                    "its .abs(), .real or .imag"
                )
            detached = value.detach()
            # A copy of a DTensor that is a summand would be a collective.
            known = whole(detached if hasattr(detached, "placements") else detached.clone())
            if known is None:
                raise TypeError(
                    f"log({name}=...) got a {type(value).__name__} of which this rank holds a part "
                    f"({getattr(value, 'placements', 'several tensors')}); expected a value that "
                    "is here: log its .full_tensor(), asked for on every rank, or the .to_local() "
                    "of each"
                )
            copies[name] = known.clone()
            continue
        number = _number(value)
        if number is None:
            raise TypeError(
                f"log({name}=...) got a {type(value).__name__}; expected a float or a 0-dim tensor"
            )
        copies[name] = number
    return copies


def _number(value: Any) -> float | None:
    if isinstance(value, (str, bytes)):
        return None  # float() would read it
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def check_directory(directory: Any) -> Path | None:
    """The directory for runs. Raises TypeError for what is no path, ValueError for a wrong one."""
    if directory is None:
        return None
    text = os.fspath(directory) if isinstance(directory, (str, os.PathLike)) else directory
    advice = (
        "expected the path of a folder for runs (made when missing), such as 'runs' or '.', or "
        "None to keep nothing on disk"
    )
    if not isinstance(text, str):
        raise TypeError(f"directory is {directory!r}; {advice}")
    if not text or "\0" in text:
        raise ValueError(f"directory is {text!r}; {advice}")
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ValueError(
            f"directory is {str(path)!r}, which is a file; expected a folder for runs (made when "
            "missing) or None to keep nothing on disk"
        )
    return path
