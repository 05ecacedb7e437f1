"""How figures look: colours, sizes, numbers and names. matplotlib is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Told apart by every kind of colour vision: Okabe and Ito, "Color Universal Design", 2008.
BLUE = "#0072b2"
VERMILLION = "#d55e00"
ORANGE = "#e69f00"
SKY = "#56b4e9"
GREEN = "#009e73"
PURPLE = "#cc79a7"
GREY = "#999999"

LINE = BLUE
ALARM = VERMILLION
"""Spikes, and what stands out."""

WIDTH = 9.0
TITLE, LABEL, SMALL = 11, 8, 7
"""Font sizes in points: a figure's title, legends, and names that stand in a column."""

NARROW = 100.0
"""A log axis whose ends are less than this factor apart has plain numbers."""


def new_figure(height: float) -> Figure:
    """An empty figure of the usual width, `height` inches high, that belongs to no window.

    Raises ImportError with what to install where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'gradtrace[plots]'") from error
    return Figure(figsize=(WIDTH, height), layout="constrained")


def legend(axis: Axes, where: Any = "upper left", **options: Any) -> None:
    """The small frameless legend that all figures have."""
    axis.legend(loc=where, fontsize=LABEL, frameon=False, **options)


def plain_numbers(axis: Axis) -> None:
    """Writes 40 for 4 x 10^1 on a log axis that spans little, by its limits as they are now."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Plain(LogFormatterSciNotation):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""  # the same ticks are labelled

    low, high = sorted(axis.get_view_interval())
    if axis.get_scale() == "log" and 0 < high < NARROW * low:
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain())


def short(text: str, most: int = 40) -> str:
    """The end of a long name, without what cannot be printed or would be taken for a formula."""
    plain = "".join(c if c.isprintable() and c != "$" else "?" for c in text)
    return plain if len(plain) <= most else "..." + plain[3 - most :]
