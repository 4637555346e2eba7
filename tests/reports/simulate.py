"""Simulates how often verdicts are wrong, and how often they find a difference.

    python -m tests.reports.simulate

Prints the tables of docs/comparing.md for six entries and fifteen pairs, and for looks
while seeds are added. It trains nothing: it draws accuracies and judges them as a report
and ``sweep --until_shown`` do, in about ten minutes.
"""

import numpy as np

from cifar_flax.analysis.sequential import Plan, planned_looks
from cifar_flax.analysis.statistics import compare, holm
from cifar_flax.sweeps.until_shown import decide

ENTRIES, FAMILIES = 6, 2000
DEVIATION = 0.0085  # of an accuracy over seeds
PAIRED = 0.3  # correlation of entries that share a seed

# The entries in the table of power: three pairs that differ by 1.9 points, and differ
# much more from each other, like different families of networks.
LADDER = np.array([0, 0.019, 0.1, 0.119, 0.2, 0.219])[:, None]


def draw(rng, kind, seeds):
    """Draws accuracies [entries, seeds] of entries that are equally good."""
    common = rng.normal(0, DEVIATION * PAIRED**0.5, seeds)
    own = rng.normal(0, DEVIATION * (1 - PAIRED) ** 0.5, (ENTRIES, seeds))
    values = 0.7 + common + own
    if kind == "unequal deviations":
        values = 0.7 + (values - 0.7) * np.linspace(0.3, 2, ENTRIES)[:, None]
    if kind == "left skew":
        values = 0.7 + common - DEVIATION * (rng.exponential(1, own.shape) - 1)
    if kind == "a tenth of seeds fail":
        values = np.where(rng.random(values.shape) < 0.1, 0.1, values)
    return values


def judge(values, right=None):
    """Returns which pairs are shown to differ, with Holm's method over all pairs."""
    seeds = [dict(enumerate(map(float, one))) for one in values]
    pairs = [(i, j) for i in range(ENTRIES) for j in range(i + 1, ENTRIES)]
    images = [None if right is None else (right[i], right[j]) for i, j in pairs]
    given = zip(pairs, images, strict=True)
    found = holm([compare(seeds[i], seeds[j], both) for (i, j), both in given])
    return dict(zip(pairs, found, strict=True))


def on_few_images(rng, seeds, images):
    """Judges entries that classify each image with the same probability, 0.9 mostly."""
    right = rng.random((ENTRIES, seeds, images)) < rng.beta(9, 1, images)
    return judge(right.mean(2), right)


def coverage(rng, seeds, images=2000, tries=2000):
    """Returns the coverage of the intervals over seeds, and over seeds and images.

    Two networks have a true difference of 0, on new images each time. The difficulty of
    an image for a network is the same for all its seeds.
    """
    over_seeds, over_images = 0, 0
    for _ in range(tries):
        ease, apart = rng.normal(0.9, 1, images), rng.normal(0, 0.35, images)
        right = []
        for sign in (1, -1):
            logit = 2 * (ease + sign * apart + rng.normal(0, 0.02, (seeds, 1)))
            right.append(rng.random((seeds, images)) < 1 / (1 + np.exp(-logit)))
        found = compare(
            *(dict(enumerate(map(float, one.mean(1)))) for one in right), tuple(right)
        )
        over_seeds += abs(found.mean) < found.half_width
        over_images += abs(found.mean) < found.over_images
    return over_seeds / tries, over_images / tries


def gaps(rng, kind, size, seeds=30):
    """Draws two entries whose differences are a number of deviations apart."""
    if kind == "left skew":
        own = 1 - rng.exponential(1, (2, seeds))
        own[1] *= 0.3  # equal skews would cancel
        return np.array([own[0] / 1.09**0.5 + size, own[1] / 1.09**0.5])
    return np.array([rng.normal(size, 1, seeds), np.zeros(seeds)])


def of_seeds(values, deviation=DEVIATION):
    """Returns drawn values of entries as accuracies by seed."""
    return [dict(enumerate(map(float, 0.7 + deviation * one))) for one in values]


def follow(rng, kind, size, looks, tries):
    """Follows studies of a pair; returns how many show it, and their mean of seeds."""
    ends = [
        decide(of_seeds(gaps(rng, kind, size)), looks, range(30), 10_000)
        for _ in range(tries)
    ]
    shown = [100 * one.pairs[0, 1].shown for one in ends]
    return np.mean(shown), np.mean([one.count for one in ends])


def until(rng, size, count, tries, judge_all):
    """Looks at 5 to 30 seeds, and stops as soon as a difference is shown.

    Args:
      rng: random numbers.
      size: of the first entry's lead, in deviations of a difference.
      count: number of entries.
      tries: number of studies.
      judge_all: returns the adjusted p-values of the pairs from their histories.
    """
    shown, seeds, held = 0, 0, 0
    for _ in range(tries):
        values = rng.normal(0, 1, (count, 30)) / 2**0.5
        values[0] += size
        sides, histories = of_seeds(values), {}
        for look in range(5, 31):
            for i in range(count):
                for j in range(i + 1, count):
                    both = [
                        {s: side[s] for s in range(look)}
                        for side in (sides[i], sides[j])
                    ]
                    histories.setdefault((i, j), []).append(compare(*both))
            found = judge_all(list(histories.values()))
            if any(one.shown for one in found):
                shown += 1
                break
        seeds += look
        truth = DEVIATION * size
        held += abs(found[0].mean - truth) < found[0].half_width
    return 100 * shown / tries, seeds / tries, 100 * held / tries


def naive(histories):
    """Judges the latest look as if it was the only one."""
    return holm([one[-1] for one in histories])


def over_all_looks(histories):
    """Judges as a report that has seen each look."""
    return holm([Plan().judge(one) for one in histories])


def print_looks(tries=10_000):
    """Prints the tables of looks."""
    print("Looks at every number of seeds from 5 to 30, until a difference is shown:\n")
    rows = []
    for name, judge_all in (
        ("as if it was the only look", naive),
        ("as a report", over_all_looks),
    ):
        rng = np.random.default_rng(0)
        pair = until(rng, 0, 2, tries // 4, judge_all)
        family = until(rng, 0, 6, tries // 40, judge_all)
        some = [until(rng, size, 2, tries // 10, judge_all) for size in (0.5, 1)]
        rows.append((name, f"{pair[0]:.1f}", f"{family[0]:.1f}", f"{pair[2]:.1f}"))
        rows[-1] += tuple(f"{one[0]:.1f} ({one[1]:.1f})" for one in some)
    head = ["judged", "false, a pair", "false, six entries", "interval holds"]
    table([*head, "shown at 0.5 (seeds)", "shown at 1 (seeds)"], rows)
    print("sweep --until_shown, one pair:\n")
    rows = []
    for name, looks in (
        ("5, 10, ..., 30", planned_looks()),
        ("each from 5 to 30", tuple(range(5, 31))),
    ):
        for kind in ("normal", "left skew"):
            row = [name, kind]
            for size in (0, 0.5, 1):
                rng = np.random.default_rng(1)
                some = tries if size == 0 else tries // 5
                row.append(
                    "{:.1f} ({:.1f})".format(*follow(rng, kind, size, looks, some))
                )
            rows.append(row)
    table(["looks", "values", "false (seeds)", "shown at 0.5", "shown at 1"], rows)
    print("sweep --until_shown, six entries:\n")
    rows = []
    for kind, spread in (("equal", 0), ("left skew", 0), ("equal", 1), ("equal", 3)):
        rng, wrong, best, seeds, some = np.random.default_rng(2), 0, 0, 0, tries // 5
        for _ in range(some):
            truth = spread * DEVIATION * np.arange(ENTRIES) / (ENTRIES - 1)
            values = draw(rng, kind, 30) + truth[:, None]
            sides = [dict(enumerate(map(float, one))) for one in values]
            end = decide(sides, planned_looks(), range(30), 10_000)
            pairs = end.pairs.items()
            wrong += any(
                d.shown and d.mean > -1e-9 * (truth[i] < truth[j])
                for (i, j), d in pairs
                if truth[i] <= truth[j]
            )
            best += end.front == [ENTRIES - 1]
            seeds += sum(
                max(d.counts[0] for p, d in pairs if i in p) for i in range(ENTRIES)
            )
        rows.append(
            (
                kind,
                spread,
                *(f"{100 * n / some:.1f}" for n in (wrong, best)),
                f"{seeds / some:.0f}",
            )
        )
    table(
        [
            "values",
            "best minus worst, deviations",
            "false",
            "best shown",
            "seeds in all",
        ],
        rows,
    )


def table(head, rows):
    """Prints a table of Markdown."""
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print()


def main():
    """Prints the tables."""
    kinds = ["equal", "unequal deviations", "left skew", "a tenth of seeds fail"]
    counts = (3, 4, 5, 10)
    print("Families of equals in which a difference is shown, in per cent:\n")
    rows = []
    for seeds in counts:
        rng, row = np.random.default_rng(seeds), [seeds]
        for kind in kinds:
            families = (judge(draw(rng, kind, seeds)) for _ in range(FAMILIES))
            wrong = sum(any(d.shown for d in one.values()) for one in families)
            row.append(f"{100 * wrong / FAMILIES:.1f}")
        rows.append(row)
    table(["seeds", *kinds], rows)
    print("The same on few test images:\n")
    sizes, rows = (5, 20, 50, 100, 1000), []
    for seeds in (2, 3, 5):
        rng, row = np.random.default_rng(seeds), [seeds]
        for images in sizes:
            families = (on_few_images(rng, seeds, images) for _ in range(FAMILIES))
            wrong = sum(any(d.shown for d in one.values()) for one in families)
            row.append(f"{100 * wrong / FAMILIES:.1f}")
        rows.append(row)
    table(["seeds", *(f"{images:,} images" for images in sizes)], rows)
    print("Gaps of 1.9 points that are shown, in per cent (by Bonferroni):\n")
    rows = []
    for seeds in counts:
        rng, row = np.random.default_rng(seeds), [seeds]
        for kind in kinds[:3]:
            by_holm, by_bonferroni = [], []
            for _ in range(FAMILIES // 4):
                judged = judge(draw(rng, kind, seeds) + LADDER)
                pairs = [judged[pair] for pair in ((0, 1), (2, 3), (4, 5))]
                by_holm += [found.shown for found in pairs]
                by_bonferroni += [found.p < 0.05 / len(judged) for found in pairs]
            both = 100 * np.mean(by_holm), 100 * np.mean(by_bonferroni)
            row.append("{:.0f} ({:.0f})".format(*both))
        rows.append(row)
    table(["seeds", *kinds[:3]], rows)
    print("Intervals that hold the true difference, on new test images each time:\n")
    rows = [
        (
            seeds,
            *(f"{share:.3f}" for share in coverage(np.random.default_rng(1), seeds)),
        )
        for seeds in (3, 5, 10)
    ]
    table(["seeds", "over seeds", "over seeds and test images"], rows)
    print_looks()


if __name__ == "__main__":
    main()
