"""A model layer by layer: output shapes, parameters, operations."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.models.calling import init_variables


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer that has parameters of its own.

    Attributes:
      path: names from the model down, joined by dots.
      kind: class of the module.
      output_shape: for one image, without the batch axis.
      num_params: number of its own parameters.
      flops: floating-point operations of its products for one image; a multiplication
        and its addition count 2. Biases, norms and activations are not counted.
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

    The operations of a layer follow from its ``kernel`` [..., C, F]: each output of
    each of the F channels takes one multiplication and one addition for each kernel
    element of that channel. This holds for convolutions and dense layers, including
    users' own layers, and it counts taps that fall on the padding.

    Args:
      model: see ``models.calling``.
      image_shape: (H, W, C).

    Returns:
      The layers in the order of their calls, and the variables by collection.

    Raises:
      UserError: a layer's output would be empty, because the images are too small.
    """
    rows: list[LayerRow] = []

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if any(0 in leaf.shape for leaf in jax.tree.leaves(output)):
            raise UserError(
                f"the output of layer {'.'.join(context.module.path) or 'model'} is "
                f"empty for images of {image_shape[0]} x {image_shape[1]} pixels; give "
                "larger images, or a model with fewer strides"
            )
        params = context.module.variables.get("params", {})
        own = {k: v for k, v in params.items() if not isinstance(v, dict)}
        if context.method_name == "__call__" and own:
            shape = output.shape[1:]
            kernel = own.get("kernel")
            flops = 0
            if kernel is not None:
                flops = 2 * math.prod(shape[:-1]) * math.prod(kernel.shape)
            rows.append(
                LayerRow(
                    path=".".join(context.module.path),
                    kind=type(context.module).__name__,
                    output_shape=shape,
                    num_params=sum(math.prod(v.shape) for v in own.values()),
                    flops=flops,
                )
            )
        return output

    def init():
        images = jnp.zeros((1, *image_shape))
        return init_variables(model, jax.random.key(0), images)

    with nn.intercept_methods(record):
        variables = jax.eval_shape(init)
    return rows, variables
