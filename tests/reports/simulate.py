"""Simulates how often verdicts are wrong, and how often they find a difference.

    python -m tests.reports.simulate

Prints the tables of docs/comparing.md for six entries and fifteen pairs. It trains
nothing: it draws accuracies and judges them as a report does, in about two minutes.
The tables of looks at the results, while seeds are added, take ten minutes more.
"""

import numpy as np

from cifar_flax.analysis.statistics import compare, holm

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
    from tests.reports import simulate_choosing, simulate_looks  # they use this module

    simulate_choosing.main()
    simulate_looks.main()


if __name__ == "__main__":
    main()
