"""The models, by name.

Every model is called as ``model.apply(variables, images, train=...)`` on images
[N, 32, 32, 3] and returns logits [N, num_classes].
"""

import functools
from collections.abc import Callable

import flax.linen as nn

from cifar_flax.errors import UserError
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


__all__ = ["MODELS", "ConvBnNet", "ConvNet", "ResNet", "SimpleNet", "create_model"]
