"""Simulates looks at the results while seeds are added; a part of ``simulate``.

    python -m tests.reports.simulate_looks

It judges drawn accuracies by the very code of reports and of ``sweep --until_shown``,
in about ten minutes.
"""

import itertools

import numpy as np

from cifar_flax.analysis.sequential import Plan, planned_looks
from cifar_flax.analysis.statistics import compare, holm
from cifar_flax.sweeps.until_shown import decide
from tests.reports.simulate import DEVIATION, ENTRIES, draw, table

MOST = 30
TRIES = 10_000
EVERY = tuple(range(5, MOST + 1))


def of_seeds(values):
    """Returns rows of accuracies as accuracies by seed."""
    return [dict(enumerate(map(float, one))) for one in values]


def two(rng, kind, size):
    """Draws two entries whose means are some deviations of their difference apart."""
    if kind == "normal":
        values = np.array([rng.normal(0, 1, MOST), np.zeros(MOST)])
    else:  # some seeds are much worse: of both alike, or rarely of the second
        share = 1 if kind == "left skew" else 0.3
        values = (1 - rng.exponential(1, (2, MOST))) * np.array([[1], [share]])
        values /= (1 + share**2) ** 0.5
    return of_seeds(0.7 + DEVIATION * (values + np.array([[size], [0]])))


def planned(kind, size, looks, tries):
    """Returns how many studies of two show their difference, and their mean seeds."""
    rng = np.random.default_rng(1)
    ends = [decide(two(rng, kind, size), looks, range(MOST)) for _ in range(tries)]
    shown = np.mean([one.pairs[0, 1].shown for one in ends])
    return f"{100 * shown:.1f} ({np.mean([one.count for one in ends]):.1f})"


def print_planned(tries):
    """Prints how often ``--until_shown`` is wrong and right about two entries."""
    rows = []
    for name, looks in (("5, 10, ..., 30", planned_looks()), ("5, 6, ..., 30", EVERY)):
        for kind in ("normal", "left skew", "left skew of one"):
            many = ((0, tries), (0.5, tries // 2), (1, tries // 4))
            rows.append([name, kind, *(planned(kind, s, looks, n) for s, n in many)])
    print("sweep --until_shown with two entries, per cent shown (seeds on average):\n")
    table(["looks at", "values", "0 apart", "0.5 apart", "1 apart"], rows)


def print_families(tries):
    """Prints how often ``--until_shown`` is wrong and right about six entries."""
    rows = []
    for kind, spread in (("equal", 0), ("left skew", 0), ("equal", 1), ("equal", 3)):
        rng, wrong, best, seeds = np.random.default_rng(2), 0, 0, 0
        truth = spread * DEVIATION * np.arange(ENTRIES) / (ENTRIES - 1)
        for _ in range(tries):
            values = draw(rng, kind, MOST) + truth[:, None]
            end = decide(of_seeds(values), planned_looks(), range(MOST))
            wrong += any(
                found.shown and not (truth[i] - truth[j]) * found.mean > 0
                for (i, j), found in end.pairs.items()
            )
            best += end.front == [ENTRIES - 1]
            for one in range(ENTRIES):
                mine = [d.counts[0] for pair, d in end.pairs.items() if one in pair]
                seeds += max(mine)
        shares = [f"{100 * count / tries:.1f}" for count in (wrong, best)]
        rows.append([kind, spread, *shares, f"{seeds / tries:.0f} of 180"])
    print("sweep --until_shown with six entries, per cent of studies:\n")
    head = ["values", "best minus worst, deviations", "a false verdict"]
    table([*head, "the best is shown", "seeds"], rows)


def naive(histories):
    """Judges the latest look as if it was the only one."""
    return holm([one[-1] for one in histories])


def over_all_looks(histories):
    """Judges as a report that has seen each look."""
    return holm([Plan().judge(one) for one in histories])


def until_seen(judge_all, size, count, tries):
    """Looks at 5 to 30 seeds until a difference is shown.

    Args:
      judge_all: returns the differences of all pairs, from the histories of each.
      size: by how much the first entry is better, in deviations of a difference.
      count: number of entries.
      tries: number of studies.

    Returns:
      Share of studies that show a difference, seeds on average, and share of those
      whose interval of the first pair holds the truth; shares in per cent.
    """
    rng, shown, seeds, held = np.random.default_rng(0), 0, 0, 0
    for _ in range(tries):
        values = rng.normal(0, 0.5**0.5, (count, MOST))
        values[0] += size
        sides = of_seeds(0.7 + DEVIATION * values)
        pairs = list(itertools.combinations(sides, 2))
        histories = [[] for _ in pairs]
        for look in EVERY:
            for (one, other), history in zip(pairs, histories, strict=True):
                both = ({s: side[s] for s in range(look)} for side in (one, other))
                history.append(compare(*both))
            found = judge_all(histories)
            if any(difference.shown for difference in found):
                shown += 1
                break
        seeds += look
        held += abs(found[0].mean - DEVIATION * size) < found[0].half_width
    return 100 * shown / tries, seeds / tries, 100 * held / tries


def print_unplanned(tries):
    """Prints what happens to those who look after each seed and stop when they like."""
    rows = []
    for name, judge in (("each as the only one", naive), ("together", over_all_looks)):
        shown, _, held = until_seen(judge, 0, 2, tries // 2)
        family, *_ = until_seen(judge, 0, ENTRIES, tries // 20)
        row = [name, f"{shown:.1f}", f"{family:.1f}", f"{held:.1f}"]
        for size in (0.5, 1):
            shown, seeds, _ = until_seen(judge, size, 2, tries // 4)
            row.append(f"{shown:.1f} ({seeds:.1f})")
        rows.append(row)
    print("Looks after each seed from 5 to 30, until a difference is shown:\n")
    head = ["looks are judged", "false, two entries", "false, six entries"]
    table([*head, "interval holds", "0.5 apart (seeds)", "1 apart (seeds)"], rows)


def main(tries=TRIES):
    """Prints the tables."""
    print_unplanned(tries)
    print_planned(tries)
    print_families(tries // 4)


if __name__ == "__main__":
    main()
