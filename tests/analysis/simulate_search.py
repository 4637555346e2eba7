"""How far the expected best of n trials is off, and how often its interval covers.

python -m tests.analysis.simulate_search

Draws searches from two populations of settings: most of them nearly as good as the best
(beta(5, 2)), and few of them (beta(1, 3)), on a scale of 20 points.
"""

import numpy as np

from cifar_flax.analysis.best_of import curve_of

SEARCHES = 500
POPULATIONS = {"most are good": (5, 2), "few are good": (1, 3)}
TRIALS, COUNTS = (10, 20, 50), (1, 2, 5, 10, 20)
POINTS = 20


def figures(shape, trials, rng):
    """Returns bias in points and coverage in per cent, for each count up to trials."""
    curves = [curve_of(rng.beta(*shape, trials)) for _ in range(SEARCHES)]
    for count in COUNTS:
        if count <= trials:
            true, at = rng.beta(*shape, (100_000, count)).max(1).mean(), count - 1
            bias = np.mean([one.best[at] for one in curves]) - true
            covered = np.mean([one.low[at] <= true <= one.high[at] for one in curves])
            yield f"{POINTS * bias:+.2f}; {100 * covered:.0f} %"
        else:
            yield "-"


def main():
    """Prints the table of docs/comparing.md."""
    rng = np.random.default_rng(0)
    print("| settings | trials made |", *(f"best of {n} |" for n in COUNTS))
    print("|---|---|" + "---|" * len(COUNTS))
    for name, shape in POPULATIONS.items():
        for trials in TRIALS:
            cells = " | ".join(figures(shape, trials, rng))
            print(f"| {name} | {trials} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
