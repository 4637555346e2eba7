"""The figures of a report, as SVG that takes the colours of the page around it."""

import contextlib
import io
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cifar_flax.reports.range_curve import RangeResult
from cifar_flax.reports.runs import Entry
from cifar_flax.reports.statistics import ci95_of_mean

# Okabe and Ito's colours that show on light and on dark ground.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8C6BB1")
LINES = ("-", "--", "-.", ":")

MAX_NAME = 50  # characters of an entry's name in a figure

# Stands for the colour of the text around the figure, which SVG calls currentColor.
_INK = "#123456"

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "legend.frameon": False,
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        _INK,
    ),
}


def style_of(number: int) -> dict[str, Any]:
    """Colour and line of an entry; both differ, for those who see no colours."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
    }


@contextlib.contextmanager
def _drawing(width: float, height: float) -> Iterator[tuple[Axes, list[str]]]:
    """A figure to draw in.

    Yields:
      Its axes, and a list that holds the SVG afterwards.
    """
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The reader's browser has other fonts.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure = Figure(figsize=(width, height), layout="constrained")
        svg: list[str] = []
        yield figure.subplots(), svg
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Only what is referred to needs a name, and names must be unique on the page.
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    svg.append(text)


def trade_off(
    entries: list[Entry],
    cost: Callable[[Entry], float],
    label: str,
    most_names: int | None = None,
) -> str:
    """Accuracy against a cost, with the Pareto front.

    Args:
      entries: of a study; those whose cost is not known, and so 0, are left out.
      cost: of an entry.
      label: of the axis.
      most_names: if given, only this many entries have a name and an interval: the
        most accurate of the front. The others are dots.
    """
    numbered = [(i, entry) for i, entry in enumerate(entries) if cost(entry) > 0]
    entries = [entry for _, entry in numbered]
    front = pareto_front(entries, cost)
    with _drawing(4.6, 3.4) as (axis, svg):
        if most_names is not None:
            named = front[-most_names:]
            dots = [entry for entry in entries if entry not in named]
            axis.scatter(
                [cost(entry) for entry in dots],
                [100 * entry.mean for entry in dots],
                s=8,
                color=_INK,
                alpha=0.3,
                linewidths=0,
            )
            numbered = list(enumerate(named))
        for number, entry in numbered:
            axis.errorbar(
                cost(entry),
                100 * entry.mean,
                100 * entry.half_width,
                marker="o",
                capsize=3,
                color=style_of(number)["color"],
            )
            axis.annotate(
                _plain(entry.name),
                (cost(entry), 100 * entry.mean),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=9,
            )
        axis.plot(
            [cost(entry) for entry in front],
            [100 * entry.mean for entry in front],
            color=_INK,
            linewidth=0.8,
            linestyle=":",
            zorder=0,
        )
        axis.set(xscale="log", xlabel=label, ylabel="test accuracy, %")
        axis.margins(0.25, 0.15)
        low, high = axis.get_ylim()
        axis.set_ylim(max(low, 0), min(high, 100))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.xaxis.set_minor_locator(NullLocator())
    return svg[0]


def pareto_front(entries: list[Entry], cost: Callable[[Entry], float]) -> list[Entry]:
    """The entries that none beats in accuracy at no more cost, cheapest first."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (cost(entry), -entry.mean)):
        if not front or entry.mean > front[-1].mean:
            front.append(entry)
    return front


def learning_curves(entries: list[Entry], name: str, label: str) -> str | None:
    """A column of the metrics over the epochs: mean, and 95 % interval over seeds.

    Args:
      entries: of a study.
      name: of the column.
      label: of the axis.

    Returns:
      None where no entry has that column.
    """
    percent = 100 if "accuracy" in name else 1
    found = False
    with _drawing(7.0, max(3.6, _legend_height(entries))) as (axis, svg):
        for number, entry in enumerate(entries):
            epochs, values = entry.curve(name)
            if not len(values):
                continue
            found = True
            mean = percent * values.mean(0)
            axis.plot(epochs, mean, label=_plain(entry.name), **style_of(number))
            half = [percent * (ci95_of_mean(v) or 0) for v in values.T]
            axis.fill_between(
                epochs,
                mean - half,
                mean + half,
                color=style_of(number)["color"],
                alpha=0.15,
                linewidth=0,
            )
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if found:
            _legend(axis)
    return svg[0] if found else None


def schedules(entries: list[Entry]) -> str | None:
    """The learning rate over the epochs, as recorded.

    Returns:
      None where no entry has it.
    """
    recorded = [entry.first.config.schedule for entry in entries]
    if not any(recorded):
        return None
    with _drawing(7.0, max(2.6, _legend_height(entries))) as (axis, svg):
        for number, (entry, schedule) in enumerate(zip(entries, recorded, strict=True)):
            if schedule is not None:
                name = _plain(entry.name)
                epochs, rates = schedule.epochs, schedule.rates
                axis.plot(epochs, rates, label=name, **style_of(number))
        axis.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))
        _legend(axis)
    return svg[0]


def range_test(entry: Entry) -> str | None:
    """The curve that ``--lr=auto`` read the rate off; None where there is none."""
    record = entry.first.range_test
    if record is None:
        return None
    with _drawing(7.0, 3.4) as (axis, svg):
        RangeResult.from_record(record).plot(axis)
    return svg[0].replace("#000000", "currentColor")


def _plain(text: str) -> str:
    """A text that Matplotlib does not take for a formula, all of it visible, short."""
    visible = "".join(c if c.isprintable() else " " for c in text)
    if len(visible) > MAX_NAME:
        half = (MAX_NAME - 3) // 2
        visible = f"{visible[:half]}...{visible[-half:]}"
    return visible.replace("$", r"\$")


def _legend_height(entries: list[Entry]) -> float:
    """Inches that the legend of these takes; without room for it nothing is drawn."""
    return 0.5 + 0.19 * len(entries)


def _legend(axis: Axes) -> None:
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
