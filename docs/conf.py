"""How Sphinx makes the pages: `make docs`."""

from __future__ import annotations

import re
from importlib import metadata
from typing import Any

import gradtrace

project = "gradtrace"
release = metadata.version("gradtrace")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"gradtrace {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88

# Docstrings are written as Markdown. A name in backticks becomes a link where the API has it, and
# code where it has not.
default_role = "py:obj"

UNWRITTEN = ("Run", "Trace")
"""Classes that users do not make themselves, so that how to make one would only mislead."""


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", from_markdown)
    app.connect("autodoc-process-signature", hide_signature)
    app.connect("autodoc-skip-member", skip_repeated)


def from_markdown(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns the little Markdown that docstrings use into reStructuredText, in place.

    What stands outside backticks is plain text, whatever its stars and bars; a paragraph that is
    indented is Python.
    """
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines))
    written = [
        f".. code-block:: python\n\n{text}" if text.startswith("    ") else plain(text)
        for text in paragraphs
    ]
    lines[:] = "\n\n".join(written).split("\n")


def plain(text: str) -> str:
    """Text without markup but for what is in backticks, also where an s follows them."""
    parts = re.split(r"(`[^`]*`)", text)
    # An underscore at a word's end would be a reference.
    parts[::2] = [re.sub(r"([*|\\]|_\b)", r"\\\1", part) for part in parts[::2]]
    for at in range(1, len(parts), 2):
        if parts[at + 1][:1].isalnum():
            parts[at] += "\\ "
    return "".join(parts)


def hide_signature(
    app: Any, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """No arguments for protocols and for classes that users only get."""
    hidden = name.rpartition(".")[2] in UNWRITTEN or getattr(obj, "_is_protocol", False)
    return ("", "") if hidden and what == "class" else None


def skip_repeated(
    app: Any, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """A module's part of the page leaves out what stands under `gradtrace` already."""
    known = name in gradtrace.__all__ and getattr(gradtrace, name) is obj
    return True if what == "module" and known else None
