"""How often verdicts are wrong, and how often they find what is there.

    python -m tests.reports.simulate

Prints the tables of docs/comparing.md. Six entries, fifteen pairs. Nothing is trained:
accuracies are drawn, and judged as a report judges them. Takes about three minutes.
"""

import numpy as np

from cifar_flax.reports.statistics import compare, holm

ENTRIES, FAMILIES = 6, 2000
GAP = 0.019  # of the best over the others, in the tables of power
PAIRED = 0.3  # correlation of entries that share a seed


def draw(rng, kind, seeds, shift=0.0):
    """Accuracies [entries, seeds]; entry 0 is better by a shift."""
    common = rng.normal(0, 0.01 * PAIRED**0.5, seeds)
    own = rng.normal(0, 0.01 * (1 - PAIRED) ** 0.5, (ENTRIES, seeds))
    values = 0.7 + common + own
    if kind == "unequal deviations":
        values = 0.7 + (values - 0.7) * np.linspace(0.3, 2, ENTRIES)[:, None]
    if kind == "left skew":
        values = 0.7 + common - 0.01 * (rng.exponential(1, (ENTRIES, seeds)) - 1)
    if kind == "a tenth of seeds fail":
        values = np.where(rng.random(values.shape) < 0.1, 0.1, values)
    values[0] += shift
    return values


def judge(values):
    """Which pairs are shown to differ; Holm's procedure over all."""
    seeds = [dict(enumerate(map(float, one))) for one in values]
    pairs = [(i, j) for i in range(ENTRIES) for j in range(i + 1, ENTRIES)]
    found = holm([compare(seeds[i], seeds[j]) for i, j in pairs])
    return dict(zip(pairs, found, strict=True))


def coverage(rng, seeds, images=2000, tries=2000):
    """Shares of intervals that hold the truth: over seeds, and over images, too.

    Two nets whose true difference is 0, on images drawn anew each time. How hard an
    image is for a net is the same for all its seeds.
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
    print(f"Gaps of {100 * GAP:g} points that are shown, in per cent:\n")
    rows = []
    for seeds in counts:
        rng, row = np.random.default_rng(seeds), [seeds]
        for kind in kinds[:3]:
            families = (
                judge(draw(rng, kind, seeds, GAP)) for _ in range(FAMILIES // 4)
            )
            shares = [
                np.mean([one[0, j].shown for j in range(1, ENTRIES)])
                for one in families
            ]
            row.append(f"{100 * np.mean(shares):.0f}")
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


if __name__ == "__main__":
    main()
