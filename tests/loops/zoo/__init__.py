"""The zoo: training loops as other people write them, each with its truth."""

from __future__ import annotations

from collections.abc import Callable

from zoo import (
    adversarial,
    amp,
    backwards,
    beside,
    byhand,
    changed,
    dropped,
    failing,
    feeding,
    loaders,
    ordinary,
    others,
    product,
    replaced,
    stepping,
    surrogates,
    tensors,
    unusual,
)
from zoo.tracing import Tracer
from zoo.truth import Truth

Loop = Callable[[Truth, Tracer], None]

KINDS = (
    *(
        ordinary,
        amp,
        changed,
        backwards,
        surrogates,
        dropped,
        failing,
        adversarial,
        stepping,
        byhand,
    ),
    *(replaced, loaders, beside, tensors, others, feeding, unusual),
)

LOOPS: dict[str, Loop] = dict(product.LOOPS) | {
    loop.__name__: loop for kind in KINDS for loop in kind.LOOPS
}
