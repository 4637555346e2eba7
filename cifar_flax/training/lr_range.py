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
import functools
import time
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_flax.analysis.range_curve import MIN_STEPS, RangeResult
from cifar_flax.data import Split
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.training import processes
from cifar_flax.training.checks import MAX_FLOAT
from cifar_flax.training.evaluation import replica_map
from cifar_flax.training.schedules import ramp
from cifar_flax.training.state import TrainState
from cifar_flax.training.steps import DeviceData, TrainStep, first_order
from cifar_flax.training.trainer import Trainer, next_chunk

# These limits and their ratio are normal numbers in float32.
MIN_RATE, MAX_RATE = 1e-30, MAX_FLOAT
MAX_RISE = 1e30

# The test makes the indices of the images of all steps at once: at most 256 MB per
# replica.
MAX_IMAGES = 2**26


@dataclasses.dataclass(frozen=True)
class RangeSettings:
    """Describes how the rate rises, and when the test stops.

    Attributes:
      start_lr: rate of the first step.
      end_lr: rate of the last step.
      num_steps: number of steps; None for an epoch, or for 100 steps if an epoch is
        shorter.
      linear: whether the rate rises by equal differences instead of equal ratios.
      smoothing: beta of the debiased moving average of the loss, in [0, 1).
      stop_factor: a replica stops if its smoothed loss exceeds its minimum so far by
        this factor, or if its loss is NaN or infinite.
    """

    start_lr: float = 1e-5
    end_lr: float = 10.0
    num_steps: int | None = None
    linear: bool = False
    smoothing: float = 0.98
    stop_factor: float = 4.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_missing = value is None and field.name == "num_steps"
            if not isinstance(value, float | int) and not is_missing:
                raise UserError(f"{field.name} is {value!r}; it must be a number")
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
        if self.num_steps is not None and not MIN_STEPS <= self.num_steps <= MAX_IMAGES:
            raise UserError(
                f"num_steps is {self.num_steps}; a range test takes {MIN_STEPS} or "
                f"more, and {MAX_IMAGES} at most"
            )
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing is {self.smoothing}; it must be in [0, 1)")

    def steps_for(self, trainer: Trainer) -> int:
        """Returns the number of steps of the test of a trainer.

        Raises:
          UserError: with the trainer's batch size, the steps take too many images.
        """
        steps = self.num_steps or max(100, trainer.steps_per_epoch)
        size = trainer.recipe.batch_size
        if steps * size > MAX_IMAGES:
            raise UserError(
                f"num_steps is {steps} and batch_size {size}; a range test takes "
                f"{MAX_IMAGES} images at most; lower one of them"
            )
        return steps


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


@flax.struct.dataclass
class _Carry:
    """The state of one replica during its test.

    Attributes:
      state: a copy that trains, from step 0.
      order: indices of the images of all steps, [steps * B].
      losses: loss of each step, [steps]; NaN for steps that are not done.
      average: moving average of the losses, biased towards 0.
      best: lowest smoothed loss so far.
      going: whether the replica still trains; False after its loss has diverged.
    """

    state: TrainState
    order: jax.Array
    losses: jax.Array
    average: jax.Array
    best: jax.Array
    going: jax.Array


@known_settings()
def range_curves(
    trainer: Trainer,
    split: Split,
    settings: RangeSettings = RangeSettings(),
    state: TrainState | None = None,
    on_progress: Callable[[int], None] = lambda step: None,
) -> RangeResult:
    """Runs the test for every replica of a trainer, in one compiled program.

    Data, augmentation, batch size, momentum and regularisation are those of training.
    The momentum starts from zero.

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
    schedule = ramp(settings.start_lr, settings.end_lr, steps, settings.linear)
    tx = trainer.recipe.make_optimizer(schedule)
    train_step = dataclasses.replace(trainer.train_step, tx=tx)
    begin = functools.partial(_begin, train_step, steps)

    def advance(carries: _Carry, data: DeviceData, stop: jax.Array) -> _Carry:
        def of_one(carry: _Carry) -> _Carry:
            return _advance(train_step, settings, carry, data, stop)

        return replica_map()(of_one, carries)

    data, place = trainer.put(split), trainer.placement
    state = trainer.init(split) if state is None else state
    start = time.perf_counter()
    first = place.map(lambda states: replica_map()(begin, states), spread=1, shared=0)
    carry = first(place.spread(state))
    program = place.map(advance, spread=1, shared=2)
    run = program.lower(carry, data, np.int32(0)).compile()
    compiled = time.perf_counter()
    stop, chunk, going = 0, 1, True
    while stop < steps and going:
        before, called = stop, time.perf_counter()
        stop = min(stop + chunk, steps)
        carry = run(carry, data, np.int32(stop))
        losses, still = jax.device_get(place.collect((carry.losses, carry.going)))
        going = bool(still.any())
        chunk = next_chunk(stop - before, time.perf_counter() - called)
        chunk = int(processes.of_first(chunk))
        on_progress(stop)
    times = {
        "seconds": time.perf_counter() - compiled,
        "compile_seconds": compiled - start,
    }
    return _result(trainer, settings, np.asarray(losses, np.float64), times)


def _result(
    trainer: Trainer,
    settings: RangeSettings,
    losses: np.ndarray,
    times: dict[str, float],
) -> RangeResult:
    """Makes the result of a test from its losses [R, steps]."""
    if not np.isfinite(losses[:, 0]).any():
        raise UserError(
            f"the loss is NaN or infinite at the first step, at a rate of "
            f"{settings.start_lr:g}; check the initial values of the model"
        )
    done, steps = int(np.isfinite(losses).sum(1).max()), losses.shape[1]
    schedule = ramp(settings.start_lr, settings.end_lr, steps, settings.linear)
    rates = np.asarray(jax.vmap(schedule)(jnp.arange(done)), np.float64)
    return RangeResult(
        seeds=trainer.seeds,
        num_steps=steps,
        rates=rates,
        losses=losses[:, :done],
        smoothed=smooth(losses[:, :done], settings.smoothing),
        **times,
    )


def _begin(train_step: TrainStep, steps: int, state: TrainState) -> _Carry:
    """Returns one replica before its first step."""
    opt_state = train_step.tx.init(state.params)
    size, count = train_step.batch_size, train_step.spec.train_size
    return _Carry(
        state=dataclasses.replace(state, step=jnp.int32(0), opt_state=opt_state),
        order=first_order(state.key, steps, size, count),
        losses=jnp.full(steps, jnp.nan),
        average=jnp.float32(0),
        best=jnp.float32(jnp.inf),
        going=jnp.bool_(True),
    )


def _advance(
    train_step: TrainStep,
    settings: RangeSettings,
    carry: _Carry,
    data: DeviceData,
    stop: jax.Array,
) -> _Carry:
    """Trains one replica up to a step, or until its loss diverges."""
    beta = settings.smoothing

    def body(carry: _Carry) -> _Carry:
        step = carry.state.step
        state, losses = train_step((carry.state, carry.losses), carry.order, data)
        loss = losses[step]
        average = beta * carry.average + (1 - beta) * loss
        smoothed = average / (1 - beta ** (step + 1))
        best = jnp.minimum(carry.best, smoothed)
        finite = jnp.isfinite(loss)
        losses = losses.at[step].set(jnp.where(finite, loss, jnp.nan))
        going = finite & (smoothed <= settings.stop_factor * best)
        return dataclasses.replace(
            carry, state=state, losses=losses, average=average, best=best, going=going
        )

    def keep_going(carry: _Carry) -> jax.Array:
        return carry.going & (carry.state.step < stop)

    return lax.while_loop(keep_going, body, carry)
