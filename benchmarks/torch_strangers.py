"""The networks of ``benchmarks.strangers`` in PyTorch, as a good user writes them.

Parameters are in the order in which the layers are called.
"""

import itertools

import torch
from torch import nn
from torch.nn import functional


def conv_norm(inputs, outputs, size, stride=1, groups=1, dilation=1):
    """A convolution without bias, and a batch norm."""
    padding = dilation * (size // 2)
    conv = nn.Conv2d(
        inputs, outputs, size, stride, padding, dilation, groups, bias=False
    )
    return [conv, nn.BatchNorm2d(outputs)]


def conv_norm_relu(*sizes, **options):
    """The same with a ReLU."""
    return [*conv_norm(*sizes, **options), nn.ReLU()]


class Net(nn.Sequential):
    """Layers one after the other, a global mean, a dense layer."""

    def __init__(self, layers, width):
        super().__init__(
            *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)
        )


class Residual(nn.Module):
    """``act(body(x) + shortcut(x))``."""

    def __init__(self, body, shortcut=(), act=None):
        super().__init__()
        self.body = nn.Sequential(*body)
        self.shortcut = nn.Sequential(*shortcut)
        self.act = act or nn.Identity()

    def forward(self, x):
        """Maps [N, C, H, W] to [N, outputs, H', W']."""
        return self.act(self.body(x) + self.shortcut(x))


def conv_mixer():
    """See ``ConvMixer``."""

    def layer(*sizes, **options):
        conv = nn.Conv2d(*sizes, **options)
        return [conv, nn.GELU(), nn.BatchNorm2d(64)]

    layers = layer(3, 64, 2, 2)
    for _ in range(4):
        layers.append(Residual(layer(64, 64, 5, padding=2, groups=64)))
        layers += layer(64, 64, 1)
    return Net(layers, 64)


def mobile_net():
    """See ``MobileNet``."""
    layers, inputs = conv_norm_relu(3, 32, 3), 32
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        layers += conv_norm_relu(inputs, inputs, 3, stride, groups=inputs)
        layers += conv_norm_relu(inputs, width, 1)
        inputs = width
    return Net(layers, inputs)


def resnext():
    """See ``ResNeXt``."""
    layers, inputs = conv_norm_relu(3, 64, 3), 64
    for width, stride in ((128, 1), (256, 2), (512, 2)):
        body = [
            *conv_norm_relu(inputs, width // 2, 1),
            *conv_norm_relu(width // 2, width // 2, 3, stride, groups=8),
            *conv_norm(width // 2, width, 1),
        ]
        shortcut = conv_norm(inputs, width, 1, stride)
        layers.append(Residual(body, shortcut, nn.ReLU()))
        inputs = width
    return Net(layers, inputs)


def dilated():
    """See ``Dilated``."""
    layers = conv_norm_relu(3, 32, 3)
    for inputs, width in itertools.pairwise((32, 64, 128)):
        layers += conv_norm_relu(inputs, width, 3, 2)
        layers += conv_norm_relu(width, width, 3, dilation=2)
        layers += conv_norm_relu(width, width, 3, dilation=2)
    return Net(layers, 128)


def transposed():
    """See ``Transposed``."""
    layers = conv_norm_relu(3, 32, 3)
    layers += conv_norm_relu(32, 64, 3, 2) + conv_norm_relu(64, 128, 3, 2)
    for inputs, width in itertools.pairwise((128, 64, 32)):
        layers.append(nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    return Net(layers, 32)


def layer_norm(width):
    """A layer norm with the small number of flax, which these papers use, too."""
    return nn.LayerNorm(width, eps=1e-6)


def mlp(width, hidden):
    """See ``mlp``."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class ConvNeXtBlock(nn.Module):
    """See ``ConvNeXtBlock``."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 1e-6))
        self.conv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = layer_norm(width)
        self.mlp = mlp(width, 4 * width)

    def forward(self, x):
        """Keeps the shape [N, C, H, W]."""
        y = self.conv(x).permute(0, 2, 3, 1)
        y = self.scale * self.mlp(self.norm(y))
        return x + y.permute(0, 3, 1, 2)


class ChannelNorm(nn.LayerNorm):
    """A layer norm of the channels of [N, C, H, W]."""

    def __init__(self, width):
        super().__init__(width, eps=1e-6)

    def forward(self, x):
        """Keeps the shape [N, C, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext():
    """See ``ConvNeXt``."""
    layers = [nn.Conv2d(3, 48, 2, 2), ChannelNorm(48)]
    for width in (48, 96, 192):
        if width > 48:
            layers += [ChannelNorm(width // 2), nn.Conv2d(width // 2, width, 2, 2)]
        layers += [ConvNeXtBlock(width), ConvNeXtBlock(width)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer_norm(192)]
    return nn.Sequential(*layers, nn.Linear(192, 10))


class Patches(nn.Module):
    """Blocks on patches of 4x4, a layer norm, a mean, a dense layer."""

    def __init__(self, width, blocks, positions=False):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        shape = (1, 64, width)
        self.positions = nn.Parameter(0.02 * torch.randn(shape)) if positions else None
        self.blocks = nn.Sequential(*blocks)
        self.norm = layer_norm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        """Maps images [N, 3, 32, 32] to logits."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.positions is not None:
            x = x + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


class ViTBlock(nn.Module):
    """See ``ViTBlock``; query, key and value are one product."""

    def __init__(self, width):
        super().__init__()
        self.norm = layer_norm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = layer_norm(width)
        self.mlp = mlp(width, 4 * width)

    def forward(self, x):
        """Keeps the shape [N, patches, C]."""
        y = self.query_key_value(self.norm(x)).unflatten(2, (3, 4, -1))
        query, key, value = y.permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class MixerBlock(nn.Module):
    """See ``MixerBlock``."""

    def __init__(self, width):
        super().__init__()
        self.token_norm = layer_norm(width)
        self.token_mlp = mlp(64, width // 2)
        self.norm = layer_norm(width)
        self.mlp = mlp(width, 4 * width)

    def forward(self, x):
        """Keeps the shape [N, patches, C]."""
        y = self.token_mlp(self.token_norm(x).transpose(1, 2))
        x = x + y.transpose(1, 2)
        return x + self.mlp(self.norm(x))


def vit():
    """See ``ViT``."""
    return Patches(96, [ViTBlock(96) for _ in range(4)], positions=True)


def mlp_mixer():
    """See ``MLPMixer``."""
    return Patches(128, [MixerBlock(128) for _ in range(4)])


TORCH_STRANGERS = {
    "convmixer64": conv_mixer,
    "mobilenet": mobile_net,
    "resnext512": resnext,
    "convnext48": convnext,
    "dilated": dilated,
    "transposed": transposed,
    "vit96": vit,
    "mlp_mixer": mlp_mixer,
}
