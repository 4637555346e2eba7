"""The programs of training, which equal trainers of a process share.

Each function here returns the same jitted function for equal arguments, and JAX
compiles that once for each shape of its own arguments. The name of the backend is an
argument because ``replica_map`` depends on it.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.data.augment import normalise
from cifar_flax.training import processes
from cifar_flax.training.placement import MOST_PROGRAMS, Placement, replica_map
from cifar_flax.training.state import TrainState, init_state
from cifar_flax.training.steps import Carry, DeviceData, TrainStep, epoch_order

RATES_AT_ONCE = 1024  # steps


def train_steps(
    step: TrainStep,
    states: TrainState,
    orders: jax.Array,
    data: DeviceData,
    stop: jax.Array,
    rate: jax.Array | None = None,
    *,
    side_by_side: int | None = None,
) -> tuple[TrainState, jax.Array]:
    """Trains R replicas up to a step; the one loop in which anything is trained.

    Args:
      step: the training step.
      states: of all replicas.
      orders: orders of the images in the epoch, [R, N].
      data: see ``DeviceData``.
      stop: the step to stop at, within the epoch, int32 [].
      rate: see ``TrainStep.make_tx``.
      side_by_side: see ``Placement``.

    Returns:
      The states, and the loss of each step of the epoch, [R, S]; NaN for the steps that
      were not done.
    """

    def of_one(replica: tuple[TrainState, jax.Array]) -> Carry:
        state, order = replica
        return lax.while_loop(
            lambda carry: (carry[0].step < stop) & jnp.isfinite(carry[0].totals.loss),
            functools.partial(step, order=order, data=data, rate=rate),
            (state, jnp.full(step.steps_per_epoch, jnp.nan)),
        )

    return replica_map(side_by_side)(of_one, (states, orders))


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def training(step: TrainStep, place: Placement, backend: str) -> Any:
    """Returns ``train_steps`` of a step as a program."""
    del backend
    steps = functools.partial(train_steps, step, side_by_side=place.side_by_side)
    return place.map(steps, spread=2, shared=3)


def compile_fitting(lowered: Any, last: bool) -> Any:
    """Compiles a program, if the device has the memory that it needs as it runs.

    Args:
      lowered: the program, lowered.
      last: whether no smaller program exists; then the device must run this one.

    Returns:
      The compiled program; None if it does not fit.
    """
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if last or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None
    return compiled if last or _fits(compiled) else None


def _fits(compiled: Any) -> bool:
    """Returns whether the device has the memory that a program needs as it runs."""
    stats = jax.local_devices()[0].memory_stats() or {}
    needs = compiled.memory_analysis()
    if needs is None or "bytes_limit" not in stats:  # a CPU
        return True
    results = needs.output_size_in_bytes - needs.alias_size_in_bytes
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    # All processes must run the same program.
    return bool(processes.of_first(needs.temp_size_in_bytes + results <= free))


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def initial(step: TrainStep, backend: str) -> Any:
    """Returns a program: seeds [R], images uint8 [N, H, W, C] -> the first states."""
    del backend
    model, spec, tx = step.model, step.spec, step.make_tx()

    averages = step.recipe.has_average

    def init_of_all(seeds: jax.Array, images: jax.Array) -> TrainState:
        images = normalise(images, spec.mean, spec.std)
        return replica_map()(
            lambda seed: init_state(jax.random.key(seed), model, tx, images, averages),
            seeds,
        )

    # The program runs once, and optimising it would take seconds.
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(init_of_all, compiler_options=options)


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def optimizer_states(step: TrainStep) -> Any:
    """Returns a program: parameters of R replicas -> first states of the optimizer."""
    return jax.jit(jax.vmap(step.make_tx().init))


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def rates(step: TrainStep) -> Any:
    """Returns a program: first step -> rates of it and those after, [RATES_AT_ONCE]."""
    schedule = step.schedule
    return jax.jit(lambda first: jax.vmap(schedule)(first + jnp.arange(RATES_AT_ONCE)))


@functools.partial(jax.jit, static_argnums=2)
def epoch_orders(keys: jax.Array, epoch: jax.Array, count: int) -> jax.Array:
    """Returns ``epoch_order`` of R replicas, [R, N]."""
    return jax.vmap(lambda key: epoch_order(key, epoch, count))(keys)
