"""Learning-rate schedules: functions of the step, traceable by ``jit``."""

import itertools
from collections.abc import Sequence

import optax


def sgdr(
    peak_value: float, cycles: int, cycle_steps: int, cycle_mult: int = 1
) -> optax.Schedule:
    """Stochastic gradient descent with warm restarts.

    Cycle i is ``T_i = cycle_steps * cycle_mult**i`` steps long; t steps into it the
    rate is ``peak_value * (1 + cos(pi * t / T_i)) / 2``. The first step of a cycle has
    the full rate, the last one a little more than zero. After the last cycle the rate
    is zero.

    References:
      Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts,
      ICLR 2017, https://arxiv.org/abs/1608.03983

    Args:
      peak_value: rate at the start of each cycle.
      cycles: number of cycles.
      cycle_steps: length of the first cycle, in steps.
      cycle_mult: each cycle is this many times as long as the one before.

    Returns:
      A schedule, step -> rate.
    """
    lengths = [cycle_steps * cycle_mult**i for i in range(cycles)]
    return chain_schedules(
        [optax.cosine_decay_schedule(peak_value, length) for length in lengths], lengths
    )


def ramp(
    start_value: float, end_value: float, num_steps: int, linear: bool = False
) -> optax.Schedule:
    """A rising rate, for the range test.

    ``start * (end / start) ** (k / (n - 1))`` at step k of n; where it is linear,
    ``start + (end - start) * k / (n - 1)``.

    Args:
      start_value: at the first step.
      end_value: at the last step.
      num_steps: n, at least 2.
      linear: whether equal differences, and not equal ratios, are between steps.

    Returns:
      A schedule, step -> rate.
    """
    if linear:
        return optax.linear_schedule(start_value, end_value, num_steps - 1)
    return optax.exponential_decay(
        start_value, num_steps - 1, end_value / start_value, end_value=end_value
    )


def chain_schedules(
    schedules: Sequence[optax.Schedule], lengths: Sequence[int]
) -> optax.Schedule:
    """Schedules one after the other, each from its own step 0.

    Args:
      schedules: at least one.
      lengths: steps that each one lasts; the last one then goes on.

    Returns:
      A schedule, step -> rate.
    """
    return optax.join_schedules(schedules, list(itertools.accumulate(lengths))[:-1])
