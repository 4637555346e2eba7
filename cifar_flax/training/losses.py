"""Losses: functions of logits and a batch that give one value for each image."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cifar_flax.errors import UserError, one_line
from cifar_flax.own_code import load_code

Loss = Callable[..., jax.Array]


class Batch(NamedTuple):
    """The training images of a step, as a loss gets them.

    Attributes:
      images: augmented and normalised, as the model gets them, float32 [B, H, W, C].
      labels: int32 [B]. Under mixup and cutmix the loss is computed twice, for the
        labels and for those of the images that are mixed in.
      indices: of the images in the training split, int32 [B]; of the images that the
        labels belong to.
      key: for random numbers, another one at every step.
    """

    images: jax.Array
    labels: jax.Array
    indices: jax.Array
    key: jax.Array

    def before(self) -> "Batch":
        """Returns the batch with the labels that ``augment.mix`` mixes in."""
        labels, indices = jnp.roll(self.labels, 1), jnp.roll(self.indices, 1)
        return self._replace(labels=labels, indices=indices)


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


def _cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
    return cross_entropy(logits, batch.labels)


def focal(logits: jax.Array, batch: Batch, gamma: float = 2.0) -> jax.Array:
    """Computes ``-(1 - p)^gamma log p``, where p is the probability of the label.

    Reference:
      Lin et al., Focal Loss for Dense Object Detection, ICCV 2017,
      https://arxiv.org/abs/1708.02002
    """
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}; it must be 0 or more")
    entropy = cross_entropy(logits, batch.labels)
    # The gradient of a power below 1 is infinite at 0.
    wrong = jnp.maximum(-jnp.expm1(-entropy), jnp.finfo(jnp.float32).tiny)
    return wrong**gamma * entropy


LOSSES: dict[str, Loss] = {"cross_entropy": _cross_entropy, "focal": focal}


def check_args(name: str, args: Mapping[str, Any]) -> None:
    """Raises a UserError if one of our losses does not accept some arguments."""
    _, _, *known = inspect.signature(LOSSES[name]).parameters
    if wrong := [arg for arg in args if arg not in known]:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"the loss {name} has no argument {wrong[0]}; {has}")

    def values() -> jax.Array:
        one, key = jnp.zeros(1, jnp.int32), jax.random.key(0)
        batch = Batch(jnp.zeros((1, 1, 1, 1)), one, one, key)
        return LOSSES[name](jnp.zeros((1, 2)), batch, **args)

    try:
        jax.eval_shape(values)
    except Exception as error:  # a value of any type, such as a text
        raise UserError(
            f"the loss {name} cannot be used with {dict(args)}: {one_line(error)}"
        ) from error


def loss_function(loss: str | Loss) -> Loss:
    """Returns the loss that a recipe names; this loads own code.

    Raises:
      UserError: the code cannot be loaded.
    """
    if isinstance(loss, str) and loss in LOSSES:
        return LOSSES[loss]
    return load_code(loss, "loss")


def balanced_weights(labels: jax.Array, classes: int) -> jax.Array:
    """Returns ``N / (K n_k)`` for each class, whose mean over the images is 1.

    Args:
      labels: of all training images, [N].
      classes: K.
    """
    counts = jnp.bincount(labels, length=classes)
    return labels.size / (classes * jnp.maximum(counts, 1)).astype(jnp.float32)


def values_of(
    loss: str | Loss,
    args: Mapping[str, Any],
    logits: jax.Array,
    batch: Batch,
    smoothing: float = 0.0,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Computes the loss of each image, float32 [B].

    The target of label smoothing is a distribution over labels, and the value is the
    mean of the loss under it: ``(1 - s) l(y) + s / K sum_k l(k)``. For cross-entropy
    that is the usual formula.

    Args:
      loss: of the recipe.
      args: keyword arguments of the loss.
      logits: float32 [B, K].
      batch: see ``Batch``.
      smoothing: s, in [0, 1).
      weights: factor of the loss for each class, [K]; None: 1.
    """
    if loss == "cross_entropy" and weights is None:
        return cross_entropy(logits, batch.labels, smoothing)
    function, classes = loss_function(loss), logits.shape[-1]

    def of(labels: jax.Array) -> jax.Array:
        each = function(logits, batch._replace(labels=labels), **args)
        each = each.astype(jnp.float32)
        return each if weights is None else weights[labels] * each

    each = of(batch.labels)
    if smoothing:
        every = jax.vmap(lambda k: of(jnp.full_like(batch.labels, k)))
        mean = every(jnp.arange(classes)).mean(0)
        each = (1 - smoothing) * each + smoothing * mean
    return each
