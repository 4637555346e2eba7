"""Whether a rate is too high: training begins with it and with half of it.

A range test trains for a step at each rate, and a net without norm may bear a rate for
a step that breaks it within an epoch. So it begins the very training that would follow,
with the rate and with half of it and the same seeds; where half of it is safer or
better, it halves and looks again.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_flax.data import Split
from cifar_flax.jax_settings import known_settings
from cifar_flax.training.evaluation import replica_map
from cifar_flax.training.state import TrainState
from cifar_flax.training.steps import DeviceData, first_order
from cifar_flax.training.trainer import Trainer

WINDOW = 25  # steps that losses are averaged over, or a quarter of them
RISE = 0.5  # nats that the mean loss rises by where a seed breaks away
GAIN = 0.05  # nats by which half the rate must be better, with every seed
MOST_HALVINGS = 4
CHECK_SEEDS = 3  # of the range test's


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """How training with a rate began.

    Attributes:
      rate: the highest of the schedule.
      losses: of the batch of each step, float64 [R, S]; NaN or infinite from where a
        replica diverged.
    """

    rate: float
    losses: np.ndarray

    @property
    def averages(self) -> np.ndarray:
        """Means over ``WINDOW`` steps, one window after the other, [R, W]."""
        replicas, steps = self.losses.shape
        window = max(1, min(WINDOW, steps // 4))
        count = steps // window
        last = self.losses[:, steps - count * window :]
        return last.reshape(replicas, count, window).mean(-1)

    @property
    def last(self) -> np.ndarray:
        """Mean loss of the last steps, [R]."""
        return self.averages[:, -1]

    @property
    def breaks(self) -> np.ndarray:
        """Whether each replica breaks away: its loss is not finite, or rises, [R]."""
        averages = self.averages
        return ~(averages[:, -1] < averages.min(1) + RISE)  # also where it is NaN


@dataclasses.dataclass(frozen=True, eq=False)
class RateCheck:
    """What came out.

    Attributes:
      rate: to train with: the highest that is neither unsafe nor worse than its half.
      trials: with the suggested rate, with half of it, and so on.
    """

    rate: float
    trials: list[Trial]


@known_settings()
def check_rate(
    trainer: Trainer,
    split: Split,
    rate: float,
    state: TrainState,
    on_progress: Callable[[], None] = lambda: None,
) -> RateCheck:
    """Begins the training with a rate and with halves of it.

    Args:
      trainer: of the recipe with 1 as its highest rate, and a few seeds.
      split: the training images.
      rate: suggested.
      state: to start from; it is left as it is.
      on_progress: called before each trial; what it raises ends the check.
    """
    begin = beginning(trainer, split, state)
    trials: list[Trial] = []
    while len(trials) <= MOST_HALVINGS:
        on_progress()
        trials.append(Trial(rate, begin(rate)))
        if len(trials) > 1 and not is_better(trials[-1], trials[-2]):
            return RateCheck(trials[-2].rate, trials)
        rate /= 2
    return RateCheck(trials[-1].rate, trials)


def is_better(half: Trial, whole: Trial) -> bool:
    """Whether half of a rate is the better one to train with."""
    if whole.breaks.any():
        return True
    return bool((half.last < whole.last - GAIN).all())


def beginning(
    trainer: Trainer, split: Split, state: TrainState
) -> Callable[[float], np.ndarray]:
    """A function that trains for an epoch with a rate; it gives losses [R, S].

    The program is compiled once, for all rates.

    Args:
      trainer: of the recipe with 1 as its highest rate.
      split: the training images.
      state: to start from; it is left as it is.
    """
    steps = min(trainer.steps_per_epoch, trainer.total_steps)
    recipe, schedule, place = trainer.recipe, trainer.schedule, trainer.placement
    size, count = recipe.batch_size, trainer.spec.train_size

    def train(states: TrainState, data: DeviceData, rate: jax.Array) -> jax.Array:
        tx = recipe.make_optimizer(lambda step: rate * schedule(step))
        train_step = dataclasses.replace(trainer.train_step, tx=tx)

        def of_one(state: TrainState) -> jax.Array:
            order = first_order(state.key, steps, size, count)
            carry = state, jnp.full(steps, jnp.nan)

            def body(_: jax.Array, carry: tuple) -> tuple:
                return train_step(carry, order, data)

            return lax.fori_loop(0, steps, body, carry)[1]

        return replica_map()(of_one, states)

    program = place.map(train, spread=1, shared=2)
    data, states = trainer.put(split), place.spread(state)

    def begin(rate: float) -> np.ndarray:
        losses = program(states, data, np.float32(rate))
        return np.asarray(jax.device_get(place.collect(losses)), np.float64)

    return begin
