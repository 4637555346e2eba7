"""The figures of a report."""

from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from cifar_flax.analysis.range_curve import RangeResult
from cifar_flax.analysis.statistics import Difference, ci95_of_mean
from cifar_flax.reports.columns import Column
from cifar_flax.reports.drawing import (
    COLOURS,
    Chart,
    plain,
    set_decades,
    style_of,
    within_percent,
)
from cifar_flax.reports.entries import Entry


def ranking(entries: list[Entry], by: Column | None = None) -> Chart:
    """Makes a chart of what ranks entries with its intervals, usually the accuracy.

    Each model has a colour; above are the data set and the numbers of seeds.
    """
    entries = [e for e in entries if (by.values(e) if by else e.accuracies)]
    colour = _colours(entries)
    names = [f"{n}  {plain(e.name)}" for n, e in enumerate(entries, start=1)]
    label = "test accuracy, %" if by is None else plain(by.heading)

    def draw(axis: Axes) -> None:
        for number, entry in enumerate(entries):
            axis.errorbar(
                _centre(entry, by),
                number,
                xerr=_sides(entry, by),
                marker="o",
                clip_on=False,  # a marker at 100 % is whole
                capsize=3,
                color=colour[entry.first.result.model],
            )
        if by is None or by.is_share:
            low, high = axis.get_xlim()
            axis.set_xlim(max(low, 0), min(high, 100))
        if entries:
            axis.set_title(_data_and_seeds(entries), loc="left")
        axis.set_yticks(range(len(entries)), names)
        axis.set_ylim(len(entries) - 0.5, -0.5)
        axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axis.set_xlabel(label)

    most = max((1 + name.count("\n") for name in names), default=1)
    height = 1.1 + (0.12 + 0.16 * most) * len(entries)
    title = "Test accuracies with intervals"
    if by is not None:
        title = f"Intervals of {by.words}"
    return Chart("ranking", title, (5.6, height), draw)


def _colours(entries: list[Entry]) -> dict[str, str]:
    """Returns the colour of each model."""
    models = dict.fromkeys(entry.first.result.model for entry in entries)
    return {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(models)}


def _data_and_seeds(entries: list[Entry]) -> str:
    counts = sorted({len(entry.accuracies) for entry in entries})
    least, most = counts[0], counts[-1]
    seeds = f"{most} {'seed' if most == 1 else 'seeds'}"
    seeds = seeds if least == most else f"{least} to {seeds}"
    return plain(f"{entries[0].first.config.dataset.name}, {seeds}")


def _unit(by: Column | None) -> float:
    """Returns the factor by which values are shown; shares are in per cent."""
    return 100 if by is None or by.is_share else 1


def _centre(entry: Entry, by: Column | None) -> float:
    """Returns the mean of an entry as it is shown."""
    mean = entry.mean if by is None else by.mean(entry)
    return np.nan if mean is None else _unit(by) * mean


def _sides(entry: Entry, by: Column | None = None) -> list[list[float]]:
    """Returns the two sides of an entry's interval as they are shown, [2, 1]."""
    mean, ends = _centre(entry, by), by.interval(entry) if by else entry.interval
    low, high = (_unit(by) * end for end in ends) if ends else (mean, mean)
    return [[max(0, mean - low)], [max(0, high - mean)]]


def trade_off(
    name: str,
    entries: list[Entry],
    cost: Callable[[Entry], float],
    label: str,
    most_named: int | None = None,
) -> Chart:
    """Makes a chart of accuracy against a cost, with the Pareto front.

    Each model has a colour, that of the ranking.

    Args:
      name: name of the chart.
      entries: of a study, in the order of its ranking. Entries without an accuracy, or
        whose cost is unknown and therefore 0, are left out.
      cost: returns the cost of an entry.
      label: label of the axis.
      most_named: if given, only this many entries have a number and an interval: the
        most accurate ones of the front. The others are dots.
    """
    ranked = _numbered(entries, lambda entry: cost(entry) > 0 and entry.accuracies)
    colour = _colours(entries)
    front = pareto_front([entry for _, entry in ranked], cost)
    named = ranked
    if most_named is not None:
        best = {id(entry) for entry in front[-most_named:]}
        named = [pair for pair in ranked if id(pair[1]) in best]

    def draw(axis: Axes) -> None:
        dots = [pair[1] for pair in ranked if pair not in named]
        heights = [100 * entry.mean for entry in dots]
        axis.scatter([cost(e) for e in dots], heights, s=8, color="0.5", alpha=0.5)
        for _, entry in named:
            axis.errorbar(
                cost(entry),
                100 * entry.mean,
                _sides(entry),
                marker="o",
                clip_on=False,  # a marker at 100 % is whole
                capsize=3,
                color=colour[entry.first.result.model],
            )
        heights = [100 * entry.mean for entry in front]
        axis.plot([cost(e) for e in front], heights, ":", color="0.5", zorder=0)
        axis.set(xscale="log", xlabel=label, ylabel="test accuracy, %")
        axis.margins(0.15, 0.15)
        within_percent(axis)
        set_decades(axis)
        _put_numbers(axis, [(n, cost(e), 100 * e.mean) for n, e in named])

    return Chart(name, f"Test accuracy against {label}", (4.6, 3.4), draw)


def _put_numbers(axis: Axes, numbered: list[tuple[int, float, float]]) -> None:
    """Writes numbers beside points, each where it covers the least."""
    figure: Any = axis.figure
    figure.draw_without_rendering()  # the layout determines the positions of points
    scale = figure.dpi / 72
    at = [axis.transData.transform(point) / scale for _, *point in numbered]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in at]
    for (number, x, y), place in zip(numbered, at, strict=True):
        boxes = {
            (dx, dy): _box(place, len(str(number)), dx, dy)
            for dy in (5, -5, 17, -17, 29, -29)
            for dx in (6, -6)
        }
        dx, dy = min(boxes, key=lambda to: boxes[to].count_overlaps(taken))
        taken.append(boxes[dx, dy])
        axis.annotate(
            str(number),
            (x, y),
            xytext=(dx, dy),
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="bottom" if dy > 0 else "top",
            fontsize=matplotlib.rcParams["legend.fontsize"],
        )


def _box(at: Any, characters: int, dx: int, dy: int) -> Bbox:
    """Returns the box of a text, in points."""
    width, height = 7 * characters, 11
    left = at[0] + dx - (width if dx < 0 else 0)
    low = at[1] + dy - (height if dy < 0 else 0)
    return Bbox.from_bounds(left, low, width, height)


def pareto_front(entries: list[Entry], cost: Callable[[Entry], float]) -> list[Entry]:
    """Returns the entries of the Pareto front, the cheapest first.

    No other entry is more accurate at the same or a lower cost.
    """
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (cost(entry), -entry.mean)):
        if not front or entry.mean > front[-1].mean:
            front.append(entry)
    return front


def looks(
    names: tuple[str, str], course: list[Difference], ahead: list[tuple[int, float]]
) -> Chart:
    """Makes a chart of a difference against the number of seeds, with its bounds.

    A difference outside of the bounds is shown. They are as far from 0 as the interval
    of that look is wide, so the interval excludes 0 exactly there.

    Args:
      names: of the two entries; the difference is the first minus the second.
      course: the difference at each look, with the interval for all looks.
      ahead: number of seeds and half the width of the interval, as a share, of looks
        that may still come.
    """
    counts = [min(found.counts) for found in course]
    means = [100 * found.mean for found in course]
    halves = [100 * found.half_width for found in course]
    bounds = [*zip(counts, halves, strict=True)]
    bounds += [(count, 100 * half) for count, half in ahead]
    # The bounds of the first looks may be far outside.
    ends = abs(means[-1]) + halves[-1], np.median([half for _, half in bounds])
    top = 1.3 * max(*map(abs, means), *ends)

    def draw(axis: Axes) -> None:
        x, y = np.array(bounds).T
        for sign in (1, -1):
            label = "bounds" if sign > 0 else None
            axis.plot(x, sign * y, "--", color=COLOURS[1], label=label)
        axis.fill_between(x, -y, y, color=COLOURS[1], alpha=0.1, linewidth=0)
        style: Any = {"marker": "o", "capsize": 3, "color": COLOURS[0]}
        axis.errorbar(counts, means, halves, label="difference, interval", **style)
        axis.axhline(0, color="0.5", linewidth=1)
        axis.set(xlabel="seeds of each", ylabel="points", ylim=(-top, top))
        axis.set_title(plain(" minus ".join(names), 44))
        axis.set_xlim(min(x) - 1, max(x) + 1)
        if len(x) < 12:
            axis.set_xticks(x)
        axis.figure.legend(loc="outside lower center", ncols=2)

    label = "The leading difference against the number of seeds, with its bounds"
    return Chart("looks", label, (5.6, 3.4), draw)


def learning_curves(entries: list[Entry], name: str, label: str) -> Chart | None:
    """Makes a chart of a metric over the epochs: mean and 95 % interval over seeds.

    Args:
      entries: of a study.
      name: name of the metric.
      label: label of the axis.

    Returns:
      The chart; None if no entry has this metric.
    """
    percent = 100 if "accuracy" in name else 1
    numbered = _numbered(
        entries, lambda e: e.first.source is None and len(e.curve(name)[1])
    )
    if not numbered:
        return None

    def draw(axis: Axes) -> None:
        for number, entry in numbered:
            epochs, values = entry.curve(name)
            mean = percent * values.mean(0)
            (line,) = _plot(axis, number, entry, epochs, mean)
            half = [percent * (ci95_of_mean(v) or 0) for v in values.T]
            top = 100 if "accuracy" in name else np.inf
            ends = np.clip([mean - half, mean + half], 0, top)
            colour = line.get_color()
            band = axis.fill_between(epochs, *ends, color=colour, alpha=0.15)
            band.set(gid=f"band-{number}", linewidth=0)
        axis.set(xlabel="epoch", ylabel=label)
        if percent == 100:
            within_percent(axis)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))

    keys = [(number, entry.name) for number, entry in numbered]
    title = f"{' '.join(label.split())} over the epochs"
    return Chart(name, title, (5.6, 3.2), draw, keys)


def schedules(entries: list[Entry]) -> Chart | None:
    """Makes a chart of the recorded learning rates over the epochs.

    Returns:
      The chart; None if no entry has a recorded schedule.
    """
    numbered = _numbered(entries, lambda entry: entry.first.config.schedule is not None)
    if not numbered:
        return None

    def draw(axis: Axes) -> None:
        for number, entry in numbered:
            schedule: Any = entry.first.config.schedule
            _plot(axis, number, entry, schedule.epochs, schedule.rates)
        axis.set(xlabel="epoch", ylabel="learning rate", ylim=(0, None))

    keys = [(number, entry.name) for number, entry in numbered]
    label = "Learning rates over the epochs"
    return Chart("learning_rate", label, (5.6, 2.4), draw, keys)


def _numbered(
    entries: list[Entry], chosen: Callable[[Entry], object]
) -> list[tuple[int, Entry]]:
    """Returns the chosen entries with their places in the ranking."""
    return [pair for pair in enumerate(entries, start=1) if chosen(pair[1])]


def _plot(axis: Axes, number: int, entry: Entry, x: Any, y: Any) -> list[Line2D]:
    text = f"{number}  {plain(entry.name)}"
    style = style_of(number - 1)
    style["clip_on"] = False  # a line at 100 % is whole
    return axis.plot(x, y, label=text, gid=f"line-{number}", **style)


def range_test(entry: Entry) -> Chart | None:
    """Makes a chart of the range test of ``--lr=auto``; None if there was none."""
    record = entry.first.range_test
    if record is None:
        return None
    label = "Loss against learning rate in the range test"
    draw = RangeResult.from_record(record).plot
    return Chart("range_test", label, (5.6, 4.0), draw)
