"""Pieces for your own training loops: batches on the device, and a range test."""

import time
import types
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cifar_flax.analysis.range_curve import RangeResult
from cifar_flax.data.augment import NO_AUGMENTATION, Augmentation, pad_images
from cifar_flax.data.splits import DataSpec, Split
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.models.streams import Stream
from cifar_flax.training.arguments import check_recipe, check_split
from cifar_flax.training.lr_range import Curves, Ramp, RangeSettings, result_of
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.steps import DeviceData, TrainStep, epoch_order


@known_settings()
def batches(
    split: Split,
    spec: DataSpec,
    batch_size: int,
    augmentation: Augmentation = NO_AUGMENTATION,
    *,
    seed: int = 0,
    epochs: float = 1,
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Returns the batches of a training: shuffled, augmented and normalised.

    The images are moved to the device once, as bytes; each batch is made there. The
    batches are those of a run with this seed, batch size and augmentation.

    Args:
      split: the training images.
      spec: of their data, ``Splits.spec``.
      batch_size: images in a batch. Those that do not fill one differ between epochs.
      augmentation: of the images, without mixup and cutmix.
      seed: of the order and of the augmentation.
      epochs: number of passes through the images.

    Returns:
      An iterator over images, float32 [B, H, W, C], and labels, int32 [B].

    Raises:
      UserError: the arguments do not fit together.
    """
    if augmentation.mixes:
        raise UserError(
            "mixup and cutmix mix the targets of the loss, too; leave them out here, "
            "and mix in your own step"
        )
    recipe = Recipe(
        (Constant(1.0, epochs),), batch_size=batch_size, augmentation=augmentation
    )
    check_recipe(recipe, spec)
    check_split("split to train on", split, spec)
    padded = pad_images(split.images, augmentation)
    data = jnp.asarray(padded), jnp.asarray(split.labels)
    key = Stream.REPLICA.of(jax.random.key(seed))
    return _batches(TrainStep(nn.Module(), recipe, spec), key, data)


def _batches(
    step: TrainStep, key: jax.Array, data: DeviceData
) -> Iterator[tuple[jax.Array, jax.Array]]:
    per_epoch, count = step.steps_per_epoch, len(data[1])

    @jax.jit
    def batch(key: jax.Array, number: Any, order: Any, data: Any) -> tuple[Any, Any]:
        state: Any = types.SimpleNamespace(key=key, step=number)
        images, labels, *_ = step.batch(state, order, data)
        return images, labels

    for number in range(step.recipe.count_steps(per_epoch)):
        with known_settings():
            if number % per_epoch == 0:
                order = epoch_order(key, jnp.int32(number // per_epoch), count)
            made = batch(key, jnp.int32(number), order, data)
        yield made


def range_curves(
    loss_fn: Callable[[Any, Any], jax.Array],
    params: Any,
    batches: Iterable[Any],
    settings: RangeSettings | None = None,
    make_optimizer: Callable[
        [optax.Schedule], optax.GradientTransformation
    ] = lambda rate: optax.sgd(rate, 0.9),
) -> RangeResult:
    """Runs a range test of the learning rate for your own loss function.

    It trains for some steps at a rising rate, as the range test of a run does, and
    changes nothing that is given. ``RangeResult.consensus`` reads a rate off the curve.

    Args:
      loss_fn: returns the mean loss of a batch, a scalar, from parameters and batch.
      params: the parameters at the start, any tree of arrays.
      batches: of any kind; begun anew when they end before the test does.
      settings: of the test. The number of steps is by default that of the batches, and
        at least 100.
      make_optimizer: makes the optimizer from the rate, a function of the step; by
        default SGD with momentum.

    Raises:
      UserError: the loss is no scalar, or NaN or infinite at the start, or there are
        too few batches.
    """
    settings = settings or RangeSettings()
    sized = len(batches) if isinstance(batches, Sized) else 0
    steps = settings.num_steps or max(100, sized)
    rise = Ramp(settings.start_lr, settings.end_lr, steps, settings.linear)
    tx = make_optimizer(rise)

    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    curves, opt_state, compiling = Curves(settings), tx.init(params), 0.0
    start = time.perf_counter()
    for number, batch in zip(range(steps), _endless(batches, steps), strict=False):
        if number == 0:
            _check_loss(loss_fn, params, batch)
        params, opt_state, loss = step(params, opt_state, batch)
        going = curves.add(np.asarray(loss, np.float64).reshape(1, 1))
        if number == 0:
            compiling = time.perf_counter() - start
        if not going:
            break
    return result_of(
        *(curves, rise, settings),
        seeds=(0,),
        to_check="the parameters",
        seconds=time.perf_counter() - start - compiling,
        compile_seconds=compiling,
    )


def _check_loss(loss_fn: Callable[[Any, Any], Any], params: Any, batch: Any) -> None:
    """Raises a UserError if a loss is no scalar."""
    found = jax.eval_shape(loss_fn, params, batch)
    shape = getattr(found, "shape", type(found).__name__)
    if shape != ():
        raise UserError(
            f"the loss function returns {shape} and must return a scalar, the mean "
            "loss of the batch"
        )


def _endless(batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """Yields batches again and again."""
    total = 0
    while True:
        before = total
        for total, batch in enumerate(batches, start=before + 1):  # noqa: B007
            yield batch
        if total == before:
            raise UserError(
                f"the batches end after {total} of {steps} steps; give more, or a list "
                "of them, which is begun anew"
            )
