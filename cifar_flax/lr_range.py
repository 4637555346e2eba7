"""The learning-rate range test: train while the rate rises, and watch the loss.

Where the loss falls fastest, and where it breaks away, bound the rates worth training
with. The test starts from a copy of the state that it is given.

References:
  Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017,
  https://arxiv.org/abs/1506.01186
  Howard and others, fastai, https://docs.fast.ai: the customs of reading the curve
  (steepest, minimum / 10, valley, slide).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cifar_flax.errors import UserError
from cifar_flax.loop import Data, Trainer, map_replicas
from cifar_flax.schedules import ramp
from cifar_flax.state import Totals, TrainState
from cifar_flax.steps import train_step

MIN_STEPS = 20


@dataclasses.dataclass(frozen=True)
class RangeSettings:
    """How the rate rises, and when the test stops.

    Attributes:
      start_lr: rate of the first step.
      end_lr: rate of the last one.
      num_steps: steps; None for an epoch.
      linear: rise by equal differences instead of equal ratios.
      smoothing: beta of the debiased moving average of the loss, in [0, 1).
      stop_factor: a replica stops where its smoothed loss is this many times its
        minimum so far, or its loss is not finite.
    """

    start_lr: float = 1e-5
    end_lr: float = 10.0
    num_steps: int | None = None
    linear: bool = False
    smoothing: float = 0.98
    stop_factor: float = 4.0

    def __post_init__(self):
        if not 0 < self.start_lr < self.end_lr < float("inf"):
            raise UserError(
                f"start_lr is {self.start_lr:g} and end_lr {self.end_lr:g}; the rate "
                "must rise from a number above 0 to a finite one"
            )
        if self.num_steps is not None and self.num_steps < MIN_STEPS:
            raise UserError(
                f"num_steps is {self.num_steps}; a range test takes {MIN_STEPS} or more"
            )
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing is {self.smoothing}; it must be in [0, 1)")


@dataclasses.dataclass(frozen=True, eq=False)
class RangeResult:
    """The curves of R replicas over S steps.

    Attributes:
      seeds: one a replica.
      rates: of the steps, float64 [S].
      losses: of the batch of each step, before its update, float64 [R, S]; NaN from
        where the replica stopped.
      smoothed: the debiased moving average of them, float64 [R, S].
    """

    seeds: tuple[int, ...]
    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray


def smooth(losses: np.ndarray, beta: float) -> np.ndarray:
    """``s_k = (1 - beta) * sum_{i <= k} beta**(k - i) * l_i / (1 - beta**(k + 1))``.

    Args:
      losses: [..., S], over the last axis.
      beta: share of the average that a step keeps.
    """
    average = np.zeros(losses.shape[:-1])
    smoothed = np.empty_like(losses)
    for k in range(losses.shape[-1]):
        average = beta * average + (1 - beta) * losses[..., k]
        smoothed[..., k] = average / (1 - beta ** (k + 1))
    return smoothed


def range_test(
    trainer: Trainer,
    settings: RangeSettings = RangeSettings(),
    state: TrainState | None = None,
) -> RangeResult:
    """Runs the test for every replica of a trainer, in one compiled program.

    Data, augmentation, batch size, momentum and regularisation are those of training;
    the momentum starts from zero.

    Args:
      trainer: what would train.
      settings: of the test.
      state: to start from; None for the initial one. It is left as it is.

    Raises:
      UserError: no replica has a finite loss at the start.
    """
    steps = settings.num_steps or trainer.steps_per_epoch
    if steps < MIN_STEPS:
        raise UserError(
            f"an epoch has {steps} steps; a range test takes {MIN_STEPS} or more, give "
            "num_steps"
        )
    state = trainer.init() if state is None else state
    schedule = ramp(settings.start_lr, settings.end_lr, steps, settings.linear)

    def of_one(state: TrainState, data: Data) -> jax.Array:
        return _losses_of_one(trainer, settings, schedule, steps, state, data)

    program = jax.jit(map_replicas(of_one))
    losses = np.asarray(program(state, trainer.data), np.float64)
    if not np.isfinite(losses[:, 0]).any():
        raise UserError(
            f"the loss is not finite at the first step, at a rate of "
            f"{settings.start_lr:g}; the model cannot be trained as it starts"
        )
    done = int(np.isfinite(losses).sum(1).max())
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(done)), np.float64)
    losses = losses[:, :done]
    return RangeResult(trainer.seeds, rates, losses, smooth(losses, settings.smoothing))


def _losses_of_one(
    trainer: Trainer,
    settings: RangeSettings,
    schedule: optax.Schedule,
    steps: int,
    state: TrainState,
    data: Data,
) -> jax.Array:
    """The loss of each step of one replica, [steps]; NaN from where it stopped."""
    size = trainer.recipe.batch_size
    tx = trainer.recipe.optimizer(schedule)
    beta = settings.smoothing
    epochs = jnp.arange(-(-steps // trainer.steps_per_epoch))
    orders = jax.vmap(lambda epoch: trainer.epoch_order(state.key, epoch))(epochs)
    orders = orders[:, : trainer.steps_per_epoch * size].reshape(-1)

    def keep_going(carry):
        step, _, _, _, _, going = carry
        return going & (step < steps)

    def body(carry):
        step, state, losses, average, best, _ = carry
        indices = lax.dynamic_slice(orders, (step * size,), (size,))
        images, labels, key = trainer.batch(state.key, step, indices, data)
        state = train_step(
            dataclasses.replace(state, totals=Totals.zero()),
            images,
            labels,
            key=key,
            model=trainer.model,
            tx=tx,
            label_smoothing=trainer.recipe.label_smoothing,
        )
        loss = state.totals.loss / size
        average = beta * average + (1 - beta) * loss
        smoothed = average / (1 - beta ** (step + 1))
        best = jnp.minimum(best, smoothed)
        going = jnp.isfinite(loss) & (smoothed <= settings.stop_factor * best)
        losses = losses.at[step].set(jnp.where(jnp.isfinite(loss), loss, jnp.nan))
        return step + 1, state, losses, average, best, going

    start = dataclasses.replace(
        state, opt_state=tx.init(state.params), totals=Totals.zero()
    )
    carry = (
        jnp.int32(0),
        start,
        jnp.full(steps, jnp.nan),
        jnp.float32(0),
        jnp.float32(jnp.inf),
        jnp.bool_(True),
    )
    return lax.while_loop(keep_going, body, carry)[2]


def suggest(result: RangeResult, method: str) -> np.ndarray:
    """The rate that a method reads off the curve of each replica.

    Args:
      result: of ``range_test``.
      method: a key of ``METHODS``.

    Returns:
      [R]; NaN where the curve shows none.

    Raises:
      UserError: no such method.
    """
    if method not in METHODS:
        raise UserError(f"no method {method!r}; the methods are {', '.join(METHODS)}")
    rates = []
    for smoothed in result.smoothed:
        shown = np.isfinite(smoothed)
        rates.append(METHODS[method](result.rates[shown], smoothed[shown]))
    return np.array(rates)


def steepest(rates: np.ndarray, losses: np.ndarray) -> float:
    """Where the loss falls fastest: ``argmin d loss / d log(rate)``.

    The first ten steps, whose average is of few losses, and the last five, where the
    loss breaks away, are left out, as is the custom.
    """
    if len(rates) < MIN_STEPS:
        return np.nan
    slope = np.gradient(losses, np.log(rates))[10:-5]
    at = int(np.argmin(slope))
    return float(rates[10 + at]) if slope[at] < 0 else np.nan


def minimum_tenth(rates: np.ndarray, losses: np.ndarray) -> float:
    """A tenth of the rate at the lowest loss."""
    at = int(np.argmin(losses))
    return float(rates[at]) / 10 if losses[at] < losses[0] else np.nan


def valley(rates: np.ndarray, losses: np.ndarray) -> float:
    """The middle of the longest falling part.

    Of the longest decreasing subsequence of the losses, as long as L steps and ending
    at step e, the rate at step ``e - L / 2``.
    """
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        higher = lengths[:i][losses[:i] > losses[i]]
        lengths[i] = 1 + (higher.max() if len(higher) else 0)
    end = int(np.argmax(lengths))
    length = int(lengths[end])
    return float(rates[max(0, end - length // 2)]) if length > 2 else np.nan


def slide(rates: np.ndarray, losses: np.ndarray) -> float:
    """The left end of the window at which the slope changes least, from the right.

    A window of 15 steps slides to smaller rates from where the loss breaks away, for as
    long as the slopes at its two ends differ by more than 0.05.
    """
    width, threshold = 15, 0.05
    slope = np.gradient(losses, np.log(rates)) if len(rates) > width else []
    for right in range(len(slope) - 1, width - 1, -1):
        if abs(slope[right] - slope[right - width]) <= threshold:
            return float(rates[right - width])
    return np.nan


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "steepest": steepest,
    "minimum/10": minimum_tenth,
    "valley": valley,
    "slide": slide,
}
