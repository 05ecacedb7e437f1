"""An interpreter in which only the core's dependencies can be imported."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement


def _core() -> set[str]:
    """The distributions that `pip install gradtrace` brings, without extras."""
    wanted, known = ["gradtrace"], set[str]()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name in known:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        known.add(name)
        needed = map(Requirement, requires)
        wanted += [n.name for n in needed if n.marker is None or n.marker.evaluate({"extra": ""})]
    return known


def hide_all_but_core() -> str:
    """Code that makes every other installed package look as if it were not there."""
    core = _core()
    others = sorted(
        module
        for module, distributions in metadata.packages_distributions().items()
        if not any(name.lower().replace("_", "-") in core for name in distributions)
    )
    return f"""
import sys

class _Hiding:
    names = frozenset({others!r})

    def __init__(self, finder):
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._finder, name)

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in self.names
        return None if hidden else self._finder.find_spec(name, path, target)

sys.meta_path[:] = map(_Hiding, sys.meta_path)

"""
