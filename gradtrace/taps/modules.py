"""Outputs of modules and the gradients that arrive at them, through one global forward hook.

No hook is put on a module: `deepcopy`, `torch.save`, `torch.jit.script` and the transformer fast
path see the model as it is. No module backward hook either, for those break in-place operations; a
hook on the output tensor does not. Values are measured inside the hook, for a later in-place
operation may overwrite them, and no tensor is kept.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from gradtrace.measure.chunks import Accumulator, is_measurable
from gradtrace.measure.flat import is_partial, local
from gradtrace.taps.backward import in_backward

_transform: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", lambda: None
)
"""The innermost torch.func transform under way, None outside of all."""


class ModuleStore(Protocol):
    """Where measured outputs go; the accumulators are the open step's."""

    activations: Accumulator
    output_gradients: Accumulator
    module_names: list[str]

    def spoil(self) -> None:
        """Not all outputs of the open step were seen. Any thread."""


class ModuleTap:
    """Watches the modules in `names` (by id), on the steps for which it is armed.

    `guard` wraps the hooks' bodies, `note` is told what has no numbers. Rows are numbered in the
    order in which modules first run.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        store: ModuleStore,
        guard: Callable[[str, Callable[..., None]], Callable[..., None]],
        note: Callable[[str, str], None] = lambda source, message: None,
    ) -> None:
        self._names = names
        self._store = store
        self._note = note
        self._positions: dict[str, int] = {}
        self._forward: set[int] = set()
        self._recomputed: set[tuple[int, int]] = set()
        self._handle: Any = None
        self._armed = False
        self._thread = get_ident()
        # Threads that run compiled code at present; they may be others than the one that trains.
        self._compiled: set[int] = set()
        self._setting = threading.Lock()
        # Hooks on leaves, which outlive the graph that they were put into.
        self._on_leaves: list[Any] = []
        self._last: _Last | None = None
        self._output = guard("the activation tap", self._seen)
        self._gradient = guard("the output gradient tap", self._arrived)

    def arm(self, on: bool) -> None:
        """A new step begins; `on` tells whether it measures activations."""
        self._forward.clear()
        self._recomputed.clear()
        self._last = None
        for hook in self._on_leaves:
            hook.remove()
        self._on_leaves.clear()
        self._armed, self._thread = on and bool(self._names), get_ident()
        self._set()

    def disarm(self) -> None:
        """Takes the hooks away."""
        for hook in self._on_leaves:
            hook.remove()
        self._on_leaves.clear()
        self._armed = False
        self._set()

    def compiled_begins(self) -> None:
        """The calling thread runs compiled code from here on, which no hook may be seen by."""
        self._compiled.add(get_ident())
        if self._armed and get_ident() != self._thread:
            self._store.spoil()  # what the training runs meanwhile is not seen
        self._set()

    def compiled_ends(self) -> None:
        """It runs plain Python again."""
        self._compiled.discard(get_ident())
        self._set()

    def _set(self) -> None:
        """Has the global hook be there or not, as it should be."""
        with self._setting:
            wanted = self._armed and not self._compiled
            # Other threads may be in a forward: torch copies the dict of hooks in one call before
            # it runs any, so a hook that comes or goes disturbs no forward that returns. A stand-in
            # as for the optimizers' hooks is not possible: the compiler asks for a dict here.
            if wanted and self._handle is None:
                self._handle = register_module_forward_hook(self._hook)
            elif not wanted and self._handle is not None:
                self._handle.remove()
                self._handle = None

    @property
    def unseen(self) -> int:
        """How many of the modules have not been seen to run yet."""
        return len(set(self._names.values())) - len(self._positions)

    def order(self) -> Mapping[str, int]:
        """The rank of each module in the order of first execution."""
        return self._positions

    def _hook(self, module: nn.Module, args: Any, output: Any) -> None:
        # Must come first: the compiler then drops the hook, instead of falling back to eager.
        if torch.compiler.is_compiling():
            return
        name = self._names.get(id(module))
        if name is not None:
            self._output(name, output)

    def _seen(self, name: str, output: Any) -> None:
        if not torch.is_grad_enabled() or torch._C._get_tracing_state() is not None:
            return
        if _transform() is not None:
            return  # inside vmap or grad: no tensor of the loop's, and nothing can be read
        position = self._positions.get(name)
        if position is None:
            position = self._positions[name] = len(self._positions)
            self._store.module_names.append(name)
        if in_backward():
            # A checkpointed region runs again: count only what its forward could not show.
            run = (torch._C._current_graph_task_id(), position)
            if position in self._forward or run in self._recomputed:
                return
            self._recomputed.add(run)
        else:
            self._forward.add(position)
        tensor = main_tensor(output)
        if tensor is None:
            return
        with torch.no_grad():
            last, store = self._last, self._store.activations
            if last is not None and last.is_same(tensor, store):
                # A container passing on what its last child returned.
                store.again(position)
                last.listeners.append(position)
                return
            store.add(position, tensor)
        if is_partial(tensor):
            self._note(
                "activations",
                f"the output of {name} is a summand, whose sum over ranks only a collective would "
                "tell (a DTensor with a Partial placement): it has no numbers",
            )
        listeners = [position]
        self._last = _Last(weakref.ref(tensor), local(tensor)._version, store, listeners)
        if tensor.requires_grad:
            hook = tensor.register_hook(lambda gradient: self._gradient(listeners, gradient))
            if tensor.is_leaf:
                self._on_leaves.append(hook)

    def _arrived(self, listeners: list[int], gradient: Tensor) -> None:
        store = self._store.output_gradients
        with torch.no_grad():
            if is_measurable(gradient) and store.add(listeners[0], gradient):
                for position in listeners[1:]:
                    store.again(position)


@dataclasses.dataclass(slots=True)
class _Last:
    tensor: weakref.ref[Tensor]
    version: int
    store: Accumulator
    listeners: list[int]

    def is_same(self, tensor: Tensor, store: Accumulator) -> bool:
        return (
            self.store is store
            and self.tensor() is tensor
            and self.version == local(tensor)._version
        )


def module_names(
    models: Mapping[str, nn.Module],
    qualified: Callable[[str, str], str],
    selects: Callable[[str], bool],
) -> dict[int, str]:
    """The selected modules by id, each under its first name.

    A model's root is left out, for its output is its last layer's; a root without children goes
    by its class's name. Modules inside compiled regions are left out: their hooks never run.
    """
    names: dict[int, str] = {}
    hidden = {id(inner) for region in compiled_regions(models) for inner in region.modules()}
    for prefix, model in models.items():
        for path, module in model.named_modules():
            if id(module) in hidden:
                continue
            name = qualified(prefix, path)
            if name == prefix:
                if any(True for _ in module.children()):
                    continue
                name = prefix or type(module).__name__
            if id(module) not in names and selects(name):
                names[id(module)] = name
    return names


def compiled_regions(models: Mapping[str, nn.Module]) -> list[nn.Module]:
    """The modules that `torch.compile` or `Module.compile` made one region of."""
    return [
        module
        for model in models.values()
        for module in model.modules()
        if getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
    ]


def main_tensor(output: Any, depth: int = 3) -> Tensor | None:
    """The tensor that stands for a module's output: the first one with more than one value.

    Looks into tuples, lists, mappings and dataclasses (so also into packed sequences and the
    outputs of Hugging Face models).
    """
    if isinstance(output, Tensor):
        return output if is_measurable(output) and output.numel() else None
    if depth == 0 or output is None:
        return None
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, (tuple, list)):
        parts = list(output)
    elif dataclasses.is_dataclass(output):
        parts = [getattr(output, f.name) for f in dataclasses.fields(output)]
    else:
        return None
    scalar = None
    for part in parts:
        tensor = main_tensor(part, depth - 1)
        if tensor is not None:
            if tensor.numel() > 1:
                return tensor
            scalar = tensor if scalar is None else scalar
    return scalar
