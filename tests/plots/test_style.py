"""How figures look."""

from __future__ import annotations

import subprocess
import sys

import pytest
from matplotlib.colors import to_rgb

from gradtrace.plots import style
from gradtrace.plots.style import new_figure, plain_numbers, short


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("fc1.weight", "fc1.weight"),
        ("$x^2$", "?x^2?"),
        ("a\n\x1b[31mb", "a??[31mb"),
        ("x" * 50, "..." + "x" * 37),
    ],
)
def test_names_are_short_and_plain(text: str, shown: str) -> None:
    """No formula, no control character, the end of what is long."""
    assert short(text) == shown
    assert len(short(text)) <= 40


def test_a_narrow_log_axis_has_plain_numbers_and_a_wide_one_powers() -> None:
    """Within two decades 40 is written as 40."""
    for high, plain in ((50.0, True), (5e4, False)):
        axis = new_figure(2.0).subplots()
        axis.set_yscale("log")
        axis.set_ylim(1.0, high)
        plain_numbers(axis.yaxis)
        labels = {label.get_text() for label in axis.get_yticklabels()} - {""}
        assert labels and ("10" in labels) == plain


def test_a_linear_axis_keeps_its_numbers() -> None:
    """They are plain already."""
    axis = new_figure(2.0).subplots()
    axis.set_ylim(1.0, 50.0)
    before = axis.yaxis.get_major_formatter()
    plain_numbers(axis.yaxis)
    assert axis.yaxis.get_major_formatter() is before


def test_colours_are_told_apart_in_grey() -> None:
    """Line and alarm differ in lightness too, for print and for every kind of colour vision."""

    def lightness(color: str) -> float:
        red, green, blue = to_rgb(color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert abs(lightness(style.LINE) - lightness(style.ALARM)) > 0.05
    assert style.LINE != style.ALARM


def test_importing_figures_loads_no_matplotlib() -> None:
    """It is loaded when the first figure is drawn."""
    code = (
        "import sys, gradtrace.plots, gradtrace.plots.curves\n"
        "assert not {'matplotlib', 'torch', 'pandas'} & set(sys.modules)\n"
        "gradtrace.plots.style.new_figure(1.0)\n"
        "assert 'matplotlib' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
