"""A model layer by layer: output shapes, parameters, operations."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.models.calling import evaluate_logits, init_variables
from cifar_flax.models.flops import products_by_scope

_Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer that has parameters or products of its own.

    Attributes:
      path: names from the model down, joined by dots.
      kind: class of the module; empty for parameters that no linen module owns.
      output_shape: for one image, without the batch axis; of the first call.
      num_params: number of its own parameters.
      flops: floating-point operations of its products for one image in evaluation; see
        ``flops.products_by_scope``.
    """

    path: str
    kind: str
    output_shape: tuple[int, ...]
    num_params: int
    flops: int


def layer_rows(
    model: nn.Module, image_shape: tuple[int, int, int] = (32, 32, 3)
) -> list[LayerRow]:
    """Returns a model's layers in the order of their calls; see ``trace_layers``."""
    return trace_layers(model, image_shape)[0]


@known_settings()
def trace_layers(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[list[LayerRow], Any]:
    """Returns a model's layers and the shapes of its variables, without computation.

    Args:
      model: see ``models.calling``.
      image_shape: (H, W, C).

    Returns:
      The layers in the order of their calls, and the variables by collection.

    Raises:
      UserError: a layer's output would be empty, because the images are too small.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    called: dict[_Path, tuple[str, tuple[int, ...]]] = {}

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        path, leaves = context.module.path, jax.tree.leaves(output)
        if any(0 in leaf.shape for leaf in leaves):
            raise UserError(
                f"the output of layer {'.'.join(path) or 'model'} is "
                f"empty for images of {image_shape[0]} x {image_shape[1]} pixels; give "
                "larger images, or a model with fewer strides"
            )
        if context.method_name == "__call__" and leaves:
            kind = type(context.module).__name__
            called.setdefault(path, (kind, leaves[0].shape[1:]))
        return output

    with nn.intercept_methods(record):
        variables = jax.eval_shape(
            lambda k, x: init_variables(model, k, x), key, images
        )
    trace = jax.make_jaxpr(lambda v, x: evaluate_logits(model, v, x))
    flops = _flops_of(called, trace(variables, images).jaxpr)
    params = _params_of(variables.get("params", {}))
    rows = [
        LayerRow(".".join(path), *called.get(path, ("", ())), params[path], flops[path])
        for path in dict.fromkeys([*called, *params])
        if params[path] or flops[path]
    ]
    return rows, variables


def _flops_of(called: Iterable[_Path], program: Any) -> Mapping[_Path, int]:
    """Returns the operations of the innermost module around each product."""
    known, found = set(called), collections.Counter[_Path]()
    for scope, count in products_by_scope(program).items():
        path: _Path = ()
        for name in scope:
            if (*path, name) in known:
                path = (*path, name)
        found[path] += count
    return found


def _params_of(params: Any) -> Mapping[_Path, int]:
    """Returns the number of parameters by the names above each parameter."""
    found = collections.Counter[_Path]()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found[tuple(str(key.key) for key in path[:-1])] += math.prod(leaf.shape)
    return found
