"""The models, by name.

Every model is called as ``model.apply(variables, images, train=...)`` on images
[N, H, W, C] and returns logits [N, num_classes]; ``models.calling`` has the contract
that a model of one's own has to keep.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cifar_flax.errors import UserError
from cifar_flax.layers import BatchNorm
from cifar_flax.models.convbn import ConvBnNet
from cifar_flax.models.convnet import ConvNet
from cifar_flax.models.resnet import ResNet
from cifar_flax.models.simplenet import SimpleNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "simplenet": SimpleNet,
    "convnet": ConvNet,
    "convnet2": functools.partial(ConvNet, padding=1),
    "convbn": ConvBnNet,
    "convbn2": functools.partial(ConvBnNet, blocks=2),
    "resnet": ResNet,
    "resnet2": functools.partial(
        ResNet, features=(16, 32, 64, 128, 256), norm_stem=True, dropout_rate=0.2
    ),
}


def create_model(name: str, num_classes: int = 10, **fields) -> nn.Module:
    """The model of that name.

    Args:
      name: a key of ``MODELS``.
      num_classes: number of logits.
      **fields: further constructor fields of the model's class, such as ``features``
        (widths), ``dtype`` or ``norm``.

    Returns:
      A linen module, without variables.

    Raises:
      UserError: no model of that name.
    """
    if name not in MODELS:
        raise UserError(f"no model {name!r}; the models are {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, **fields)


def make_model(
    name: str,
    num_classes: int,
    *,
    dtype: str = "float32",
    bn_momentum: float = 0.9,
    bn_epsilon: float = 1e-5,
    bn_freeze: bool = False,
) -> nn.Module:
    """The model that the settings of a run describe, by their names there.

    Args:
      name: a key of ``MODELS``.
      num_classes: number of logits.
      dtype: name of the type of the computation.
      bn_momentum: of every ``BatchNorm``; without effect on a model that has none, as
        the next two.
      bn_epsilon: the same.
      bn_freeze: the same.
    """
    fields: dict[str, Any] = {}
    if dtype != "float32":
        fields["dtype"] = jnp.dtype(dtype)
    if has_norm(name):
        fields["norm"] = functools.partial(
            BatchNorm, momentum=bn_momentum, epsilon=bn_epsilon, frozen=bn_freeze
        )
    return create_model(name, num_classes, **fields)


def has_norm(name: str) -> bool:
    """Whether the model has batch norm."""
    return hasattr(create_model(name), "norm")


__all__ = [
    "MODELS",
    "ConvBnNet",
    "ConvNet",
    "ResNet",
    "SimpleNet",
    "create_model",
    "has_norm",
    "make_model",
]
