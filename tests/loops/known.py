"""What fails today, and why: loop, or loop and plan, to what is wrong. Empty is the aim.

Who mends a loop takes it off its list: the tests of these fail when they pass.
"""

from __future__ import annotations

RECORDS: dict[str, str] = {}
"""Loops whose records do not tell the truth: the first difference, and its cause."""

NEUTRALITY: dict[str, str] = {}
"""Loops that a trace changes."""

RESTORED: dict[str, str] = {}
"""Loops after which something is left behind."""

KEPT: dict[str, str] = {}
"""Loops of which a trace keeps alive what it should not."""
