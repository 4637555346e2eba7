"""Checks that a model can be trained, before anything is compiled."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from cifar_flax.errors import UserError, one_line
from cifar_flax.models.calling import (
    evaluate_logits,
    init_variables,
    train_argument,
    train_logits,
)
from cifar_flax.models.summary import LayerRow, trace_layers


def check_model(
    model: nn.Module, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[list[LayerRow], Any]:
    """Checks that a model can be trained on such images, without any computation.

    Args:
      model: see ``models.calling``.
      image_shape: (H, W, C).
      num_classes: K.

    Returns:
      The layers of the model, and the shapes of its variables.

    Raises:
      UserError: the model cannot be trained; the message says why.
    """
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", type(model).__name__)
        hint = "; make an instance of it" if isinstance(model, type) else ""
        kind = model if isinstance(model, type) else type(model)
        if issubclass(kind, nnx.Module):
            hint = f"; give cifar_flax.NnxModel({kind.__name__}, {{...}})"
        raise UserError(f"the model is {name}; it must be a linen module{hint}")
    name = type(model).__name__
    sizes = ", ".join(map(str, image_shape))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        train_argument(model, True)
        rows, variables = trace_layers(model, image_shape)
        if not jax.tree.leaves(variables.get("params")):
            raise UserError("it has no parameters, so there is nothing to train")
        _check_dtypes(variables)
        _check_shapes(model, variables, images, key)
        trained, collections = jax.eval_shape(
            lambda v, x, k: train_logits(model, v, x, k), variables, images, key
        )
        evaluated = jax.eval_shape(
            lambda v, x: evaluate_logits(model, v, x), variables, images
        )
        _check_logits(trained, "training", num_classes)
        _check_logits(evaluated, "evaluation", num_classes)
        _check_collections(variables, collections)
    except (Exception, SystemExit) as error:  # a model may raise anything
        raise UserError(
            f"the model {name} cannot be trained on images [N, {sizes}]: "
            f"{one_line(error, 300)}"
        ) from error
    return rows, variables


def check_image_size(
    model: nn.Module, variables: Any, image_shape: tuple[int, int, int]
) -> None:
    """Checks that a model with these variables can be trained on another image size.

    Args:
      model: see ``models.calling``.
      variables: shapes of the variables.
      image_shape: (H, W, C).

    Raises:
      UserError: the model cannot be trained; the message says why.
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        jax.eval_shape(
            lambda v, x, k: train_logits(model, v, x, k), variables, images, key
        )
    except (Exception, SystemExit) as error:  # a model may raise anything
        height, width, _ = image_shape
        raise UserError(
            f"the model {type(model).__name__} cannot be trained on images of {height} "
            f"x {width} pixels, the image_size of a phase: {one_line(error, 200)}"
        ) from error


def _check_dtypes(variables: Any) -> None:
    """Checks that parameters have gradients and that everything can be saved."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise UserError(
                f"its variable {name} is a random key, which no file can hold; keep "
                "jax.random.key_data of it"
            )
        if path[0].key == "params" and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise UserError(
                f"its parameter {name} is {leaf.dtype}, which has no gradient; keep it "
                "in another collection, with self.variable"
            )


def _check_shapes(model: nn.Module, variables: Any, images: Any, key: Any) -> None:
    """Checks that the variables, made with one image, are the same for two."""
    if not variables.keys() - {"params", "batch_stats"}:
        return  # a parameter whose shape follows the number of images fails anyway
    of_two = jax.eval_shape(lambda k, x: init_variables(model, k, x), key, images)
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(variables),
        jax.tree_util.tree_leaves_with_path(of_two),
        strict=True,
    )
    for (path, one), (_, two) in pairs:
        if one.shape != two.shape:
            raise UserError(
                f"its variable {jax.tree_util.keystr(path)} is {list(one.shape)} for "
                f"one image and {list(two.shape)} for two; a variable must have the "
                "same shape for any number of images"
            )


def _check_logits(logits: Any, when: str, num_classes: int) -> None:
    wanted = f"float [N, {num_classes}] for {num_classes} classes"
    if not isinstance(logits, jax.ShapeDtypeStruct):
        kind = type(logits).__name__
        raise UserError(
            f"in {when} it returns a {kind}; it must return logits {wanted}"
        )
    good = jnp.issubdtype(logits.dtype, jnp.floating)
    if not good or logits.shape != (2, num_classes):
        shape = ", ".join(["N", *map(str, logits.shape[1:])])
        if logits.shape[:1] != (2,):
            shape = ", ".join(map(str, logits.shape))
        raise UserError(
            f"in {when} it returns {logits.dtype} [{shape}]; it must return logits "
            f"{wanted}"
        )


def _check_collections(before: Any, after: Any) -> None:
    """Checks that arrays keep their names, dtypes and shapes, for a compiled loop."""
    wanted = {name: value for name, value in before.items() if name != "params"}
    shapes = [
        {
            jax.tree_util.keystr(path): (leaf.shape, leaf.dtype)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (wanted, after)
    ]
    if different := shapes[0].items() ^ shapes[1].items():
        raise UserError(
            f"a training step changes the type or shape of {min(different)[0]}, or "
            "adds or drops it; a collection must keep its arrays"
        )
