"""Chooses one configuration of each model on the validation split.

One seed of many configurations is often lucky. Only those with the most seeds of their
model are candidates, so that a configuration cannot win because it was tried less. The
validation accuracies of the seeds that choose are correlated with their test
accuracies; other seeds than those that choose give figures without this bias.
"""

import dataclasses
from collections.abc import Callable, Sequence

from cifar_flax.identity import custom_model_of
from cifar_flax.reports.columns import Column
from cifar_flax.reports.entries import Entry, differing

# Settings of the model; entries that differ in them are always compared.
OF_MODEL = ("model", "model_args")

NAMED = 3  # configurations that a note names


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is ranked.

    Attributes:
      ranked: the chosen entries, with the seeds that are reported.
      apart: the others, with all their seeds.
      notes: what a reader of the ranking must know of the choice.
    """

    ranked: list[Entry]
    apart: list[Entry]
    notes: list[str]


def compared_by_default(entries: list[Entry]) -> tuple[str, ...]:
    """Returns the settings besides the model whose values are compared: of one model.

    They are all that differ, except the rate.
    """
    names = differing([entry.first.settings for entry in entries])
    if set(names) & set(OF_MODEL):
        return ()
    return tuple(name for name in names if name != "lr")


def choose(
    entries: list[Entry],
    compared: Sequence[str],
    by: Column | None = None,
    seeds: Sequence[int] = (),
) -> Choice:
    """Chooses the best entry of each model on the validation split.

    Without a validation split, all entries are ranked.

    Args:
      entries: of one study.
      compared: settings besides the model whose values are compared.
      by: what ranks and chooses; None: the accuracy.
      seeds: choose by these seeds and report the others. Without any, all seeds of the
        entries with the most seeds choose, and are reported.
    """
    ranked, notes = [], []
    for group in _groups(entries, compared):
        if seeds:
            chosen, words = _chosen_by(group, by, seeds)
        elif told := [one for one in group if one.first.told_ranked]:
            chosen, words = told, []  # a report wrote the table
        else:
            chosen, words = _chosen(group, by)
        ranked += chosen
        notes += words
    names = {entry.name for entry in ranked}
    return Choice(ranked, [one for one in entries if one.name not in names], notes)


def _groups(entries: list[Entry], compared: Sequence[str]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        names = (*OF_MODEL, *compared)
        values = [entry.first.settings.get(name) for name in names]
        key = repr([*values, custom_model_of(entry.first.config), entry.first.source])
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _chosen(group: list[Entry], by: Column | None) -> tuple[list[Entry], list[str]]:
    """Returns the best entry of those with the most seeds, and what to know of it."""
    most = max(len(entry.seeds) for entry in group)
    able = [entry for entry in group if len(entry.seeds) == most]
    best = _best(able, by)
    if best is None:
        return group, []
    return [best], _of_fewer(best, [e for e in group if len(e.seeds) < most], by)


def _of_fewer(best: Entry, others: list[Entry], by: Column | None) -> list[str]:
    """Names entries with fewer seeds that are better on the seeds that they share."""
    better = []
    for other in others:
        shared = set(other.seeds) & set(best.seeds)
        pair = [one.with_seeds(shared.__contains__) for one in (other, best)]
        if None not in pair and _best([one for one in pair if one], by) is pair[0]:
            better.append(other.name)
    if not better:
        return []
    named = ", ".join(better[:NAMED])
    more = f" and {len(better) - NAMED} more" if len(better) > NAMED else ""
    return [
        f"{best.name} is the best of the configurations of its model with the most "
        f"seeds ({len(best.seeds)}). With fewer seeds and better on the seeds that "
        f"they share: {named}{more}. Train them with the same seeds to let them win."
    ]


def _chosen_by(
    group: list[Entry], by: Column | None, seeds: Sequence[int]
) -> tuple[list[Entry], list[str]]:
    """Chooses by some seeds, and returns the chosen entry with its other seeds."""
    words, wanted = ", ".join(map(str, seeds)), set(seeds)
    chosen = group
    if len(group) > 1:
        able = {id(one): one for one in group if wanted <= set(one.seeds)}
        parts = [one.with_seeds(wanted.__contains__) for one in able.values()]
        best = _best([part for part in parts if part], by)
        if not able:
            model = group[0].first.result.model
            return [], [
                f"{model} is not ranked, because none of its configurations has all of "
                f"the seeds {words} that choose."
            ]
        if best is not None:
            chosen = [one for one in group if one.name == best.name]
    others = [one.with_seeds(lambda seed: seed not in wanted) for one in chosen]
    notes = [
        f"{one.name} has no other seeds than {words}, which choose, and is not ranked; "
        "train it with fresh seeds (sweep --fresh_seeds=5)."
        for one, other in zip(chosen, others, strict=True)
        if other is None
    ]
    return [other for other in others if other is not None], notes


def _best(group: list[Entry], by: Column | None) -> Entry | None:
    """Returns the best entry on the validation split; None without a split."""
    value_of: Callable[[Entry], float | None] = (
        by.validation if by else lambda entry: entry.validation
    )
    values = {id(entry): value_of(entry) for entry in group}
    if not group or any(values[id(e)] is None and e.accuracies for e in group):
        return None
    return min(
        group,
        key=lambda e: (len(e.diverged) / len(e.seeds), -(values[id(e)] or 0)),
    )
