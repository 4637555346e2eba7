"""Draws figures for the HTML page, and as files for a screen and for a paper."""

import contextlib
import dataclasses
import io
import pathlib
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cifar_flax.files import replacing

# The colours of Okabe and Ito that are visible on a light and on a dark background.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6BB1")
LINES = ("-", "--", "-.", ":")

MAX_NAME = 26  # characters in a line of an entry's name in a figure
MAX_LINES = 4  # of a name; its middle is left out if it needs more
BANDS = 4  # number of intervals that are drawn at once; more would hide each other

# The formats of a figure's files, and the dates that would make each file another one.
_DATES: Any = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}

# Placeholder for the colour of the surrounding text, which is currentColor in SVG.
_INK = "#123456"

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.titlesize": 9,
    "legend.fontsize": 9,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
}

# One column of a paper in inches, and how a figure is drawn in it. The fonts, which
# look like Times, come with Matplotlib, so that the file is the same everywhere.
COLUMN = 3.3
_PAPER: Any = {
    "pdf.fonttype": 42,  # many journals refuse fonts of type 3
    "font.family": ["STIXGeneral", "DejaVu Serif"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 8,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1,
    "lines.markersize": 4,
}
_PAPER_SPACING = 1.0  # of lines; those of this font are higher than others

_INKED = (
    *("text.color", "axes.labelcolor", "axes.edgecolor"),
    *("xtick.color", "ytick.color", "grid.color"),
)


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure that is drawn when it is needed.

    Attributes:
      name: name of its files.
      label: description of the figure, for screen readers.
      size: width and height in inches.
      draw: draws the figure.
      keys: number and name of each entry with a line, for a legend.
    """

    name: str
    label: str
    size: tuple[float, float]
    draw: Callable[[Axes], None]
    keys: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    def svg(self) -> str:
        """Draws the figure for a page, in the colour of its text and without a legend.

        The line and the band of entry n have the classes ``line-n`` and ``band-n``.
        """
        buffer = io.StringIO()
        with self._drawn(_INK) as figure:
            figure.savefig(
                buffer, format="svg", transparent=True, metadata={"Date": None}
            )
        text = buffer.getvalue()
        text = text[text.index("<svg") :].replace(_INK, "currentColor")
        text = text.replace("#000000", "currentColor")
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
        text = re.sub(r' id="((?:line|band)-\d+)"', r' class="\1"', text)
        # Remove unused ids, because ids must be unique on the page.
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
        text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)

    def save(self, folder: pathlib.Path, prefix: str = "") -> None:
        """Writes the figure with a legend, on white, as PNG and SVG, and as PDF.

        The PDF is as wide as one column of a paper and has its fonts.
        """
        for ending, date in _DATES.items():
            with self._drawn("black", for_paper=ending == "pdf") as figure:
                # Equal ids in equal files; on a page all ids must differ.
                matplotlib.rcParams["svg.hashsalt"] = self.name
                self._complete(figure)
                if ending == "pdf":
                    for text in figure.findobj(Text):
                        text.set_linespacing(_PAPER_SPACING)
                with replacing(folder / f"{prefix}{self.name}.{ending}") as file:
                    figure.savefig(file, format=ending, dpi=200, metadata=date)

    def _complete(self, figure: Figure) -> None:
        """Adds a legend, and hides the bands that would hide each other."""
        (axis,) = figure.axes
        for band in axis.collections:
            word, _, number = (band.get_gid() or "").partition("-")
            band.set_visible(word != "band" or int(number) <= BANDS)
        own = axis.get_legend()
        if own is not None:  # it is as wide as a screen's figure
            own.remove()
        elif not self.keys:
            return
        handles, texts = axis.get_legend_handles_labels()
        size = matplotlib.rcParams["legend.fontsize"] / 72
        lines = [line for text in texts for line in text.split("\n")]
        wide = (5 + 0.53 * max(map(len, lines))) * size  # a column of the legend
        columns = 2 if 2 * wide < figure.get_figwidth() else 1
        heights = [(0.6 + 1.2 * (1 + text.count("\n"))) * size for text in texts]
        first = -(-len(heights) // columns)  # the first column may have one more
        more = max(sum(heights[:first]), sum(heights[first:]))
        figure.set_figheight(figure.get_figheight() + more)
        figure.legend(handles, texts, loc="outside lower center", ncols=columns)

    @contextlib.contextmanager
    def _drawn(self, ink: str, for_paper: bool = False) -> Iterator[Figure]:
        """Yields the figure within the settings in which it must be saved."""
        style = _STYLE | dict.fromkeys(_INKED, ink)
        width, height = self.size
        if for_paper:  # as high as its fonts need, and not as its width would give
            height *= _PAPER["font.size"] / _STYLE["font.size"]
            width, style = COLUMN, style | _PAPER
        # Not the user's matplotlibrc.
        own = matplotlib.style.context(["default", style])
        with own, warnings.catch_warnings():
            # The reader's browser has its own fonts.
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure = Figure(figsize=(width, height), layout="constrained")
            self.draw(figure.subplots())
            yield figure


def style_of(number: int) -> dict[str, Any]:
    """Returns colour and line style of an entry; both differ, for colour blindness."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
    }


def within_percent(axis: Axes) -> None:
    """Limits a vertical axis of shares in per cent to 0 and 100."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, 0), min(high, 100))


def set_decades(axis: Axes) -> None:
    """Sets ticks of a logarithmic axis so that their labels have room."""
    low, high = axis.get_xlim()
    span = high / low
    if span < 4:
        axis.xaxis.set_major_locator(MaxNLocator(4))
    else:
        digits: Any = ((10, (1, 2, 3, 5, 7)), (30, (1, 2, 5)), (1000, (1, 3)))
        subs = next((subs for most, subs in digits if span < most), (1,))
        axis.xaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.xaxis.set_minor_locator(NullLocator())


def short(value: float) -> str:
    """Returns a number as short text, such as 1.5k or 2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def plain(text: str, width: int = MAX_NAME) -> str:
    """Returns text in short lines, printable, and not a formula for Matplotlib."""
    visible = "".join(c if c.isprintable() else " " for c in text)
    lines = textwrap.wrap(visible, width)
    if len(lines) > MAX_LINES:
        half = (MAX_LINES * width - 3) // 2
        lines = textwrap.wrap(f"{visible[:half]}...{visible[-half:]}", width)
    return "\n".join(lines).replace("$", r"\$")
