"""Writes the dashboard's JSON anew: `python tools/make_dashboard.py`."""

from __future__ import annotations

from pathlib import Path

from gradtrace.monitoring.dashboard import dashboard_json

TARGET = Path(__file__).parents[1] / "gradtrace/monitoring/templates/dashboard.json"

if __name__ == "__main__":
    TARGET.write_text(dashboard_json(), encoding="utf-8")
