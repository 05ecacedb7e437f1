"""The demo: a small language model trained under a trace, on text that comes with Python."""

from __future__ import annotations

from gradtrace.demo.story import run_demo

__all__ = ["run_demo"]
