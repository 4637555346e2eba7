"""Says what a study shows, in sentences and as a matrix of its pairs."""

import itertools
from typing import Any

from cifar_flax.analysis.power import MOST_SEEDS
from cifar_flax.analysis.predictions import largest_class
from cifar_flax.analysis.statistics import LEVEL, RELEVANT, Difference
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.studies import BEST, Study

SEVERAL = 10  # sentences about a baseline; the ranking has all comparisons with it


def sentences(study: Study) -> list[str]:
    """Returns sentences about neighbours in the ranking, or about the baseline."""
    count = len(study.comparisons)
    if study.baseline is not None:
        chosen = study.comparisons[:SEVERAL]
    else:
        able = _compared(study)
        neighbours = {(id(a), id(b)) for a, b in itertools.pairwise(able)}
        chosen = [c for c in study.comparisons if (id(c[0]), id(c[1])) in neighbours]
    return [
        verdict(a.name, b.name, difference, count, _within(study, a, b))
        for a, b, difference in chosen
    ]


def verdict(
    first: str,
    second: str,
    found: Difference,
    comparisons: int,
    within: tuple[float, float] | None = None,
) -> str:
    """Returns a comparison as a sentence, with the better entry first.

    Args:
      first: name of an entry.
      second: name of another one.
      found: the difference of the first minus the second.
      comparisons: number of comparisons of the family.
      within: a margin as a share, and the adjusted p-value that the difference is
        within it.
    """
    if found.mean < 0:
        first, second = second, first
    size = abs(found.mean)
    gap = _gap(size, found.half_width)
    how = f"p {probability(found.adjusted_p)}, {_design(found)}"
    if found.over_images is not None:
        how += f"; ± {points(found.over_images)} including other test images"
    same = within is not None and within[1] < LEVEL
    if found.shown:
        text = f"{first} beats {second} by {gap} ({how})."
        if within is not None and same:
            text += f" The difference is within {_margin(within)}."
        return text
    if within is not None and same:
        return f"{first} and {second} are the same within {_margin(within)}: {gap}."
    text = f"No difference is shown between {first} and {second}: {gap} ({how})."
    return f"{text} {_plan(found, comparisons)}".rstrip()


def _within(study: Study, first: Entry, second: Entry) -> tuple[float, float] | None:
    """Returns the margin of a study, and the p-value that a pair is within it."""
    p = study.same.get((id(first), id(second)))
    return None if p is None or study.margin is None else (study.margin, p)


def _margin(within: tuple[float, float]) -> str:
    size, p = within
    return f"{points(size)} points (p {probability(p)})"


def _gap(size: float, half: float) -> str:
    """Returns a difference with its interval, which ends at 100 points."""
    if size + half <= 1:
        return f"{points(size)} ± {points(half)} points"
    low = max(-1.0, size - half)
    return f"{points(size)} ({100 * low:.1f} to 100) points"


def _design(found: Difference) -> str:
    looks = f", {found.looks} looks" if found.looks > 1 else ""
    return _seeds_of(found) + looks


def _seeds_of(found: Difference) -> str:
    if found.test == "paired":
        return f"{found.counts[0]} pairs of seeds"
    first, second = found.counts
    if found.test == "overlapping":
        return f"{first} and {second} seeds, {found.shared} of them shared"
    if first == second:
        return f"{first} seeds each, Welch's test"
    return f"{first} and {second} seeds, Welch's test"


def _plan(found: Difference, comparisons: int) -> str:
    """Returns how many seeds would show half a point and the observed difference."""
    if found.most is not None:  # seeds are added one after the other
        left = found.most - min(found.counts)
        return f"Up to {left} more seeds of each may show it." if left > 0 else ""
    needed = found.needed(RELEVANT, comparisons)
    text = f"Seeds to show {points(RELEVANT)} with 80 % probability: {_range(needed)}"
    if abs(found.mean) < 1e-9:
        return text + "."
    observed = found.needed(abs(found.mean), comparisons)
    return (
        f"{text}; to show the {points(abs(found.mean))} seen here: {_range(observed)}."
    )


def _range(needed: tuple[int, int] | None) -> str:
    if needed is None:
        return f"more than {MOST_SEEDS:,}"
    low, high = needed
    if low == high:
        return f"{high:,}"
    return f"{high:,} ({low:,} if the deviation is as estimated)"


def basis(study: Study) -> str:
    """Explains the intervals and p-values of the sentences and the matrix."""
    count = len(study.comparisons)
    if study.baseline is not None:
        of = f"{count:,} comparisons with {study.baseline.name}"
    else:
        of = f"{count:,} pairs" + (f" of the best {BEST}" if study.is_large else "")
    adjusted = (
        f"p is adjusted for {of} (Holm)" if count > 1 else "p is that of one pair"
    )
    text = (
        "A difference is shown if p is below 0.05; "
        f"{adjusted}. The interval of a difference is the 95 % interval of that "
        f"comparison alone, over seeds, given {given(study)}."
    )
    grown = [found for _, _, found in study.comparisons if found.most is not None]
    if not grown:
        return text
    most = max(found.most or 0 for found in grown)
    return (
        f"{text} Seeds were added after a look at the results to {len(grown):,} of "
        f"these pairs: their p and intervals hold for all looks together, up to {most} "
        "seeds."
    )


def given(study: Study) -> str:
    """Returns what all seeds share, which an interval over seeds does not cover."""
    varied = [
        entry.first.settings.get("seeds_vary") or []
        for entry in study.entries
        if entry.first.source is None
    ]
    if not varied:
        return "what all its seeds share, such as the rate, the split and the test set"
    fixed = [
        name for name in ("rate", "split") if not all(name in those for those in varied)
    ]
    if not fixed:
        return "this test set; each seed has its own rate and split"
    if len(fixed) == 2:
        return "this rate, split and test set"
    other = "split" if fixed == ["rate"] else "rate"
    return f"this {fixed[0]} and test set; each seed has its own {other}"


def ranked_by(study: Study) -> str | None:
    """Says what ranks and compares the entries, unless it is the test accuracy."""
    by = study.by
    if by is None:
        return None
    order = "lower is better" if by.lower_is_better else "higher is better"
    text = f"Ranked and compared by {by.words} ({order}), not by the test accuracy."
    if not by.is_share:
        text += " Its values are not shares, so no differences are judged."
    return text


def of_largest_class(study: Study) -> str | None:
    """Says how accurate an answer that ignores the image is, if classes are unequal."""
    largest = largest_class(study.entries[0].first.class_sizes)
    if largest is None:
        return None
    index, share = largest
    name = study.dataset.class_names[index]
    return (
        f"Always answering the largest class, {name}, would have a test accuracy of "
        f"{100 * share:.2f} %."
    )


def matrix(study: Study) -> dict[str, Any]:
    """Returns the matrix of the pairs of the compared entries.

    Returns:
      ``names``, and ``rows`` of cells. A cell is None on the diagonal. Otherwise it has
      ``points`` (row minus column), ``shown``, ``share`` of the largest difference, in
      [-1, 1], and ``title``, its sentence.
    """
    if study.baseline is not None or len(study.comparisons) < 2:
        return {"names": [], "rows": []}
    count = len(study.comparisons)
    most = max(abs(found.mean) for _, _, found in study.comparisons) or 1.0
    cells = {}
    for first, second, found in study.comparisons:
        within = _within(study, first, second)
        text = verdict(first.name, second.name, found, count, within)
        for pair, sign in (((first, second), 1), ((second, first), -1)):
            cells[tuple(map(id, pair))] = {
                "points": f"{100 * sign * found.mean:+.1f}",
                "shown": found.shown,
                "share": sign * found.mean / most,
                "title": text,
            }
    able = _compared(study)
    rows = [[cells.get((id(row), id(column))) for column in able] for row in able]
    return {"names": [entry.name for entry in able], "rows": rows}


def against_baseline(study: Study) -> dict[int, str]:
    """Returns each entry's difference from the baseline in points, by its ``id``."""
    if study.baseline is None:
        return {}
    return {
        id(first): f"{100 * found.mean:+.2f} ± {100 * found.half_width:.2f}"
        f" (p {probability(found.adjusted_p)})"
        for first, _, found in study.comparisons
    }


def about(study: Study) -> str:
    """Says which images the entries were trained and tested on, and with what."""
    data = study.dataset
    if study.version is None:
        tested = f" on {data.test_size:,} test images" if data.test_size else ""
        return f"Results made elsewhere{tested}, from {data.source}."
    devices = sorted({e.first.result.device for e in study.entries} - {""})
    return (
        f"{data.train_size:,} training, {data.val_size:,} validation and "
        f"{data.test_size:,} test images ({data.source}); cifar_flax {study.version}; "
        f"{'; '.join(devices)}."
    )


def _compared(study: Study) -> list[Entry]:
    """Returns the ranked entries that take part in a comparison."""
    there = {id(e) for pair in study.comparisons for e in pair[:2]}
    return [entry for entry in study.entries if id(entry) in there]


def points(share: float) -> str:
    """Returns a share in points, with one more digit if it is small."""
    return f"{100 * share:.1f}" if 100 * share >= 0.095 else f"{100 * share:.2f}"


def probability(p: float) -> str:
    """Returns a p-value with its relation, such as ``= 0.012``."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"
