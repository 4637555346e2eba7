"""The training step of one replica, as a pure function."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from cifar_flax.data.augment import (
    Augmentation,
    alternating_flips,
    mix,
    normalise,
    sample_images,
    vary,
)
from cifar_flax.data.splits import DataSpec
from cifar_flax.layers.conv import Lowering
from cifar_flax.models.calling import train_logits
from cifar_flax.training.optimizers import path_in_words
from cifar_flax.training.placement import split_batch
from cifar_flax.training.state import Totals, TrainState

# Padded training images, uint8 [N, H + 2p, W + 2p, C], and labels [N], on the device.
# Every compiled program takes them as an argument, because a constant of this size
# would take seconds to compile.
DeviceData = tuple[jax.Array, jax.Array]

# A replica's state and the losses of its steps, float32 [S].
Carry = tuple[TrainState, jax.Array]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """Computes ``-sum_k t_k log softmax(logits)_k`` of each example.

    The target t is one-hot; with label smoothing it is ``(1 - s) * onehot + s / K``.

    Args:
      logits: [N, K].
      labels: [N], integers.
      label_smoothing: s, in [0, 1).

    Returns:
      [N].
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    if label_smoothing:
        targets = optax.smooth_labels(targets, label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)


def epoch_order(key: jax.Array, epoch: jax.Array, count: int) -> jax.Array:
    """Returns the order in which a replica sees the training images in an epoch, [N].

    Args:
      key: the replica's key, ``TrainState.key``.
      epoch: number of the epoch, from 0.
      count: N, the number of training images.
    """
    shuffle_key, _ = jax.random.split(key)
    return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), count)


def first_order(key: jax.Array, steps: int, batch_size: int, count: int) -> jax.Array:
    """Returns the indices of the images of a replica's first steps, [steps * B].

    Args:
      key: the replica's key, ``TrainState.key``.
      steps: number of steps; they may be more than an epoch.
      batch_size: B.
      count: number of training images. Each epoch leaves out the last images of its
        order that do not fill a batch.
    """
    per_epoch = count // batch_size
    epochs = jnp.arange(-(-steps // per_epoch))
    orders = jax.vmap(lambda epoch: epoch_order(key, epoch, count))(epochs)
    return orders[:, : per_epoch * batch_size].reshape(-1)[: steps * batch_size]


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


def lookahead_share(done: jax.Array, every: int, ema: float, total: int) -> jax.Array:
    """Returns the share that the average of Lookahead keeps, ``ema^k * (t / T)^3``.

    The average is updated every k steps; between updates the share is 1. The share
    grows with the cube of the time, so that the average follows the variables closely
    at first (Jordan 2024, https://arxiv.org/abs/2404.00498).

    Args:
      done: t, number of steps done.
      every: k.
      ema: share per step that the average keeps at the end.
      total: T, number of steps of the recipe.
    """
    share = ema**every * (done / total) ** 3
    return jnp.where(done % every == 0, share, 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
    """Trains one replica for one step. It holds settings and no arrays.

    Every random number is a function of ``state.key`` and ``state.step``.

    Attributes:
      model: see ``models.calling``.
      tx: the optimizer.
      spec: of the data.
      augmentation: of the training images.
      batch_size: images in a step.
      label_smoothing: see ``cross_entropy``.
      ema: see ``update_average``.
      lookahead: number of steps between two updates of the average of Lookahead, after
        which training continues from the average; 0: no Lookahead, see ``Recipe``.
      total_steps: number of steps of the recipe.
      image_size: size to which augmented images are resized; None: no resizing.
      is_frozen: returns from its path whether a parameter is frozen; None: no parameter
        is.
      freeze_norms: whether batch norms with frozen parameters keep their statistics.
      lowering: of the model's convolutions.
    """

    model: nn.Module
    tx: optax.GradientTransformation
    spec: DataSpec
    augmentation: Augmentation
    batch_size: int
    label_smoothing: float = 0.0
    ema: float = 0.0
    lookahead: int = 0
    total_steps: int = 0
    image_size: int | None = None
    is_frozen: Callable[[str], bool] | None = None
    freeze_norms: bool = True
    lowering: Lowering = "auto"

    def __call__(self, carry: Carry, order: jax.Array, data: DeviceData) -> Carry:
        """Takes a step on the mean loss of a batch and adds to the sums of the log.

        Args:
          carry: of one replica; the loss of step s is written at s modulo S.
          order: indices of the images in their order, [M]; step s takes the batch s
            modulo M // batch_size.
          data: see ``DeviceData``.
        """
        state, losses = carry
        images, labels, key = self.batch(state, order, data)
        share, mixes = jnp.float32(1), self.augmentation.mixes
        if mixes:
            images, share = mix(jax.random.fold_in(key, 2), images, self.augmentation)

        def loss_fn(params: Any):
            variables = {"params": self._held(params), **state.collections}
            frozen = self.is_frozen if self.freeze_norms else None
            logits, collections = train_logits(
                self.model, variables, images, key, self.lowering, frozen
            )
            logits = logits.astype(jnp.float32)
            each = cross_entropy(logits, labels, self.label_smoothing)
            if mixes:  # ``mix`` takes the previous image of the batch
                before = jnp.roll(labels, 1)
                others = cross_entropy(logits, before, self.label_smoothing)
                each = share * each + (1 - share) * others
            return each.mean(), (each.sum(), logits, collections)

        grads, aux = jax.grad(loss_fn, has_aux=True)(state.params)
        loss, logits, collections = aux
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        losses = losses.at[state.step % losses.size].set(loss / labels.size)
        trained = {"params": params, **collections}
        trained, average = self._averaged(trained, state.average, state.step)
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

    def _averaged(self, trained: Any, average: Any, step: jax.Array) -> tuple[Any, Any]:
        """Returns the variables for the next step, and their average."""
        if not self.lookahead:
            return trained, update_average(average, trained, step, self.ema)
        done, every = step + 1, self.lookahead
        keep = lookahead_share(done, every, self.ema, self.total_steps)
        average = interpolate(average, trained, keep)
        due = done % every == 0
        pairs = (trained, average)
        return jax.tree.map(lambda a, b: jnp.where(due, b, a), *pairs), average

    def _held(self, params: Any) -> Any:
        """Returns the parameters, with a gradient of 0 for frozen ones."""
        is_frozen = self.is_frozen
        if is_frozen is None:
            return params
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: (
                lax.stop_gradient(leaf) if is_frozen(path_in_words(path)) else leaf
            ),
            params,
        )

    def batch(
        self, state: TrainState, order: jax.Array, data: DeviceData
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Makes the batch of a replica's step; arguments as in ``__call__``.

        Returns:
          Augmented and normalised images [B, H, W, C], labels [B], and a key for the
          random numbers of the model.
        """
        _, step_key = jax.random.split(state.key)
        augment_key, model_key = jax.random.split(
            jax.random.fold_in(step_key, state.step)
        )
        first = state.step % (order.shape[0] // self.batch_size) * self.batch_size
        indices = lax.dynamic_slice(order, (first,), (self.batch_size,))
        indices = split_batch(indices)
        padded, labels = data
        varied, flips = self.augmentation, None
        if varied.alternate:
            count = self.spec.train_size
            epoch = state.step // (count // self.batch_size)
            coins = jax.random.fold_in(state.key, 1)
            flips = alternating_flips(coins, indices, epoch, count)
        images = sample_images(augment_key, padded, indices, varied, flips)
        images = normalise(images, self.spec.mean, self.spec.std)
        if varied.varies:
            varied_key = jax.random.fold_in(augment_key, 1)
            images = vary(varied_key, images, self.spec.std, varied)
        if self.image_size is not None:
            shape = (len(images), self.image_size, self.image_size, images.shape[-1])
            images = jax.image.resize(images, shape, "linear")
        return images, labels[indices], model_key
