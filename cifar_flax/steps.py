"""Pure steps: one optimizer step of one replica, and the logits of a batch."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import optax

from cifar_flax.state import Totals, TrainState


def cross_entropy(
    logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
    """``-sum_k t_k log softmax(logits)_k`` of each example.

    The target t is one-hot, or with smoothing ``(1 - s) * onehot + s / K``.

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


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    *,
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    label_smoothing: float = 0.0,
) -> TrainState:
    """One step on the mean loss of a batch, with the sums for its log added up.

    Args:
      state: of one replica.
      images: [N, H, W, C], normalised.
      labels: [N], integers.
      key: for what the model draws, such as dropout.
      model: called as ``model.apply(variables, images, train=True)``.
      tx: the optimizer.
      label_smoothing: see ``cross_entropy``.
    """

    def loss_fn(params: Any):
        logits, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = cross_entropy(logits, labels, label_smoothing)
        return losses.mean(), (losses.sum(), logits, updated)

    grads, (loss, logits, updated) = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=updated.get("batch_stats", {}),
        opt_state=opt_state,
        totals=Totals(
            loss=state.totals.loss + loss,
            correct=state.totals.correct + (logits.argmax(-1) == labels).sum(),
            count=state.totals.count + labels.shape[0],
        ),
    )
