"""The learning-rate range test: train while the rate rises, and watch the loss.

A rate is worth training with if the loss falls at it and does not yet diverge. The test
works on a copy of the state that it is given.

    trainer = Trainer(model, recipe, splits.spec, seeds=range(5))
    result = range_curves(trainer, splits.train)
    result.consensus().rate
    result.plot(axis)

Reference:
  Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017,
  https://arxiv.org/abs/1506.01186
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.analysis.range_curve import MIN_STEPS, RangeResult
from cifar_flax.data import Split
from cifar_flax.definitions import (
    MAX_FLOAT,
    SHARE,
    Definition,
    Hyper,
    Valid,
    is_number,
    whole,
)
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.training import processes
from cifar_flax.training.schedules import ramp
from cifar_flax.training.stages import Stage
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Trainer

# These limits and their ratio are normal numbers in float32.
MIN_RATE, MAX_RATE = 1e-30, MAX_FLOAT
MAX_RISE = 1e30

MOST_STEPS = 2**26  # the losses of all steps are kept


_NUMBER = Valid(is_number, "a number")


@dataclasses.dataclass(frozen=True)
class RangeSettings(Definition):
    """How the rate rises, and when the test stops."""

    start_lr: Annotated[float, Hyper("Rate of the first step.", _NUMBER)] = 1e-5
    end_lr: Annotated[float, Hyper("Rate of the last step.", _NUMBER)] = 10.0
    num_steps: Annotated[
        int | None,
        Hyper(
            "Number of steps (default: an epoch, or 100 if it is shorter).",
            Valid(
                whole(MIN_STEPS, MOST_STEPS).test,
                f"{MIN_STEPS} or more, and {MOST_STEPS} at most",
            ),
        ),
    ] = None
    linear: Annotated[
        bool, Hyper("Raise the rate by equal differences, not by equal ratios.")
    ] = False
    smoothing: Annotated[
        float,
        Hyper(
            "Share of the moving average of the loss that a step keeps.",
            SHARE,
            flag=False,
        ),
    ] = 0.98
    stop_factor: Annotated[
        float,
        Hyper(
            "A replica stops if its smoothed loss exceeds its minimum so far by this "
            "factor, or if its loss is NaN or infinite.",
            _NUMBER,
            flag=False,
        ),
    ] = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not MIN_RATE <= self.start_lr < self.end_lr <= MAX_RATE:
            raise UserError(
                f"start_lr is {self.start_lr:g} and end_lr {self.end_lr:g}; the rate "
                f"must rise, from {MIN_RATE:g} or more to {MAX_RATE:g} at most"
            )
        if self.end_lr / self.start_lr > MAX_RISE:
            raise UserError(
                f"start_lr is {self.start_lr:g} and end_lr {self.end_lr:g}; the rate "
                f"must rise by a factor of {MAX_RISE:g} at most"
            )

    def steps_for(self, trainer: Trainer) -> int:
        """Returns the number of steps of the test of a trainer."""
        return self.num_steps or max(100, trainer.steps_per_epoch)


@dataclasses.dataclass(frozen=True)
class Ramp:
    """The learning rate of a test; see ``schedules.ramp``.

    Attributes:
      start_value: rate of the first step.
      end_value: rate of the last step.
      num_steps: number of steps.
      linear: whether the rate rises by equal differences.
    """

    start_value: float
    end_value: float
    num_steps: int
    linear: bool = False

    def __call__(self, step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        """Returns the rate at a step."""
        return ramp(**dataclasses.asdict(self))(step)


def smooth(losses: np.ndarray, beta: float) -> np.ndarray:
    """Returns the debiased moving average of losses.

    ``s_k = (1 - beta) * sum_{i <= k} beta**(k - i) * l_i / (1 - beta**(k + 1))``

    Args:
      losses: [..., S], averaged over the last axis.
      beta: share of the average that a step keeps.
    """
    average = np.zeros(losses.shape[:-1])
    smoothed = np.empty_like(losses)
    for k in range(losses.shape[-1]):
        average = beta * average + (1 - beta) * losses[..., k]
        smoothed[..., k] = average / (1 - beta ** (k + 1))
    return smoothed


@known_settings()
def range_curves(
    trainer: Trainer,
    split: Split,
    settings: RangeSettings = RangeSettings(),
    state: TrainState | None = None,
    on_progress: Callable[[int], None] = lambda step: None,
) -> RangeResult:
    """Runs the test for every replica of a trainer.

    The test is a training with the trainer's recipe and data, except that the rate
    rises, and that the momentum starts from zero. If the phases of the recipe freeze
    parameters or change the size of the images, the test does as the phase in which the
    recipe first reaches its highest rate.

    Args:
      trainer: the trainer whose rate is looked for.
      split: the training images.
      settings: of the test.
      state: where the test starts; None for the initial state. The test does not change
        it.
      on_progress: called with the number of steps done, about once a second; an
        exception that it raises ends the test.

    Raises:
      UserError: the loss of every replica is NaN or infinite at the start.
    """
    steps = settings.steps_for(trainer)
    rise = Ramp(settings.start_lr, settings.end_lr, steps, settings.linear)
    tester = trainer.along(rise, steps, peak_stage(trainer))
    state = trainer.init(split) if state is None else state
    curves, seconds = Curves(settings), 0.0
    for progress in tester.run(tester.restarted(state), split):
        seconds += progress.seconds
        going = curves.add(progress.losses)
        on_progress(progress.step)
        if not processes.of_first(np.int32(going)):
            break
    return result_of(
        *(curves, rise, settings),
        seeds=trainer.seeds,
        to_check="the initial values of the model",
        seconds=seconds,
        compile_seconds=tester.compile_seconds,
    )


def result_of(
    curves: "Curves",
    rise: Ramp,
    settings: RangeSettings,
    *,
    seeds: tuple[int, ...],
    to_check: str,
    seconds: float,
    compile_seconds: float,
) -> RangeResult:
    """Returns the result of a range test, up to the last step with a finite loss.

    Args:
      curves: the losses of all steps.
      rise: the rates.
      settings: of the test.
      seeds: of the replicas.
      to_check: what the error says to check if no first loss is finite.
      seconds: time of the steps.
      compile_seconds: time of the compilation.

    Raises:
      UserError: the loss of every replica is NaN or infinite at the start.
    """
    losses = np.stack(curves.losses, 1)
    if not np.isfinite(losses[:, 0]).any():
        raise UserError(
            f"the loss is NaN or infinite at the first step, at a rate of "
            f"{settings.start_lr:g}; check {to_check}"
        )
    done = int(np.isfinite(losses).sum(1).max())
    return RangeResult(
        seeds=seeds,
        num_steps=rise.num_steps,
        rates=np.asarray(jax.vmap(rise)(jnp.arange(done)), np.float64),
        losses=losses[:, :done],
        smoothed=smooth(losses[:, :done], settings.smoothing),
        seconds=seconds,
        compile_seconds=compile_seconds,
    )


def peak_stage(trainer: Trainer) -> Stage:
    """Returns the stage in which a trainer's recipe first reaches its highest rate."""
    stages = trainer.stages
    if len({stage.kind for stage in stages}) == 1:
        return stages[0]
    peak = trainer.rates(trainer.total_steps).argmax()
    return next(stage for stage in stages if peak < stage.stop)


class Curves:
    """The losses of R replicas up to the step at which each stops.

    Attributes:
      losses: of each step, float64 [R]; NaN for a replica that has stopped.
    """

    def __init__(self, settings: RangeSettings):
        self.losses: list[np.ndarray] = []
        self._beta, self._factor = settings.smoothing, settings.stop_factor
        self._average: np.ndarray | float = 0.0
        self._best: np.ndarray | float = np.inf
        self._going: np.ndarray | bool = True

    def add(self, losses: np.ndarray) -> bool:
        """Adds the losses [R, S] of S steps; returns whether a replica continues."""
        for loss in losses.T.astype(np.float64):
            loss = np.where(self._going & np.isfinite(loss), loss, np.nan)
            self.losses.append(loss)
            self._average = self._beta * self._average + (1 - self._beta) * loss
            smoothed = self._average / (1 - self._beta ** len(self.losses))
            self._best = np.fmin(self._best, smoothed)
            # The loss of a user's own may be negative.
            rise = (self._factor - 1) * np.abs(self._best)
            most = np.where(
                self._best < 0, self._best + rise, self._factor * self._best
            )
            self._going = smoothed <= most  # False for NaN
        return bool(np.any(self._going))
