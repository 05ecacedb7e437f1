"""Integrations with training frameworks."""

__all__: list[str] = []
