"""What the page tells of searches: which budget finds what, in words and figures."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from cifar_flax.analysis.best_of import difference_of
from cifar_flax.reports.drawing import (
    Chart,
    plain,
    set_decades,
    style_of,
    within_percent,
)
from cifar_flax.reports.searches import Searched, TrialRow
from cifar_flax.reports.studies import Study

# With more models than this, only the first is compared with each of the others.
MOST_PAIRED = 4

BEST_SHOWN = 5  # trials of each model in the table

# Numbers of trials in the table, and the last one.
_LADDER = [digit * 10**power for power in range(4) for digit in (1, 2, 5)]


def search_of(study: Study) -> dict[str, Any] | None:
    """Returns what the pages show of the searches of a study; None without one."""
    models = _models(study)
    if not models:
        return None
    longest = max(len(one.over) for one in models)
    ladder = _ladder(longest)
    return {
        "models": models,
        "kinds": {one.kind for one in models},
        "sentences": [*map(_told, models), *_effort(models), *_turns(models)],
        "ladder": [(n, [_cell(one, n) for one in models]) for n in ladder],
        "trials": [_row(one, trial) for one in models for trial in _best(one)],
    }


def _ladder(longest: int) -> list[int]:
    return [n for n in _LADDER if n < longest] + [longest]


def _models(study: Study) -> list[Searched]:
    """Returns the models with a trial that has ended, the best one first."""
    able = [one for one in study.searched if one.over]
    return sorted(able, key=lambda one: -one.curve.best[-1])


def _told(one: Searched) -> str:
    """Says how a search of a model went, and with which seeds it is ranked."""
    counts = {
        word: sum(trial.status.startswith(word) for trial in one.trials)
        for word in ("pruned", "diverged", "not finished")
    }
    words = [f"{one.name}: {len(one.trials)} of {one.count} trials"]
    words += [f"{count} {word}" for word, count in counts.items() if count]
    text = ", ".join(words)
    if one.best is None:
        return f"{text}. None is done, so none is chosen."
    best = f"trial {one.chosen} ({_values(one.best)})"
    text = f"{text}. By validation it chose {best} with {_points(one.best.value)} %"
    if one.fresh:
        return f"{text}; its {one.fresh} fresh seeds alone are ranked."
    return (
        f"{text}. The seeds that chose it are ranked, too, so its accuracy is too high "
        "on average; sweep --fresh_seeds=5 trains it anew."
    )


def _effort(models: Sequence[Searched]) -> list[str]:
    """Says if models were searched with unequal effort."""
    counts = {one.name: len(one.over) for one in models}
    if len(set(counts.values())) < 2:
        return []
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [f"The trials so far are unequal: {each}. Compare at the same number."]


def _turns(models: Sequence[Searched]) -> list[str]:
    """Says at which budget the order of two models turns."""
    independent = [one for one in models if one.kind == "random" and len(one.over) > 1]
    pairs = list(itertools.combinations(independent, 2))
    if len(independent) > MOST_PAIRED:
        pairs = [pair for pair in pairs if pair[0] is independent[0]]
    return [sentence for pair in pairs for sentence in _turn(*pair)]


def _turn(first: Searched, second: Searched) -> list[str]:
    ours = {trial.number: trial.reached or 0.0 for trial in first.over}
    theirs = {trial.number: trial.reached or 0.0 for trial in second.over}
    shared = [number for number in ours if number in theirs]
    if len(shared) < 2:
        return []
    curve = difference_of([ours[n] for n in shared], [theirs[n] for n in shared])
    assert curve.low is not None
    assert curve.high is not None
    ends = f"{_points(curve.low[-1])} to {_points(curve.high[-1])}"
    settled = curve.low[-1] > 0 or curve.high[-1] < 0
    order = _order(first, second, np.arange(1, len(shared) + 1), curve.best, _trials)
    text = (
        f"At equal trials, {order}. With {_trials(len(shared))} the difference is "
        f"{_points(curve.best[-1])} points ({ends})"
        f"{'' if settled else ', which does not settle the order'}."
    )
    hours = [one.hours for one in (first, second)]
    low, high = max(h[0] for h in hours), min(h[-1] for h in hours)
    if low >= high:
        return [text]
    grid = np.geomspace(low, high, 200)
    bests = [
        np.interp(grid, h, one.curve.best)
        for h, one in zip(hours, (first, second), strict=True)
    ]
    order = _order(first, second, grid, bests[0] - bests[1], _time)
    return [text, f"At equal time of training, {order}."]


def _order(
    first: Searched,
    second: Searched,
    budgets: np.ndarray,
    differences: np.ndarray,
    words: Callable[[float], str],
) -> str:
    """Says who is ahead at which budgets."""
    signs = np.sign(differences)
    names = {1.0: first.name, -1.0: second.name, 0.0: "neither"}
    begins = [0, *(np.flatnonzero(np.diff(signs)) + 1)]
    if len(begins) > 1:
        parts = [f"{names[signs[b]]} from {words(budgets[b])} on" for b in begins]
        pair = f"{first.name} and {second.name}"
        return f"the order of {pair} turns with the budget: {', '.join(parts)}"
    most = f"at every budget up to {words(budgets[-1])}"
    if signs[0] == 0:
        return f"{first.name} and {second.name} are equal {most}"
    other = second if signs[0] > 0 else first
    return f"{names[signs[0]]} is expected to be ahead of {other.name} {most}"


def _trials(count: float) -> str:
    return f"{count:.0f} trial{'' if count == 1 else 's'}"


def _time(hours: float) -> str:
    unit, _, name = _unit(hours)
    return f"{hours / unit:.3g} {name}"


def _unit(hours: float) -> tuple[float, str, str]:
    """Returns the unit for a time: its length in hours, its name and its symbol."""
    if hours >= 1:
        return 1, "hours", "h"
    return (1 / 60, "minutes", "min") if hours >= 1 / 60 else (1 / 3600, "seconds", "s")


def _points(value: float | None) -> str:
    return f"{100 * (value or 0.0):.1f}"


def _values(trial: TrialRow) -> str:
    return ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in trial.values.items()
    )


def _cell(one: Searched, count: int) -> str:
    """Returns the best of a number of trials with its interval and its hours."""
    if count > len(one.over):
        return "-"
    best, low, high = one.curve
    text = _points(best[count - 1])
    if low is not None and high is not None:
        text += f" ({_points(low[count - 1])} to {_points(high[count - 1])})"
    return f"{text}, {_time(one.hours[count - 1])}"


def _best(one: Searched) -> list[TrialRow]:
    ordered = sorted(one.over, key=lambda trial: (-(trial.reached or 0), trial.number))
    return ordered[:BEST_SHOWN]


def _row(one: Searched, trial: TrialRow) -> dict[str, Any]:
    return {
        "model": one.name,
        "trial": trial,
        "values": _values(trial),
        "validation": _points(trial.reached),
    }


def search_charts(study: Study) -> list[Chart]:
    """Makes charts of the best of n trials against n and against hours."""
    models = _models(study)
    longest = max((len(one.over) for one in models), default=0)
    if longest < 2:
        return []
    keys = [(number, one.name) for number, one in enumerate(models, start=1)]
    unit, time, _ = _unit(max(one.hours[-1] for one in models))
    # The last number is always there; those before it need room.
    numbers = [n for n in _ladder(longest) if n == longest or 1.3 * n < longest]

    def chart(
        name: str,
        label: str,
        of: Callable[[Searched], np.ndarray],
        ticks: Sequence[int] | None = None,
    ) -> Chart:
        def draw(axis: Axes) -> None:
            for number, one in enumerate(models, start=1):
                _plot(axis, number, one, of(one))
            axis.set(xlabel=label, ylabel="validation accuracy of the\nbest trial, %")
            within_percent(axis)
            axis.set_xscale("log")
            set_decades(axis)
            if ticks is not None:
                axis.set_xticks(ticks)

        title = f"Validation accuracy of the best trial against {label}"
        return Chart(name, title, (5.6, 3.2), draw, keys)

    trials = chart(
        "search_trials", "trials", lambda one: np.arange(1, len(one.over) + 1), numbers
    )
    hours = chart("search_hours", f"{time} of training", lambda one: one.hours / unit)
    return [trials, hours]


def _plot(axis: Axes, number: int, one: Searched, x: np.ndarray) -> None:
    curve, style = one.curve, style_of(number - 1)
    steps = "default" if one.kind == "random" else "steps-post"
    axis.plot(
        x,
        100 * curve.best,
        label=f"{number}  {plain(one.name)}",
        gid=f"line-{number}",
        drawstyle=steps,
        **style,
    )
    if curve.low is not None and curve.high is not None:
        ends = 100 * curve.low, 100 * curve.high
        band = axis.fill_between(x, *ends, color=style["color"], alpha=0.15)
        band.set(gid=f"band-{number}", linewidth=0)
