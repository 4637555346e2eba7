"""The models, by name.

Every model is called as ``model.apply(variables, images, train=...)`` on images
[N, H, W, C] and returns logits [N, num_classes]; ``models.calling`` describes the
contract for a user's own model.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cifar_flax.errors import UserError
from cifar_flax.layers import BatchNorm
from cifar_flax.models.airbench import Airbench
from cifar_flax.models.convbn import ConvBnNet
from cifar_flax.models.convnet import ConvNet
from cifar_flax.models.families import FAMILIES, LARGER
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
    "airbench": Airbench,
    **FAMILIES,
    **LARGER,
}


def create_model(name: str, num_classes: int = 10, **fields: Any) -> nn.Module:
    """Creates the model of a given name.

    Args:
      name: a key of ``MODELS``.
      num_classes: number of logits.
      **fields: further constructor fields of the model's class, such as ``features``
        (widths), ``dtype`` or ``norm``.

    Returns:
      A linen module, without variables.

    Raises:
      UserError: there is no model of that name.
    """
    if name not in MODELS:
        raise UserError(f"no model {name!r}; the models are {', '.join(MODELS)}")
    return MODELS[name](num_classes=num_classes, **fields)


def make_model(
    name: str,
    num_classes: int,
    *,
    dtype: str = "float32",
    bn_momentum: float | None = None,
    bn_epsilon: float | None = None,
    bn_freeze: bool = False,
) -> nn.Module:
    """Creates the model that the settings of a run describe.

    Args:
      name: a key of ``MODELS``.
      num_classes: number of logits.
      dtype: name of the computation dtype.
      bn_momentum: momentum of every ``BatchNorm``; None: the model's own. A model
        without batch norm ignores this and the next two.
      bn_epsilon: epsilon of every ``BatchNorm``; None: the model's own.
      bn_freeze: whether every ``BatchNorm`` is frozen.
    """
    fields: dict[str, Any] = {}
    if dtype != "float32":
        fields["dtype"] = jnp.dtype(dtype)
    if has_norm(name):
        given = {"momentum": bn_momentum, "epsilon": bn_epsilon, "frozen": bn_freeze}
        given = {field: value for field, value in given.items() if value is not None}
        fields["norm"] = functools.partial(_norm_of(name), **given)
    return create_model(name, num_classes, **fields)


@functools.cache
def norm_fields(name: str) -> dict[str, float]:
    """Returns the default ``momentum`` and ``epsilon`` of a model's batch norms.

    Args:
      name: name of the model. The result is the defaults of ``BatchNorm`` if the model
        has no batch norm or is not in ``MODELS``.
    """
    norm = _norm_of(name) if name in MODELS and has_norm(name) else BatchNorm
    fields = norm.keywords if isinstance(norm, functools.partial) else {}
    default = {"momentum": BatchNorm.momentum, "epsilon": BatchNorm.epsilon}
    return {field: fields.get(field, value) for field, value in default.items()}


def _norm_of(name: str) -> Callable[..., nn.Module]:
    return create_model(name).norm


def has_norm(name: str) -> bool:
    """Returns whether the model has batch norm."""
    return hasattr(create_model(name), "norm")


__all__ = [
    "FAMILIES",
    "MODELS",
    "Airbench",
    "ConvBnNet",
    "ConvNet",
    "ResNet",
    "SimpleNet",
    "create_model",
    "has_norm",
    "make_model",
    "norm_fields",
]
