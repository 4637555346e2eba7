"""The statistics of the reports for a user's own lists and arrays."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cifar_flax.analysis import power, statistics
from cifar_flax.analysis.statistics import LEVEL, Difference
from cifar_flax.errors import UserError, one_line

Values = Mapping[int, float] | Sequence[float] | np.ndarray


def compare(
    first: Values,
    second: Values,
    *,
    right: tuple[Any, Any] | None = None,
    test_size: int | None = None,
    paired: bool = True,
) -> Difference:
    """Compares two accuracies over seeds, as a report does.

    The number of shared seeds fixes the test in advance: by pairs with five or more,
    Welch's test with fewer; see docs/comparing.md.

    >>> import cifar_flax as cf
    >>> a = [0.912, 0.915, 0.910, 0.914, 0.913]
    >>> b = [0.905, 0.909, 0.906, 0.904, 0.907]
    >>> found = cf.compare(a, b)
    >>> print(f"{100 * found.mean:.2f} ± {100 * found.half_width:.2f} points")
    0.66 ± 0.27 points
    >>> print(f"{found.test}, p = {found.p:.4f}, shown: {found.shown}")
    paired, p = 0.0025, shown: True

    Args:
      first: accuracy of each seed, as shares: a list, whose places are the seeds, or a
        dictionary by seed.
      second: the same.
      right: whether each image is classified correctly, bool [n, N] of each, with the
        seeds in the order of ``first`` and ``second``; adds the interval over images.
      test_size: number N of test images, without ``right``. The deviation over seeds
        then counts as at least one image; otherwise equal accuracies show nothing.
      paired: whether equal seeds have something in common, such as initial values.

    Returns:
      The difference, first minus second.

    Raises:
      UserError: a value is not finite, or one of them has fewer than two seeds.
    """
    values = _by_seed("first", first), _by_seed("second", second)
    arrays = None
    if right is not None:
        pairs = zip(("first", "second"), right, values, strict=True)
        arrays = [_right(name, one, len(by_seed)) for name, one, by_seed in pairs]
        if arrays[0].shape[1] != arrays[1].shape[1]:
            raise UserError(
                f"right has {arrays[0].shape[1]} images for the first and "
                f"{arrays[1].shape[1]} for the second; give the same images for both"
            )
    if test_size is not None and test_size < 1:
        raise UserError(f"test_size is {test_size}; give the number of test images")
    found = statistics.compare(
        *values,
        right=None if arrays is None else (arrays[0], arrays[1]),
        images=test_size or 0,
        paired=paired,
    )
    assert found is not None
    return found


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """Adjusts the p-values of a family of tests by the method of Holm.

    Show what is below 0.05: the probability of a false one among all is at most 5 %.

    >>> import cifar_flax as cf
    >>> print([round(p, 3) for p in cf.holm([0.01, 0.04, 0.03])])
    [0.03, 0.06, 0.06]

    Args:
      p_values: one for each test.

    Raises:
      UserError: a value is not between 0 and 1.
    """
    values = _numbers("p_values", p_values)
    if values.size and not 0 <= values.min() <= values.max() <= 1:
        raise UserError(f"p_values are {_short(values)}; give values between 0 and 1")
    return statistics.holm_of(values.tolist())


def seeds_needed(spread: float, size: float, comparisons: int = 1) -> int | None:
    """Returns the fewest seeds of each that show a difference with 80 % probability.

    A spread that was estimated from a few seeds is uncertain itself;
    ``Difference.needed`` also gives the number for its upper bound.

    >>> import cifar_flax as cf
    >>> cf.seeds_needed(spread=0.004, size=0.005)
    8
    >>> cf.seeds_needed(spread=0.004, size=0.005, comparisons=15)
    14

    Args:
      spread: standard deviation of the difference of one seed of each; for independent
        seeds ``sqrt(s_a^2 + s_b^2)``.
      size: the difference to show, in the same unit.
      comparisons: number of comparisons of the family.

    Returns:
      A number of 2 or more; None if it is above 10,000.

    Raises:
      UserError: a number is not above 0.
    """
    given = {"spread": spread, "size": size, "comparisons": comparisons}
    for name, value in given.items():
        if not (isinstance(value, int | float) and 0 < value < math.inf):
            raise UserError(f"{name} is {_short(value)}; give a number above 0")
    return power.seeds_needed(float(spread), float(size), LEVEL / comparisons)


def _short(value: Any) -> str:
    return one_line(repr(value), 100)


def _numbers(name: str, given: Any) -> np.ndarray:
    try:
        values = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is {_short(given)}; give a list of numbers") from error
    if values.ndim != 1 or not np.isfinite(values).all():
        raise UserError(f"{name} is {_short(given)}; give a list of finite numbers")
    return values


def _by_seed(name: str, given: Values) -> dict[int, float]:
    seeds = list(given) if isinstance(given, Mapping) else range(len(given))
    values = list(given.values()) if isinstance(given, Mapping) else given
    numbers = _numbers(name, values)
    if len(numbers) < 2:
        raise UserError(f"{name} has {len(numbers)} seeds; a comparison needs two")
    return dict(zip(seeds, numbers.tolist(), strict=True))


def _right(name: str, given: Any, count: int) -> np.ndarray:
    array = np.asarray(given)
    if array.dtype != bool or array.ndim != 2 or len(array) != count:
        raise UserError(
            f"right of the {name} is {array.dtype} {list(array.shape)}; give bool "
            f"[{count}, N], a row for each seed"
        )
    return array
