"""Says what a study shows, in sentences and as a matrix of its pairs."""

import itertools
import statistics
from typing import Any

from cifar_flax.analysis.power import MOST_SEEDS, detectable, smallest_shown
from cifar_flax.analysis.predictions import largest_class
from cifar_flax.analysis.statistics import LEVEL, RELEVANT, Difference, mcnemar
from cifar_flax.identity import bits_that_differ, differing_parts
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.outside import about_tables
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


def what_can_be_shown(study: Study) -> str | None:
    """Returns a sentence about the smallest difference that the seeds can show."""
    found = [one for _, _, one in study.comparisons if one.spread > 0]
    spreads = [one.likely_spread for one in found]
    if not spreads:
        return None
    seeds = min(min(found.counts) for _, _, found in study.comparisons)
    comparisons = len(study.comparisons)
    size = detectable(statistics.median(spreads), seeds, LEVEL / comparisons)
    kind = "comparisons" if study.baseline is not None else "pairs"
    number = f"{comparisons:,} {kind}" if comparisons > 1 else f"one {kind[:-1]}"
    able = f"a difference of {points(size)} points" if size < 1 else "no difference"
    text = (
        f"With {seeds} seeds and {number}, this report shows {able} with 80 % "
        "probability, given the median deviation of these pairs. It often misses "
        "smaller differences."
    )
    if study.by is not None:  # it is no multiple of one image
        return text
    images = study.entries[0].first.result.test_size
    if not images:
        return text
    least = smallest_shown(images, seeds, LEVEL / comparisons)
    if least <= RELEVANT:
        return text
    what = f"differences below {points(least)} points" if least < 1 else "anything"
    return (
        f"{text} {images:,} test images are too few to judge {what}, even if all "
        f"seeds agree; {points(RELEVANT)} points need {least * images / RELEVANT:,.0f} "
        "or more."
    )


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


def cautions(study: Study) -> list[str]:
    """Returns what a reader of the ranking must know."""
    texts = [text for text in (what_can_be_shown(study),) if text]
    texts += _of_divergence(study)
    if study.baseline is not None:
        texts += [_outcomes(study), *_named_before(study)]
    elif study.is_large:
        texts.append(
            f"The best {BEST} of {len(study.entries):,} are chosen by the test "
            "accuracies that are shown here. With new seeds their accuracies are "
            "likely to be lower."
        )
    texts += _of_tuning(study) + about_tables(study.everything)
    epochs = {entry.first.result.epochs for entry in study.entries} - {0}  # not known
    if len(epochs) > 1:
        texts.append(
            f"The configurations trained for {min(epochs):g} to {max(epochs):g} "
            "epochs: this ranks recipes, not architectures."
        )
    return texts + _of_contents(study) + _of_single_seeds(study)


def _of_contents(study: Study) -> list[str]:
    """Says what differs although the settings are equal, and where seeds come from."""
    texts: list[str] = []
    alike: dict[str, list[Entry]] = {}
    for entry in study.everything:
        settings = [*sorted(entry.first.settings.items()), entry.first.source]
        alike.setdefault(repr(settings), []).append(entry)
        configs = [run.config for run in entry.runs]
        bits = dict.fromkeys(
            name for one in configs for name in bits_that_differ(one, configs[0])
        )
        if bits:
            texts.append(
                f"The seeds of {entry.name} come from runs that differ in "
                f"{', '.join(bits)}."
            )
        own = configs[0].identity
        if own is not None and own.unknown is not None:
            texts.append(
                f"{entry.name}: {own.unknown}. No other run can be known to be the "
                "same, so every such run is a configuration of its own."
            )
    for first, *others in alike.values():
        for other in others:
            parts = differing_parts(other.first.config, first.first.config)
            if parts:
                texts.append(
                    f"{first.name} and {other.name} have the same settings and differ "
                    f"in {', '.join(parts)}."
                )
    return texts


def _of_divergence(study: Study) -> list[str]:
    named = study.shown if study.is_large else study.entries
    texts = [
        f"{entry.name}: {len(entry.diverged)} of {len(entry.seeds)} seeds diverged "
        f"({', '.join(map(str, entry.diverged))}). "
        + (
            "It has no accuracy."
            if not entry.accuracies
            else f"Its accuracy is {100 * entry.mean:.2f} % over the finished seeds "
            f"and {100 * entry.mean_of_all:.2f} % over all seeds, if a diverged seed "
            "counts as 0. It is ranked last and not compared; train it at a lower rate."
        )
        for entry in named
        if entry.diverged
    ]
    others = sum(1 for entry in study.entries if entry.diverged) - len(texts)
    if others:
        noun = "configuration" if others == 1 else "configurations"
        texts.append(f"Seeds of {others:,} other {noun} also diverged.")
    return texts


def _of_tuning(study: Study) -> list[str]:
    """Says which configurations are ranked, and what choosing them does."""
    if study.chosen_by:
        seeds = ", ".join(map(str, study.chosen_by))
        text = (
            f"The seeds {seeds} chose the configuration of each model on the "
            "validation split. The ranking and all comparisons are of its other seeds."
        )
        if all(entry.validation is None for entry in study.everything):
            text = (
                f"The ranking and all comparisons are of other seeds than {seeds}. "
                "Without validation accuracies these choose nothing, and all settings "
                "of a model are ranked."
            )
        return [text, *study.notes]
    if study.apart:
        how = "".join(f" and each {name}" for name in study.compared)
        return [
            f"The ranking holds, for each model{how}, the configuration that is best "
            "on the validation split among those with the most seeds. Others "
            f"({len(study.apart):,}) are listed below it. --compare=SETTING also "
            "compares the values of a setting. The same seeds choose and are reported, "
            "so that the accuracy of the best of several is overestimated: "
            "--choose_seeds=0,1 chooses by these seeds and reports the others.",
            *study.notes,
        ]
    models = [
        tuple(map(str, map(e.first.settings.get, ("model", "model_args"))))
        for e in study.entries
    ]
    tuned = len(models) > len(set(models)) and not study.compared
    if tuned and study.baseline is None:
        return [
            "Without a validation split, all settings of a model are ranked. The best "
            "of several is overestimated, because it is chosen by its test accuracy."
        ]
    return []


def _outcomes(study: Study) -> str:
    """Returns how many entries are better than the baseline, and how many worse."""
    assert study.baseline is not None
    gaps = [found.mean for _, _, found in study.comparisons if found.shown]
    better, count = sum(gap > 0 for gap in gaps), len(study.comparisons)
    if not count:
        return (
            f"Nothing is compared with {study.baseline.name}: a comparison needs two "
            "or more seeds of each, and no seed may have diverged."
        )
    noun = "configuration" if count == 1 else "configurations"
    return (
        f"Of {count:,} {noun} compared with {study.baseline.name}, {better:,} are "
        f"shown to be better, {len(gaps) - better:,} are shown to be worse, and for "
        f"{count - len(gaps):,} no difference is shown."
    )


def _named_before(study: Study) -> list[str]:
    """Says what a baseline that was chosen by its result does to the comparisons."""
    if len(study.comparisons) < 2:
        return []
    return [
        "The comparisons hold their 5 % if the baseline was named before the results "
        "were seen. If the best of six equal configurations with five or ten seeds is "
        "named afterwards, a difference from it is shown in 8 or 9 % of studies."
    ]


def _of_single_seeds(study: Study) -> list[str]:
    """Returns cautions about entries with one seed, which cannot be ranked."""
    single = [e for e in study.shown if len(e.accuracies) == 1 and not e.diverged]
    if not single:
        return []
    names = ", ".join(entry.name for entry in single)
    texts = [
        f"One seed cannot show a rank. These configurations have only one: {names}. "
        "Their intervals are over the test images; another seed may lie outside."
    ]
    sure = [entry.right for entry in single[:2] if entry.right is not None]
    if len(sure) > 1 and study.by is None:
        first, second = single[:2]
        p = mcnemar(sure[0][0], sure[1][0])
        texts.append(
            f"The two trained networks of {first.name} and {second.name} differ by "
            f"{points(abs(first.mean - second.mean))} points on these images "
            f"(McNemar's test: p {probability(p)}). This is not about other seeds: two "
            "seeds of the same model often differ as much."
        )
    return texts


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
