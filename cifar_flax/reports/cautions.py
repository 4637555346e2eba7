"""Says what a reader of a ranking must know: what can be shown, and what is unequal."""

import statistics

from cifar_flax.analysis.power import detectable, smallest_shown
from cifar_flax.analysis.statistics import LEVEL, RELEVANT, mcnemar
from cifar_flax.identity import bits_that_differ, differing_parts
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.outside import about_tables
from cifar_flax.reports.studies import BEST, Study
from cifar_flax.reports.verdicts import points, probability


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
    told = any(entry.first.told_ranked for entry in study.entries)
    tuned = not told and len(models) > len(set(models)) and not study.compared
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
