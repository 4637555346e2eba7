"""The networks of ``cifar_flax.models.families`` in PyTorch.

Parameters are in the order in which the layers are called.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_strangers import (
    ChannelNorm,
    ConvNeXtBlock,
    MixerBlock,
    Net,
    Patches,
    Residual,
    ViTBlock,
    conv_norm,
    conv_norm_relu,
    layer_norm,
)


def vgg(widths=(16, 32, 64, 128, 128)):
    """See ``Vgg``."""
    layers, inputs = [], 3
    for width in widths:
        layers += conv_norm_relu(inputs, width, 3) + conv_norm_relu(width, width, 3)
        layers.append(nn.MaxPool2d(2))
        inputs = width
    return Net(layers, inputs)


def conv(inputs, outputs, size, stride=1):
    """A convolution without bias."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class PreActBlock(nn.Module):
    """A block of ``ResidualNet`` with norms first."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x):
        """Maps [N, inputs, H, W] to [N, outputs, H', W']."""
        y = functional.relu(self.norm1(x))
        x = x if self.shortcut is None else self.shortcut(y)
        return x + self.conv2(functional.relu(self.norm2(self.conv1(y))))


def preact(widths, blocks):
    """See ``ResidualNet`` with ``preactivation``."""
    layers, inputs = [conv(3, widths[0], 3)], widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks):
            layers.append(PreActBlock(inputs, width, 2 if i > 0 and j == 0 else 1))
            inputs = width
    return Net([*layers, nn.BatchNorm2d(inputs), nn.ReLU()], inputs)


def resnet18():
    """See ``ResidualNet``."""
    layers, inputs = conv_norm_relu(3, 64, 3), 64
    for width in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if width > 64 and block == 0 else 1
            body = conv_norm_relu(inputs, width, 3, stride) + conv_norm(width, width, 3)
            shortcut = conv_norm(inputs, width, 1, stride) if stride == 2 else ()
            layers.append(Residual(body, shortcut, nn.ReLU()))
            inputs = width
    return Net(layers, inputs)


class DenseLayer(nn.Sequential):
    """A layer of ``DenseNet``, and its input."""

    def forward(self, x):
        """Maps [N, C, H, W] to [N, C + growth, H, W]."""
        return torch.cat([x, super().forward(x)], 1)


def norm_relu_conv(inputs, outputs, size):
    """Norm, ReLU, convolution."""
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv(inputs, outputs, size)]


def dense(stages=(2, 4, 8, 6), growth=10):
    """See ``DenseNet``."""
    layers, inputs = [conv(3, 2 * growth, 3)], 2 * growth
    for stage, count in enumerate(stages):
        if stage > 0:
            layers += [*norm_relu_conv(inputs, inputs // 2, 1), nn.AvgPool2d(2)]
            inputs //= 2
        for _ in range(count):
            first = norm_relu_conv(inputs, 4 * growth, 1)
            layers.append(DenseLayer(*first, *norm_relu_conv(4 * growth, growth, 3)))
            inputs += growth
    return Net([*layers, nn.BatchNorm2d(inputs), nn.ReLU()], inputs)


def resnext(widths=(32, 64, 128, 256), groups=8):
    """See ``ResNeXt``."""
    layers, inputs = conv_norm_relu(3, widths[0], 3), widths[0]
    for i, width in enumerate(widths):
        for j in range(2):
            stride = 2 if i > 0 and j == 0 else 1
            body = [
                *conv_norm_relu(inputs, width // 2, 1),
                *conv_norm_relu(width // 2, width // 2, 3, stride, groups=groups),
                *conv_norm(width // 2, width, 1),
            ]
            shortcut = conv_norm(inputs, width, 1, stride) if stride > 1 else ()
            layers.append(Residual(body, shortcut, nn.ReLU()))
            inputs = width
    return Net(layers, inputs)


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self, width, hidden):
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.excite = nn.Linear(hidden, width)

    def forward(self, x):
        """Keeps the shape [N, C, H, W]."""
        hidden = functional.relu6(self.squeeze(x.mean((2, 3))))
        return x * torch.sigmoid(self.excite(hidden))[:, :, None, None]


def mobile(widths=(16, 24, 40, 80), blocks=(1, 2, 3, 2), squeeze=False):
    """See ``MobileNet``."""

    def activated(*sizes, **options):
        return [*conv_norm(*sizes, **options), nn.ReLU6()]

    layers, inputs = activated(3, widths[0], 3), widths[0]
    for i, width in enumerate(widths):
        for j in range(blocks[i]):
            stride = 2 if i > 0 and j == 0 else 1
            wide = 6 * inputs if i > 0 else inputs
            body = activated(inputs, wide, 1) if i > 0 else []
            body += activated(wide, wide, 3, stride, groups=wide)
            body += [Gate(wide, inputs // 4)] if squeeze else []
            body += conv_norm(wide, width, 1)
            same = stride == 1 and inputs == width
            layers += [Residual(body)] if same else body
            inputs = width
    layers += activated(inputs, 4 * inputs, 1)
    return Net(layers, 4 * inputs)


def mixer(width=80, depth=5):
    """See ``MlpMixer``."""
    return Patches(width, [MixerBlock(width) for _ in range(depth)])


def convmixer(width=128, depth=8):
    """See ``ConvMixer``."""

    def layer(*sizes, **options):
        return [nn.Conv2d(*sizes, **options), nn.GELU(), nn.BatchNorm2d(width)]

    layers = layer(3, width, 4, 4)
    for _ in range(depth):
        layers.append(Residual(layer(width, width, 5, padding=2, groups=width)))
        layers += layer(width, width, 1)
    return Net(layers, width)


def convnext(widths=(24, 48, 96), blocks=(2, 4, 2)):
    """See ``ConvNeXt``."""
    layers, inputs = [], 3
    for i, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        change = nn.Conv2d(inputs, width, 2, 2)
        layers += [ChannelNorm(inputs), change] if i else [change, ChannelNorm(width)]
        layers += [ConvNeXtBlock(width) for _ in range(count)]
        inputs = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer_norm(inputs)]
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


def vit(width=64, depth=5):
    """See ``ViT``."""
    return Patches(width, [ViTBlock(width) for _ in range(depth)], positions=True)


TORCH_FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vgg": vgg,
    "preact": functools.partial(preact, (12, 24, 48, 96), 2),
    "wide": functools.partial(preact, (18, 36, 72, 144), 1),
    "dense": dense,
    "resnext": resnext,
    "mobile": mobile,
    "efficient": functools.partial(mobile, squeeze=True),
    "mixer": mixer,
    "convmixer": convmixer,
    "convnext": convnext,
    "vit": vit,
    "resnet18": resnet18,
    "wide2": functools.partial(preact, (28, 56, 112, 224), 1),
    "mobile2": functools.partial(mobile, (24, 40, 64, 128)),
    "convnext2": functools.partial(convnext, (40, 80, 160)),
}
