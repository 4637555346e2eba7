"""Runs every model once on a small batch, for several tests."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from cifar_flax.models import create_model
from cifar_flax.training.losses import cross_entropy
from cifar_flax.training.named_recipes import LESSON

BATCH = 8

# The lesson's and airbench; test_families has the others.
FIRST = (*LESSON, "airbench")


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """The results of a model on one batch, without dropout."""

    model: Any
    variables: Any
    images: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    train_logits: np.ndarray
    updated: Any
    loss: float
    grads: Any


def make_model(name: str):
    """Makes the model without dropout, because two libraries draw different masks."""
    return create_model(name, **({"dropout_rate": 0.0} if name == "resnet2" else {}))


@functools.cache
def init(name: str):
    """Returns variables of a model, with changed running statistics."""
    model = make_model(name)
    images = np.random.default_rng(2).normal(size=(16, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), images
    )
    rng = np.random.default_rng(1)
    # About as large as those of a batch; with larger variances all images look alike.
    stats = jax.tree.map(
        lambda leaf: rng.uniform(0.05, 0.2, leaf.shape).astype(np.float32),
        variables.get("batch_stats", {}),
    )
    return {"params": variables["params"], "batch_stats": stats}


@functools.cache
def predict(name: str):
    """The compiled evaluation of a model: (variables, images) -> logits."""
    return jax.jit(functools.partial(make_model(name).apply, train=False))


@functools.cache
def probe(name: str) -> Probe:
    """Runs a model forward and backward in training, and forward in evaluation."""
    model, variables = make_model(name), init(name)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 32, 32, 3)).astype(np.float32)
    labels = rng.integers(0, 10, BATCH)

    def loss_fn(params):
        logits, updated = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels).mean(), (logits, updated)

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (train_logits, updated)), grads = grad_fn(variables["params"])
    logits = predict(name)(variables, images)
    return Probe(
        model=model,
        variables=variables,
        images=images,
        labels=labels,
        logits=np.asarray(logits),
        train_logits=np.asarray(train_logits),
        updated=jax.device_get(updated),
        loss=float(loss),
        grads=jax.device_get(grads),
    )
