"""Simulates what choosing a configuration, and naming a baseline late, do to a report.

    python -m tests.reports.simulate_choosing

Prints the tables of docs/comparing.md about choosing, baselines and numbers of seeds.
It trains nothing: it draws accuracies, and chooses and judges them as a report does.
"""

import pathlib

import numpy as np

from cifar_flax.analysis.power import detectable, seeds_needed
from cifar_flax.analysis.statistics import compare, holm, interval_of_accuracy
from cifar_flax.reports.choosing import choose
from cifar_flax.reports.entries import make_entries
from cifar_flax.reports.outside import run_of
from cifar_flax.reports.outside_rows import Row
from tests.reports.simulate import DEVIATION, ENTRIES, draw, table

RATES = 8


def entries_of(accuracies, validation):
    """Makes the entry of each rate of a model from the accuracies of its seeds."""
    runs = []
    for rate, pair in enumerate(zip(accuracies, validation, strict=True)):
        for seed, (test, val) in enumerate(zip(*pair, strict=True)):
            cells = {"model": "net", "seed": seed}
            cells |= {"test_accuracy": float(test), "val_accuracy": float(val)}
            runs.append(run_of(Row(pathlib.Path("table"), 0, cells, {"lr": rate})))
    return make_entries(runs, [])


def draw_rates(rng, seeds, apart=0.0, correlation=0.9):
    """Draws test and validation accuracies of rates, [RATES, seeds] each.

    Args:
      rng: NumPy's generator.
      seeds: number of seeds.
      apart: deviation of the true accuracies of the rates, in deviations over seeds.
      correlation: of both accuracies over seeds.
    """
    true = 0.7 + DEVIATION * apart * rng.normal(size=(RATES, 1))
    common = rng.normal(0, correlation**0.5, (RATES, seeds))
    own = rng.normal(0, (1 - correlation) ** 0.5, (2, RATES, seeds))
    return true + DEVIATION * (common + own)


def lucky(rng, apart, tries):
    """Returns how often a rate with one seed takes the rank: before and now.

    Each of eight rates has one seed; then the best on validation gets four more.
    """
    taken = np.zeros(2)
    for _ in range(tries):
        test, validation = draw_rates(rng, 5, apart)
        best = int(validation[:, 0].argmax())
        counts = [5 if rate == best else 1 for rate in range(RATES)]
        means = [validation[r, :n].mean() for r, n in enumerate(counts)]
        entries = entries_of(
            *([one[r, :n] for r, n in enumerate(counts)] for one in (test, validation))
        )
        (chosen,) = choose(entries, ()).ranked
        taken += int(np.argmax(means)) != best, len(chosen.seeds) == 1
    return taken / tries


def curse(rng, correlation, tries, seeds=5):
    """Returns the bias and the coverage of the best of eight equal rates.

    Of the same seeds that choose, and of as many others (``choose_seeds``).
    """
    found = []
    for _ in range(tries):
        test, validation = draw_rates(rng, 2 * seeds, correlation=correlation)
        both = []
        for entries, given in (
            (entries_of(test[:, :seeds], validation[:, :seeds]), ()),
            (entries_of(test, validation), tuple(range(seeds))),
        ):
            (chosen,) = choose(entries, (), seeds=given).ranked
            low, high = interval_of_accuracy(list(chosen.accuracies.values()), 10_000)
            both.append((chosen.mean - 0.7, low < 0.7 < high))
        found.append(both)
    return np.mean(found, axis=0)  # [2, bias and coverage]


def named_late(rng, seeds, tries):
    """Returns how often a difference of equals is shown: baseline before, and after.

    Afterwards, the entry with the best accuracies is named.
    """
    wrong = np.zeros(2)
    for _ in range(tries):
        values = draw(rng, "equal", seeds)
        by_seed = [dict(enumerate(map(float, one))) for one in values]
        for number, base in enumerate((0, int(values.mean(1).argmax()))):
            others = [i for i in range(ENTRIES) if i != base]
            found = holm([compare(by_seed[i], by_seed[base]) for i in others])
            wrong[number] += any(one.shown for one in found)
    return wrong / tries


def overlapping(rng, counts, shared, correlation, tries):
    """Returns how often two equal entries are shown to differ that share some seeds."""
    wrong, total = 0, counts[0] + counts[1] - shared
    for _ in range(tries):
        values = rng.normal(0, correlation**0.5, total)
        values = values + rng.normal(0, (1 - correlation) ** 0.5, (2, total))
        first = dict(enumerate(values[0, : counts[0]]))
        second = dict(list(enumerate(values[1]))[counts[0] - shared :])
        wrong += compare(first, second).shown
    return wrong / tries


def power(rng, seeds, tries):
    """Returns how often a difference is shown that a number of seeds can show.

    By the true deviation, and by the one that another study of six entries estimates.
    """
    spread, shown = DEVIATION * 2**0.5, np.zeros(2)
    by_spread = detectable(1, seeds, 0.05)  # it is proportional to the deviation
    for _ in range(tries):
        pilot = rng.normal(0, DEVIATION, (ENTRIES, seeds))
        runs = [dict(enumerate(map(float, one))) for one in pilot]
        pairs = [compare(runs[i], runs[j]) for i in range(ENTRIES) for j in range(i)]
        likely = float(np.median([one.likely_spread for one in pairs]))
        both = by_spread * spread, by_spread * likely
        values = rng.normal(0, DEVIATION, (2, seeds))
        for number, size in enumerate(both):
            first, second = (dict(enumerate(map(float, one))) for one in values)
            shifted = {seed: value + size for seed, value in first.items()}
            shown[number] += compare(shifted, second).shown
    return shown / tries


def planned(rng, seeds, tries, size=0.005):
    """Returns how often the numbers of seeds that a study plans show a difference.

    By the estimated deviation, and by its upper bound; and by the true deviation.
    """
    right = seeds_needed(DEVIATION * 2**0.5, size, 0.05)
    shown = np.zeros(3)
    for _ in range(tries):
        values = rng.normal(0, DEVIATION, (2, seeds))
        runs = [dict(enumerate(map(float, one))) for one in values]
        needed = compare(*runs).needed(size, 1) or (10_000, 10_000)
        for number, count in enumerate((*needed, right)):
            new = rng.normal(0, DEVIATION, (2, min(count, 2000)))
            first, second = (dict(enumerate(map(float, one))) for one in new)
            shifted = {seed: value + size for seed, value in first.items()}
            shown[number] += compare(shifted, second).shown
    return shown / tries


def in_per_cent(shares):
    """Returns shares as per cent."""
    return [f"{100 * share:.0f}" for share in shares]


def main(tries=2000):
    """Prints the tables."""
    rng = np.random.default_rng
    print("Studies in which a rate with one seed takes the rank, in per cent:\n")
    rows = [(d, *in_per_cent(lucky(rng(d), d, tries))) for d in (0, 1, 2)]
    table(["deviations between true rates", "before", "now"], rows)
    print("The best of eight equal rates with five seeds, bias in points and cover:\n")
    rows = []
    for correlation in (0.3, 0.6, 0.9):
        same, others = curse(rng(1), correlation, tries)
        rows.append([correlation])
        rows[-1] += [f"{100 * one[0]:+.2f} ({one[1]:.2f})" for one in (same, others)]
    table(["correlation", "the seeds that choose", "other seeds"], rows)
    print("A baseline of six equals: studies that show a difference, in per cent:\n")
    rows = [
        (seeds, *(f"{100 * one:.1f}" for one in named_late(rng(seeds), seeds, tries)))
        for seeds in (3, 5, 10)
    ]
    table(["seeds", "named before", "the best, named afterwards"], rows)
    print("Equal pairs that share some seeds and are shown to differ, in per cent:\n")
    cases, rows = (((10, 5), 5), ((10, 10), 5), ((30, 5), 5), ((7, 7), 6)), []
    for counts, shared in cases:
        row = [
            f"{100 * overlapping(rng(1), counts, shared, r, tries):.1f}"
            for r in (0, 0.3, 0.9)
        ]
        rows.append([f"{counts[0]} and {counts[1]}, {shared} shared", *row])
    table(["seeds", "correlation 0", "0.3", "0.9"], rows)
    print("Differences that are shown of those that '80 %' is said of, in per cent:\n")
    rows = [(n, *in_per_cent(power(rng(n), n, tries))) for n in (2, 3, 4, 5, 10)]
    table(["seeds", "true deviation", "estimated deviation"], rows)
    print("The same for the number of seeds that a study plans for half a point:\n")
    rows = []
    for seeds in (3, 5, 10):
        low, high, right = planned(rng(seeds), seeds, tries // 4)
        rows.append((seeds, *in_per_cent((high, low, right))))
    table(["seeds of the study", "upper number", "number as estimated", "true"], rows)


if __name__ == "__main__":
    main()
