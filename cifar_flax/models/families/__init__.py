"""The families of networks that came after the lesson's, for images of 32 x 32.

Each is the smallest member that is still faithful; ``FAMILIES`` names them. They are
written in layers of flax, which the kernels of this project make fast as any others.
"""

import functools
from collections.abc import Callable

import flax.linen as nn

from cifar_flax.models.families.convmixer import ConvMixer
from cifar_flax.models.families.convnext import ConvNeXt
from cifar_flax.models.families.dense import DenseNet
from cifar_flax.models.families.mixer import MlpMixer
from cifar_flax.models.families.mobile import MobileNet
from cifar_flax.models.families.residual import ResidualNet
from cifar_flax.models.families.resnext import ResNeXt
from cifar_flax.models.families.vgg import Vgg
from cifar_flax.models.families.vit import ViT

_PreAct = functools.partial(ResidualNet, preactivation=True)

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "vgg": Vgg,
    "preact": functools.partial(_PreAct, widths=(12, 24, 48, 96)),
    "wide": functools.partial(_PreAct, widths=(18, 36, 72, 144), blocks=1),
    "dense": DenseNet,
    "resnext": ResNeXt,
    "mobile": MobileNet,
    "efficient": functools.partial(MobileNet, squeeze=True),
    "mixer": MlpMixer,
    "convmixer": ConvMixer,
    "convnext": ConvNeXt,
    "vit": ViT,
    "resnet18": ResidualNet,
}

# One size more.
LARGER: dict[str, Callable[..., nn.Module]] = {
    "wide2": functools.partial(_PreAct, widths=(28, 56, 112, 224), blocks=1),
    "mobile2": functools.partial(MobileNet, widths=(24, 40, 64, 128)),
    "convnext2": functools.partial(ConvNeXt, widths=(40, 80, 160)),
}
