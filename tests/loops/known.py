"""What fails today, and why: loop, or loop and plan, to what is wrong. Empty is the aim."""

from __future__ import annotations

RECORDS: dict[str, str] = {}
NEUTRALITY: dict[str, str] = {}
RESTORED: dict[str, str] = {}
KEPT: dict[str, str] = {}
