"""The zoo: training loops as other people write them, each with its truth."""

from __future__ import annotations

from collections.abc import Callable

from zoo import ordinary, product
from zoo.tracing import Tracer
from zoo.truth import Truth

Loop = Callable[[Truth, Tracer], None]

LOOPS: dict[str, Loop] = dict(product.LOOPS) | {
    loop.__name__: loop for kind in (ordinary,) for loop in kind.LOOPS
}
