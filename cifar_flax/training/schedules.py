"""Learning-rate schedules: functions of the step that ``jit`` can trace."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax


def sgdr(
    peak_value: float, cycle_steps: Sequence[int], slow_steps: int = 0
) -> optax.Schedule:
    """Returns the rate of stochastic gradient descent with warm restarts.

    At step t of a cycle of T steps the rate is ``peak_value * (1 + cos(pi * t / T)) /
    2``. The first step of a cycle has the full rate, and the last step has a little
    more than zero. After the last cycle the rate is zero.

    References:
      Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts,
      ICLR 2017, https://arxiv.org/abs/1608.03983

    Args:
      peak_value: rate at the start of each cycle.
      cycle_steps: length of each cycle, in steps.
      slow_steps: number of steps at the start of the first cycle whose rate is
        ``peak_value / 100`` instead.

    Returns:
      A schedule, step -> rate.
    """
    cosines = chain_schedules(
        [optax.cosine_decay_schedule(peak_value, steps) for steps in cycle_steps],
        cycle_steps,
    )
    if not slow_steps:
        return cosines
    return lambda step: jnp.where(step < slow_steps, peak_value / 100, cosines(step))


def warm_cosine(
    peak_value: float, num_steps: int, warmup_steps: int = 0, final: float = 0.0
) -> optax.Schedule:
    """Returns a linear warm-up followed by half a cosine.

    With w steps of warm-up, step t < w has the rate ``peak * (t + 1) / (w + 1)``. Of
    the other n - w steps, step t' has ``peak * (final + (1 - final) * (1 + cos(pi * t'
    / (n - w))) / 2)``.

    Args:
      peak_value: rate at the end of the warm-up.
      num_steps: n, including the warm-up.
      warmup_steps: w, below n.
      final: share of the rate at the end.

    Returns:
      A schedule, step -> rate.
    """
    cosine = optax.cosine_decay_schedule(peak_value, num_steps - warmup_steps, final)
    if not warmup_steps:
        return cosine
    start = peak_value / (warmup_steps + 1)
    warmup = optax.linear_schedule(start, peak_value, warmup_steps)
    return chain_schedules([warmup, cosine], [warmup_steps, num_steps - warmup_steps])


def one_cycle(
    peak_value: float, num_steps: int, start: float = 0.1, tail: float = 0.1
) -> optax.Schedule:
    """Returns a rate that rises linearly, falls linearly, and then goes to zero.

    In the last ``tail * n`` of n steps the rate falls from ``start * peak`` to 0. In
    the other steps it rises from ``start * peak`` to the peak, and falls back.

    References:
      Smith, A disciplined approach to neural network hyper-parameters: Part 1, 2018,
      https://arxiv.org/abs/1803.09820

    Args:
      peak_value: the highest rate.
      num_steps: n.
      start: share of the rate at the first step.
      tail: share of the steps.

    Returns:
      A schedule, step -> rate.
    """
    turn = (1 - tail) * num_steps
    low = start * peak_value
    return through([(0, low), (turn / 2, peak_value), (turn, low), (num_steps, 0.0)])


def trapezoid(
    peak_value: float, num_steps: int, rise: float = 0.1, fall: float = 0.4
) -> optax.Schedule:
    """Returns a rate that rises linearly from zero, stays, and falls to zero.

    Args:
      peak_value: the highest rate.
      num_steps: number of all steps.
      rise: share of the steps in which the rate rises.
      fall: share of the steps in which it falls.

    Returns:
      A schedule, step -> rate.
    """
    top, turn = rise * num_steps, (1 - fall) * num_steps
    return through([(0, 0.0), (top, peak_value), (turn, peak_value), (num_steps, 0.0)])


def through(
    points: list[tuple[float, float]], at_start: bool = False
) -> optax.Schedule:
    """Returns straight lines through points (step, rate).

    A step has the rate in its middle, so that no step of a triangle has a rate of 0;
    or, if ``at_start``, the rate at its start.
    """
    steps, rates = zip(*points, strict=True)

    def schedule(count: jax.typing.ArrayLike) -> jax.Array:
        at = jnp.asarray(count, jnp.float32) + (0.0 if at_start else 0.5)
        return jnp.interp(at, jnp.float32(steps), jnp.float32(rates))

    return schedule


def ramp(
    start_value: float, end_value: float, num_steps: int, linear: bool = False
) -> optax.Schedule:
    """Returns the rising rate of a range test.

    At step k of n it is ``start * (end / start) ** (k / (n - 1))``, or, if ``linear``,
    ``start + (end - start) * k / (n - 1)``.

    Args:
      start_value: at the first step.
      end_value: at the last step.
      num_steps: n, at least 2.
      linear: whether the rate rises by equal differences instead of equal ratios.

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
    """Returns schedules one after the other; each counts its steps from 0.

    Args:
      schedules: one or more schedules.
      lengths: number of steps of each; after these, the last schedule continues.

    Returns:
      A schedule, step -> rate.
    """
    return optax.join_schedules(schedules, list(itertools.accumulate(lengths))[:-1])
