"""Checks whether a rate is too high by training with it and with half of it.

A range test trains for one step at each rate. A network without normalisation may
survive a rate for a step and diverge at the same rate some steps later. The check
therefore begins the training that would follow, once with the rate and once with half
of it, with the same seeds. If half of the rate is safer or better, it becomes the rate,
and the check is repeated.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from cifar_flax.data import Split
from cifar_flax.jax_settings import known_settings
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Trainer

TRIAL_STEPS = 100  # at most; a trial is an epoch if that is shorter
MIN_UPDATES = 4  # of a trial, if gradients are accumulated
WINDOW = 25  # steps of an average of losses, at most
RISE = 0.5  # in nats; a seed diverges if its mean loss rises by more than this
# Half the rate is better if its mean loss is lower by this, in nats, over WINDOW steps.
GAIN = 0.02
MOST_HALVINGS = 4
CHECK_SEEDS = 3  # the first of the seeds of the range test


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """The beginning of training with one rate.

    Attributes:
      rate: the highest rate of the schedule.
      losses: loss of each step's batch, float64 [R, S]; NaN or infinite after a replica
        has diverged.
    """

    rate: float
    losses: np.ndarray

    @property
    def window(self) -> int:
        """Steps of a window: ``WINDOW``, or a quarter of all steps if it is fewer."""
        return max(1, min(WINDOW, self.losses.shape[1] // 4))

    @property
    def averages(self) -> np.ndarray:
        """Means of the losses over consecutive windows, [R, W]."""
        replicas, steps = self.losses.shape
        window, count = self.window, steps // self.window
        last = self.losses[:, steps - count * window :]
        return last.reshape(replicas, count, window).mean(-1)

    @property
    def last(self) -> np.ndarray:
        """Mean loss of the last window, [R]."""
        return self.averages[:, -1]

    @property
    def breaks(self) -> np.ndarray:
        """Whether the loss of each replica ends NaN or infinite, or has risen, [R]."""
        averages = self.averages
        return ~(averages[:, -1] < averages.min(1) + RISE)  # also where it is NaN


@dataclasses.dataclass(frozen=True, eq=False)
class RateCheck:
    """The result of a check.

    Attributes:
      rate: the rate to train with; the highest that is neither unsafe nor worse than
        half of it.
      trials: the trials with the suggested rate, with half of it, and so on.
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
    """Begins the training with a rate, and halves the rate while that is better.

    Args:
      trainer: a trainer of a few seeds, with a recipe whose highest rate is 1.
      split: the training images.
      rate: the rate to check.
      state: where each trial starts; the check does not change it.
      on_progress: called before each trial; an exception that it raises ends the check.
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
    """Returns whether half of a rate is better to train with than the rate.

    It is if a seed diverges at the rate, or if the loss with half of it is lower in the
    mean over the seeds. (A rule that asks every seed to gain misses a rate that breaks
    only some of them; see docs/learning-rates.md.) The mean of a shorter window is
    noisier, and the necessary gain rises as its standard error does.
    """
    if whole.breaks.any():
        return True
    gain = GAIN * (WINDOW / whole.window) ** 0.5
    return bool(half.last.mean() < whole.last.mean() - gain)


def beginning(
    trainer: Trainer, split: Split, state: TrainState
) -> Callable[[float], np.ndarray]:
    """Returns a function that begins training with a rate and returns the losses.

    It trains as the recipe does, with what its phases freeze and the size of their
    images. The program is compiled once, for all rates. The losses have the shape
    [R, S]; they are NaN after a replica has diverged.

    Args:
      trainer: a trainer of a recipe whose highest rate is 1.
      split: the training images.
      state: where training starts; it is not changed.
    """
    first, data = int(state.step.max()), trainer.put(split)
    left = trainer.total_steps - first
    steps, every = min(trainer.steps_per_epoch, TRIAL_STEPS), trainer.recipe.accumulate
    if every > 1:  # steps of the optimizer
        steps = max(steps, MIN_UPDATES * every)
    steps = min(steps, left)

    def begin(rate: float) -> np.ndarray:
        losses = np.full((len(trainer.seeds), steps), np.nan)
        for progress in trainer.chunks(state, data, rate=rate, stop=first + steps):
            done = progress.step - first
            losses[:, done - progress.losses.shape[1] : done] = progress.losses
        return losses

    return begin
