"""The training step of one replica, as a pure function."""

import dataclasses
import functools
from collections.abc import Hashable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cifar_flax.data.augment import (
    alternating_flips,
    mix,
    normalise,
    sample_images,
    vary,
    vary_further,
)
from cifar_flax.data.splits import DataSpec
from cifar_flax.layers.conv import Lowering
from cifar_flax.layers.tiling import in_tiles
from cifar_flax.models.calling import train_logits
from cifar_flax.models.streams import Stream
from cifar_flax.training.losses import Batch, balanced_weights, values_of
from cifar_flax.training.optimizers import path_in_words
from cifar_flax.training.placement import split_batch
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.stages import Stage
from cifar_flax.training.state import Totals, TrainState

# Padded training images, uint8 [N, H + 2p, W + 2p, C], and labels [N], on the device.
# Every compiled program takes them as an argument, because a constant of this size
# would take seconds to compile.
DeviceData = tuple[jax.Array, jax.Array]

# A replica's state and the losses of its steps, float32 [S].
Carry = tuple[TrainState, jax.Array]


def epoch_order(key: jax.Array, epoch: jax.Array, count: int) -> jax.Array:
    """Returns the order in which a replica sees the training images in an epoch, [N].

    Args:
      key: the replica's key, ``TrainState.key``.
      epoch: number of the epoch, from 0.
      count: N, the number of training images.
    """
    shuffle_key = Stream.SHUFFLE.of(key)
    return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), count)


def update_average(average: Any, variables: Any, step: jax.Array, ema: float) -> Any:
    """Updates a moving average of the variables after a step.

    ``a <- d a + (1 - d) v`` with ``d = min(ema, (1 + step) / (10 + step))``. The share
    d is smaller in the first steps, so that the average forgets the initial values.
    Arrays that are not floating-point numbers, such as counts, are copied.

    Args:
      average: average before the step; None if the recipe has no average.
      variables: variables after the step.
      step: number of the step, from 0.
      ema: the share that the average keeps in the long run.
    """
    if average is None:
        return None
    return interpolate(average, variables, jnp.minimum(ema, (1 + step) / (10 + step)))


def interpolate(average: Any, variables: Any, keep: jax.Array) -> Any:
    """Returns ``keep * average + (1 - keep) * variables`` of floating-point arrays."""

    def mix(mean: jax.Array, value: jax.Array) -> jax.Array:
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return value
        return (keep * mean + (1 - keep) * value).astype(value.dtype)

    return jax.tree.map(mix, average, variables)


def lookahead_share(
    done: jax.Array, every: int, ema: float, total: int, start: int | None = None
) -> jax.Array:
    """Returns the share that the average of Lookahead keeps, ``ema^k * (t / T)^3``.

    The average is updated every k steps; between updates the share is 1. The share
    grows with the cube of the time, so that the average follows the variables closely
    at first (Jordan 2024, https://arxiv.org/abs/2404.00498).

    Args:
      done: t, number of steps done.
      every: k.
      ema: share per step that the average keeps at the end.
      total: T, number of steps of the recipe.
      start: up to the first update after so many steps, the share is 0 at every step,
        so that the average is a copy of the variables; None: from the first step.
    """
    share = ema**every * (done / total) ** 3
    share = jnp.where(done % every == 0, share, 1.0)
    if start is None:
        return share
    return jnp.where(done <= (start // every + 1) * every, 0.0, share)


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """Trains one replica for one step. It holds settings and no arrays.

    Every random number is a function of ``state.key`` and ``state.step``. Steps that
    compute the same are equal, and share compiled programs.

    Attributes:
      model: see ``models.calling``.
      recipe: how to train.
      spec: of the data.
      lowering: of the model's convolutions.
      ramp: replaces the learning rate of the recipe; a function of the step.
      stages: replace those of the recipe.
      freeze: see ``Stage``; of the stage of this step.
      image_size: see ``Stage``.
      computes: checksum of what model and recipe compute, which decides whether two
        steps are equal; the step equals no other if it is not given.
    """

    model: nn.Module = dataclasses.field(compare=False)
    recipe: Recipe = dataclasses.field(compare=False)
    spec: DataSpec
    lowering: Lowering = "auto"
    ramp: optax.Schedule | None = None
    stages: tuple[Stage, ...] = ()
    freeze: str | None = None
    image_size: int | None = None
    computes: Hashable = dataclasses.field(default_factory=object)

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in the training split."""
        return self.spec.train_size // self.recipe.batch_size

    @functools.cached_property
    def schedule(self) -> optax.Schedule:
        """The learning rate, a function of the step."""
        return self.ramp or self.recipe.schedule(self.steps_per_epoch)

    def make_tx(self, rate: jax.Array | None = None) -> optax.GradientTransformation:
        """Makes the optimizer.

        Args:
          rate: factor of the learning rate, float32 []; None: the rate as it is.
        """
        schedule = self.schedule
        stages = self.stages or self.recipe.stages(self.steps_per_epoch)
        needs_stages = self.recipe.restart_momentum or any(
            stage.freeze is not None for stage in stages
        )

        def scaled(step: jax.typing.ArrayLike) -> jax.Array:
            assert rate is not None
            return rate * schedule(step)

        # A custom make_optimizer takes only the schedule; its recipe has no stages that
        # need the others.
        given = (schedule if rate is None else scaled,)
        return self.recipe.make_optimizer(*given, *([stages] if needs_stages else []))

    def is_frozen(self, path: str) -> bool:
        """Returns whether a parameter is frozen by its group or by the phase."""
        return self.recipe.is_frozen(path, Stage(0, 0, self.freeze))

    def __call__(
        self,
        carry: Carry,
        order: jax.Array,
        data: DeviceData,
        rate: jax.Array | None = None,
    ) -> Carry:
        """Takes a step on the mean loss of a batch and adds to the sums of the log.

        Args:
          carry: of one replica; the loss of step s is written at s modulo S.
          order: indices of the images in their order, [M]; step s takes the batch s
            modulo M // batch_size.
          data: see ``DeviceData``.
          rate: see ``make_tx``.
        """
        (state, losses), varied = carry, self.recipe.augmentation
        batch = self.batch(state, order, data)
        labels, share = batch.labels, jnp.float32(1)
        if varied.mixes:
            mix_key = Stream.MIX.of(batch.key)
            images, share = mix(mix_key, batch.images, varied)
            batch = batch._replace(images=images)
        weights = self._class_weights(data)
        loss_fn = functools.partial(self._loss, state, batch, share, weights)
        gradient = jax.grad(loss_fn, has_aux=True)
        if self.lowering == "native":
            gradient = in_tiles(gradient)
        grads, aux = gradient(state.params)
        loss, logits, collections = aux
        mean = loss / labels.size
        # Some optimizers also use the loss.
        tx = optax.with_extra_args_support(self.make_tx(rate))
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=mean)
        params = optax.apply_updates(state.params, updates)
        losses = losses.at[state.step % losses.size].set(mean)
        trained = {"params": params, **collections}
        trained, average = self._averaged(trained, state, opt_state)
        params = trained.pop("params")
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            collections=trained,
            opt_state=opt_state,
            totals=Totals(
                loss=state.totals.loss + loss,
                correct=state.totals.correct + (logits.argmax(-1) == labels).sum(),
                count=state.totals.count + labels.shape[0],
            ),
            average=average,
        )
        return state, losses

    def _loss(
        self,
        state: TrainState,
        batch: Batch,
        share: jax.Array,
        weights: jax.Array | None,
        params: Any,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array, Any]]:
        """Returns the mean loss of a batch; and its sum, logits [B, K], collections."""
        recipe = self.recipe
        freezes = bool(recipe.groups) or self.freeze is not None
        held = self._held(params) if freezes else params
        logits, collections = train_logits(
            self.model,
            {"params": held, **state.collections},
            batch.images,
            batch.key,
            self.is_frozen if freezes and recipe.freeze_norms else None,
        )
        logits = logits.astype(jnp.float32)
        given = batch._replace(key=Stream.LOSS.of(batch.key))
        how = recipe.label_smoothing, weights
        each = values_of(recipe.loss, recipe.loss_args, logits, given, *how)
        if recipe.augmentation.mixes:  # ``mix`` takes the previous image of the batch
            before = given.before()
            others = values_of(recipe.loss, recipe.loss_args, logits, before, *how)
            each = share * each + (1 - share) * others
        return each.mean(), (each.sum(), logits, collections)

    def _class_weights(self, data: DeviceData) -> jax.Array | None:
        """Returns the factor of the loss for each class, [K], or None."""
        weights = self.recipe.class_weights
        if weights == "balanced":
            return balanced_weights(data[1], self.spec.num_classes)
        return None if weights is None else jnp.asarray(weights, jnp.float32)

    def _averaged(
        self, trained: Any, state: TrainState, opt_state: Any
    ) -> tuple[Any, Any]:
        """Returns the variables for the next step, and those to evaluate or None.

        Args:
          trained: variables after the step.
          state: before the step.
          opt_state: state of the optimizer after the step.
        """
        average, step, own = state.average, state.step, self.recipe.own_average
        if own is not None:
            average = own(average, trained, opt_state, step + 1)
            same = jax.tree.map(lambda a, v: a.astype(v.dtype), average, trained)
            return trained, same
        ema, every = self.recipe.ema, self.recipe.lookahead
        if not every:
            return trained, update_average(average, trained, step, ema)
        per_epoch, start = self.steps_per_epoch, self.recipe.lookahead_start
        done, total = step + 1, self.recipe.count_steps(per_epoch)
        due = done % every == 0
        if start is not None:
            start = round(start * per_epoch)
            due |= (done % per_epoch == 0) | (done == total)
        keep = lookahead_share(done, every, ema, total, start)
        average = interpolate(average, trained, keep)
        pairs = (trained, average)
        return jax.tree.map(lambda a, b: jnp.where(due, b, a), *pairs), average

    def _held(self, params: Any) -> Any:
        """Returns the parameters, with a gradient of 0 for frozen ones."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                lax.stop_gradient(leaf) if self.is_frozen(path_in_words(path)) else leaf
            ),
            params,
        )

    def batch(self, state: TrainState, order: jax.Array, data: DeviceData) -> Batch:
        """Makes the batch of a replica's step; arguments as in ``__call__``.

        Its key is for the random numbers of the model.
        """
        step_key = jax.random.fold_in(Stream.STEPS.of(state.key), state.step)
        augment_key = Stream.AUGMENT.of(step_key)
        size = self.recipe.batch_size
        first = state.step % (order.shape[0] // size) * size
        indices = lax.dynamic_slice(order, (first,), (size,))
        indices = split_batch(indices)
        padded, labels = data
        varied, flips = self.recipe.augmentation, None
        if varied.alternate:
            coins, count = Stream.FLIPS.of(state.key), self.spec.train_size
            epoch = state.step // self.steps_per_epoch
            flips = alternating_flips(coins, indices, epoch, count)
        images = sample_images(augment_key, padded, indices, varied, flips)
        images = normalise(images, self.spec.mean, self.spec.std)
        images = vary(Stream.VARY.of(augment_key), images, self.spec.std, varied)
        labels, key = labels[indices], Stream.FURTHER.of(augment_key)
        about = self.spec.mean, self.spec.std
        images = vary_further(key, images, labels, *about, varied)
        if self.image_size is not None:
            shape = (len(images), self.image_size, self.image_size, images.shape[-1])
            images = jax.image.resize(images, shape, "linear")
        return Batch(images, labels, indices, Stream.MODEL.of(step_key))
