"""What a study shows, in sentences and as a matrix of its pairs."""

import itertools
import statistics
from typing import Any

from cifar_flax.reports.statistics import (
    LEVEL,
    MOST_SEEDS,
    RELEVANT,
    Difference,
    detectable,
    mcnemar,
)
from cifar_flax.reports.studies import BEST, Entry, Study

SEVERAL = 10  # sentences on comparisons with a baseline; the ranking has all of them


def sentences(study: Study) -> list[str]:
    """The comparisons that matter: of neighbours in the ranking, or with the baseline.

    Those of neighbours say which entries stand apart from the one below them.
    """
    count = len(study.comparisons)
    if study.baseline is not None:
        chosen = study.comparisons[:SEVERAL]
    else:
        able = _compared(study)
        neighbours = {(id(a), id(b)) for a, b in itertools.pairwise(able)}
        chosen = [c for c in study.comparisons if (id(c[0]), id(c[1])) in neighbours]
    return [verdict(a.name, b.name, difference, count) for a, b, difference in chosen]


def verdict(first: str, second: str, found: Difference, comparisons: int) -> str:
    """A comparison in a sentence, the better one first."""
    if found.mean < 0:
        first, second = second, first
    size = abs(found.mean)
    gap = f"{points(size)} ± {points(found.half_width)} points"
    how = f"p {probability(found.adjusted_p)}, {_design(found)}"
    if found.over_images is not None:
        how += f"; ± {points(found.over_images)} for other test images, too"
    if found.shown:
        return f"{first} beats {second} by {gap} ({how})."
    text = f"No difference is shown between {first} and {second}: {gap} ({how})."
    return f"{text} {_plan(found, comparisons)}"


def _design(found: Difference) -> str:
    if found.test == "paired":
        return f"{found.counts[0]} pairs of seeds"
    first, second = found.counts
    if first == second:
        return f"{first} seeds each, Welch's test"
    return f"{first} and {second} seeds, Welch's test"


def _plan(found: Difference, comparisons: int) -> str:
    """How many seeds would show half a point, and the gap that was observed."""
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
    return f"{low:,}" if low == high else f"{low:,}, up to {high:,}"


def what_can_be_shown(study: Study) -> str | None:
    """The size of a difference that the number of seeds and of comparisons can show."""
    spreads = [found.spread for _, _, found in study.comparisons if found.spread > 0]
    if not spreads:
        return None
    seeds = min(min(found.counts) for _, _, found in study.comparisons)
    comparisons = len(study.comparisons)
    size = detectable(statistics.median(spreads), seeds, LEVEL / comparisons)
    kind = "comparisons" if study.baseline is not None else "pairs"
    number = f"{comparisons:,} {kind}" if comparisons > 1 else f"one {kind[:-1]}"
    return (
        f"With {seeds} seeds and {number}, a difference of {points(size)} points is "
        "shown with 80 % probability, going by the median deviation of these pairs; "
        "of smaller ones a report like this often says nothing."
    )


def basis(study: Study) -> str:
    """Which interval stands in the sentences and the matrix, and how p is adjusted."""
    count = len(study.comparisons)
    if study.baseline is not None:
        of = f"{count:,} comparisons with {study.baseline.name}"
    else:
        of = f"{count:,} pairs" + (f" of the best {BEST}" if study.is_large else "")
    adjusted = (
        f"p is adjusted for {of} (Holm)" if count > 1 else "p is that of one pair"
    )
    return (
        "A difference is shown where p is below 0.05; "
        f"{adjusted}. The interval of a difference is the 95 % interval of that "
        f"comparison alone, over seeds, given {given(study)}."
    )


def given(study: Study) -> str:
    """What is the same for all seeds, and so not covered by an interval over them."""
    varied = [entry.first.settings.get("seeds_vary") or [] for entry in study.entries]
    fixed = [
        name for name in ("rate", "split") if not all(name in those for those in varied)
    ]
    if not fixed:
        return "this test set; rate and split are those of each seed"
    if len(fixed) == 2:
        return "this rate, split and test set"
    other = "split" if fixed == ["rate"] else "rate"
    return f"this {fixed[0]} and test set; the {other} is that of each seed"


def matrix(study: Study) -> dict[str, Any]:
    """The pairs of the compared entries.

    Returns:
      ``names``, and ``rows`` of a cell a column: None on the diagonal, else ``points``
      (of the row's entry over the column's), ``shown``, ``share`` of the largest
      difference, in [-1, 1], and ``title``, its sentence.
    """
    if study.baseline is not None or len(study.comparisons) < 2:
        return {"names": [], "rows": []}
    count = len(study.comparisons)
    most = max(abs(found.mean) for _, _, found in study.comparisons) or 1.0
    cells = {}
    for first, second, found in study.comparisons:
        text = verdict(first.name, second.name, found, count)
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
    """For the ``id`` of each entry its difference from the baseline, in points."""
    if study.baseline is None:
        return {}
    return {
        id(first): f"{100 * found.mean:+.2f} ± {100 * found.half_width:.2f}"
        f" (p {probability(found.adjusted_p)})"
        for first, _, found in study.comparisons
    }


def cautions(study: Study) -> list[str]:
    """What a reader of the ranking must know."""
    texts = [text for text in (what_can_be_shown(study),) if text]
    texts += _of_divergence(study)
    if study.baseline is not None:
        texts.append(_outcomes(study))
    elif study.is_large:
        texts.append(
            f"The best {BEST} of {len(study.entries):,} are chosen by the same test "
            "accuracies that are shown here; with new seeds they are likely to come "
            "out lower."
        )
    texts += _of_tuning(study)
    epochs = {entry.first.result.epochs for entry in study.entries}
    if len(epochs) > 1:
        texts.append(
            f"They trained for {min(epochs):g} to {max(epochs):g} epochs: this ranks "
            "recipes, not architectures."
        )
    return texts + _of_single_seeds(study)


def _of_divergence(study: Study) -> list[str]:
    named = study.shown if study.is_large else study.entries
    texts = [
        f"{entry.name}: {len(entry.diverged)} of {len(entry.seeds)} seeds diverged "
        f"({', '.join(map(str, entry.diverged))}). "
        + (
            "It has no accuracy."
            if not entry.accuracies
            else f"Accuracy over the finished ones {100 * entry.mean:.2f} %, over all "
            f"{100 * entry.mean_of_all:.2f} %, one that diverged counting as 0. It is "
            "ranked last and compared with none; a lower rate would say more."
        )
        for entry in named
        if entry.diverged
    ]
    others = sum(1 for entry in study.entries if entry.diverged) - len(texts)
    if others:
        noun = "configuration" if others == 1 else "configurations"
        texts.append(f"Seeds of {others:,} other {noun} diverged.")
    return texts


def _of_tuning(study: Study) -> list[str]:
    if study.apart:
        how = f" (told apart by {', '.join(study.compared)}, too)" * bool(
            study.compared
        )
        return [
            f"The ranking holds the setting of each model{how} that is best on the "
            f"validation split. The {len(study.apart):,} that are not ranked "
            "are listed below it. "
            "--compare=SETTING compares the values of a setting as well."
        ]
    models = [
        tuple(map(str, map(e.first.settings.get, ("model", "model_args"))))
        for e in study.entries
    ]
    tuned = len(models) > len(set(models)) and not study.compared
    if tuned and study.baseline is None:
        return [
            "There is no validation split to choose a model's setting by, so that all "
            "are ranked; the best of several is flattered by its choice."
        ]
    return []


def _outcomes(study: Study) -> str:
    """How many entries are better than the baseline, and how many are worse."""
    assert study.baseline is not None
    gaps = [found.mean for _, _, found in study.comparisons if found.shown]
    better, count = sum(gap > 0 for gap in gaps), len(study.comparisons)
    if not count:
        return (
            f"Nothing is compared with {study.baseline.name}: a comparison needs two "
            "seeds or more of each, none of which diverged."
        )
    noun = "configuration" if count == 1 else "configurations"
    return (
        f"Of {count:,} {noun} compared with {study.baseline.name}, {better:,} shown to "
        f"be better, {len(gaps) - better:,} shown to be worse, {count - len(gaps):,} "
        "without a shown difference."
    )


def _of_single_seeds(study: Study) -> list[str]:
    """One seed ranks nothing; what two networks of one seed each have in common."""
    single = [e for e in study.shown if len(e.accuracies) == 1 and not e.diverged]
    if not single:
        return []
    names = ", ".join(entry.name for entry in single)
    texts = [
        f"One seed each, which ranks nothing: {names}. The interval beside such an "
        "accuracy is over the test images; another seed may lie outside it."
    ]
    if len(single) > 1:
        first, second = single[:2]
        p = mcnemar(first.right[0], second.right[0])
        texts.append(
            f"These two networks of {first.name} and {second.name} differ by "
            f"{points(abs(first.mean - second.mean))} points on these images "
            f"(McNemar's test: p {probability(p)}). It says nothing of other seeds: "
            "two seeds of one net often differ as much."
        )
    return texts


def _compared(study: Study) -> list[Entry]:
    """The ranked entries that a comparison is of."""
    there = {id(e) for pair in study.comparisons for e in pair[:2]}
    return [entry for entry in study.entries if id(entry) in there]


def points(share: float) -> str:
    """A share in points, with a digit more where it is small."""
    return f"{100 * share:.1f}" if 100 * share >= 0.095 else f"{100 * share:.2f}"


def probability(p: float) -> str:
    """What follows the letter p."""
    return f"= {p:.3f}" if p >= 0.001 else "< 0.001"
