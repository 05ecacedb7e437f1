"""What gradtrace costs: paired timing of training loops, each variant in a process of its own.

The processes of a comparison live side by side and take turns, a block of steps at a time, so that
the machine's drift falls on all of them alike. A variant's figure is the median, over its blocks,
of its step time divided by that of the bare loop's blocks before and after it.

    python -m benchmarks.overhead [--quick] [--only small,mini,...] [--json FILE]

Comparisons: small, mini, large, growth, parts, exporters, outages.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks import backends
from benchmarks.variants import (
    BESIDE_DEFAULTS,
    OUTAGES,
    VARIANTS,
    WITH_EXPORTERS,
    prepare,
    resident,
)

THREADS = 2
PEERS = ("hooks with .item()", "wandb.watch", "trainscope")
PARTS = tuple(BESIDE_DEFAULTS)
SINKS = tuple(WITH_EXPORTERS)
OURS = tuple(name for name in VARIANTS if name.startswith("gradtrace"))
WARM_UP = 15
"""Steps before the clock starts: gradtrace measures everything on the first ten."""


def child(pipe: Connection, model: str, variant: str) -> None:
    """Runs blocks of steps on request and replies with their step times, in seconds."""
    try:
        loop = prepare(model, variant, THREADS)
    except Exception as error:
        backends.stop()
        pipe.send(f"{type(error).__name__}: {error}")
        return
    pipe.send("")
    try:
        serve(pipe, loop)
    finally:
        backends.stop()


def serve(pipe: Connection, loop: Callable[[], None]) -> None:
    """Answers until it is told to end."""
    while (steps := pipe.recv()) is not None:
        times = []
        cpu = time.process_time()
        for _ in range(steps):
            start = time.perf_counter()
            loop()
            times.append(time.perf_counter() - start)
        pipe.send((times, (time.process_time() - cpu) / steps, resident()))


class Runner:
    """One variant in its process."""

    def __init__(self, model: str, variant: str) -> None:
        context = multiprocessing.get_context("spawn")
        self.variant = variant
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=child, args=(theirs, model, variant), daemon=True)
        self._process.start()
        theirs.close()
        self.problem: str = self._receive()
        self.resident = 0
        self.cpu: list[float] = []

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            return "its process ended"

    def block(self, steps: int) -> float:
        """The median step time over a block, in seconds."""
        self._pipe.send(steps)
        answer = self._receive()
        if isinstance(answer, str):
            raise RuntimeError(f"{self.variant}: {answer}")
        times, cpu, self.resident = answer
        self.cpu.append(cpu)
        return float(statistics.median(times))

    def stop(self) -> None:
        """Ends the process, and with it the servers it has started."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        self._process.kill()
        self._process.join()


def compare(
    model: str, variants: Sequence[str], *, steps: int, blocks: int, base: str = "bare"
) -> dict[str, Any]:
    """Ratios of step times to those of `base`, by variant: median, quartiles; and milliseconds."""
    runners: dict[str, Runner] = {}
    skipped: dict[str, str] = {}
    for variant in variants:
        runner = Runner(model, variant)
        if runner.problem:
            skipped[variant] = runner.problem
            runner.stop()
        else:
            runners[variant] = runner
    try:
        for runner in runners.values():
            runner.block(WARM_UP)
        others = [name for name in runners if name != base]
        bare: list[float] = [runners[base].block(steps)]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
        for turn in range(blocks):
            # Another order each time: nobody always follows the same neighbour.
            for name in others[turn % len(others) :] + others[: turn % len(others)]:
                taken = runners[name].block(steps)
                bare.append(runners[base].block(steps))
                found[name].append((taken, taken / ((bare[-2] + bare[-1]) / 2)))
        result: dict[str, Any] = {
            "bare_ms": statistics.median(bare) * 1e3,
            "skipped": skipped,
            "variants": {},
        }
        for name, pairs in found.items():
            ratios = sorted(ratio for _, ratio in pairs)
            quartiles = statistics.quantiles(ratios, n=4)
            result["variants"][name] = {
                "ratio": statistics.median(ratios),
                "quartiles": [quartiles[0], quartiles[2]],
                "ms": statistics.median(taken for taken, _ in pairs) * 1e3,
                "cpu_ms": (_cpu(runners[name]) - _cpu(runners[base])) * 1e3,
                "memory_mb": (runners[name].resident - runners[base].resident) / 2**20,
            }
        return result
    finally:
        for runner in runners.values():
            runner.stop()


def _cpu(runner: Runner) -> float:
    """Seconds of processor time a step, of all threads, without the warm-up."""
    return statistics.median(runner.cpu[1:])


def growth(*, quick: bool) -> list[dict[str, Any]]:
    """Cost per layer from 10 to 1,000 layers, and per value in layers of growing size."""
    rows = []
    names = ["layers-10", "layers-100", "layers-1000", "width-256", "width-1024", "width-4096"]
    for name in names:
        kind, _, size = name.partition("-")
        steps = max(3, (2000 if kind == "layers" else 20_000) // int(size))
        result = compare(name, ("bare", OURS[1]), steps=min(steps, 50), blocks=6 if quick else 20)
        ours = result["variants"][OURS[1]]
        added = (ours["ratio"] - 1) * result["bare_ms"] * 1e6
        tensors = 2 * int(size) if kind == "layers" else 2
        values = int(size) * (32 * 33) if kind == "layers" else int(size) * (int(size) + 1)
        rows.append(
            {
                "model": f"{size} layers of 32 x 32" if kind == "layers" else f"{size} x {size}",
                "ratio": ours["ratio"],
                "us_per_tensor": added / tensors / 1e3,
                "ns_per_value": added / values,
                "memory_mb": ours["memory_mb"],
            }
        )
    return rows


def beside_defaults(variants: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """What parts add to a trace: ratios of the defaults with or without them to the defaults."""
    models = {"small": 40, "mini": 4} if variants == PARTS else {"layers-100": 40, "layers-1000": 8}
    if variants == SINKS:
        models["mini"] = 4
    blocks = 6 if quick else 24
    base = "gradtrace, defaults"
    return {
        model: compare(model, (base, *variants), steps=steps, blocks=blocks, base=base)
        for model, steps in models.items()
    }


def outages() -> dict[str, Any]:
    """What a backend costs that fails on the way: ratios to the same exporter without trouble."""
    return {
        base: compare("mini", (base, *failing), steps=3, blocks=32, base=base)
        for base, failing in OUTAGES.items()
    }


EXTRAS = ("growth", "parts", "exporters", "outages")

COMPARISONS: dict[str, tuple[str, tuple[str, ...], int, int]] = {
    "small": ("GPT, 0.12M parameters, 128 tokens", tuple(VARIANTS), 20, 24),
    "mini": ("GPT, 3.3M parameters, 1,024 tokens", tuple(VARIANTS), 3, 16),
    "large": ("GPT-2 small, 124M parameters, 512 tokens", ("bare", "bare again", OURS[1]), 1, 14),
}
"""Title, variants, steps a block, blocks."""


def table(results: dict[str, Any]) -> str:
    """The results as Markdown, for docs/cost.md."""
    names = [name for name in COMPARISONS if name in results]
    lines: list[str] = []
    if names:
        lines.append("| ratio to the bare loop | " + _cells(COMPARISONS[n][0] for n in names))
        lines.append("|---|" + "---|" * len(names))
        lines.append(
            "| bare loop, ms a step | " + _cells(f"{results[n]['bare_ms']:.1f}" for n in names)
        )
    for variant in list(VARIANTS)[1:] if names else ():
        cells = []
        for name in names:
            found = results[name]["variants"].get(variant)
            low, high = found["quartiles"] if found else (0.0, 0.0)
            cells.append(f"{found['ratio']:.3f} ({low:.3f}-{high:.3f})" if found else "-")
        lines.append(f"| {variant} | " + _cells(cells))
    for row in results.get("growth", ()):
        if row is results["growth"][0]:
            lines += ["", "| defaults on | ratio | us a tensor | ns a value | memory |"]
            lines.append("|---|---|---|---|---|")
        lines.append(
            f"| {row['model']} | {row['ratio']:.3f} | {row['us_per_tensor']:.1f} | "
            f"{row['ns_per_value']:.2f} | {row['memory_mb']:.0f} MB |"
        )
    for part in ("parts", "exporters", "outages"):
        for model, result in results.get(part, {}).items():
            title = COMPARISONS[model][0] if model in COMPARISONS else model.replace("-", " of ")
            lines += [
                "",
                f"| {part}, {title} | ratio | CPU, ms a step |",
                "|---|---|---|",
            ]
            for variant, found in result["variants"].items():
                low, high = found["quartiles"]
                lines.append(
                    f"| {variant} | {found['ratio']:.3f} ({low:.3f}-{high:.3f}) | "
                    f"{found.get('cpu_ms', 0.0):+.2f} |"
                )
    return "\n".join(lines)


def _cells(values: Any) -> str:
    return " | ".join(values) + " |"


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _earlier(path: Path) -> dict[str, Any]:
    """What was measured before and is not measured now stays in the file."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def main() -> None:
    """Measures, prints the table and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer blocks, no large model")
    parser.add_argument("--only", default="", help="comparisons, separated by commas")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results.json"))
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else [*COMPARISONS, *EXTRAS]
    if options.quick and not options.only:
        wanted.remove("large")
    results: dict[str, Any] = _earlier(options.json) | {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": THREADS,
    }
    for name in wanted:
        print(f"{name} ...", flush=True)
        if name == "growth":
            results[name] = growth(quick=options.quick)
        elif name in EXTRAS:
            variants = PARTS if name == "parts" else SINKS
            results[name] = (
                outages() if name == "outages" else beside_defaults(variants, quick=options.quick)
            )
            for model, found in results[name].items():
                for variant, problem in found["skipped"].items():
                    print(f"  {model}: left out: {variant}: {problem}")
        else:
            _, variants, steps, blocks = COMPARISONS[name]
            results[name] = compare(
                name, variants, steps=steps, blocks=4 if options.quick else blocks
            )
            for variant, problem in results[name]["skipped"].items():
                print(f"  left out: {variant}: {problem}")
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\n{results['processor']}, {THREADS} threads, torch {results['torch']}\n")
    print(table(results))


if __name__ == "__main__":
    main()
