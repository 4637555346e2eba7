"""What a few runs say about all the runs that could have been."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit


def ci95_of_mean(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % interval of a mean over seeds.

    ``t * s / sqrt(n)`` with the sample's standard deviation s (n - 1) and the 97.5 %
    point t of Student's distribution with n - 1 degrees of freedom.

    Args:
      values: one a seed.

    Returns:
      In the unit of the values; None for fewer than two, which show no spread.
    """
    count = len(values)
    if count < 2:
        return None
    spread = float(np.std(np.asarray(values, np.float64), ddof=1))
    return float(stdtrit(count - 1, 0.975)) * spread / math.sqrt(count)


def ci95_of_share(share: float, count: int) -> float:
    """Half the width of the 95 % interval of an accuracy on a sample of images.

    ``1.96 * sqrt(p * (1 - p) / n)``: how far the accuracy of one trained network on
    other images of the same kind may lie. It says nothing about other seeds.

    Args:
      share: correctly classified, in [0, 1].
      count: number of images.
    """
    return 1.959964 * math.sqrt(share * (1 - share) / count)
