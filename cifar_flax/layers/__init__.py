"""The layers that the models are made of."""

from cifar_flax.layers.batch_norm import BatchNorm
from cifar_flax.layers.conv import Conv, tiled
from cifar_flax.layers.dense import Dense
from cifar_flax.layers.pool import global_max_pool, max_pool
from cifar_flax.layers.tiles import gelu, on_images, relu

__all__ = [
    "BatchNorm",
    "Conv",
    "Dense",
    "gelu",
    "global_max_pool",
    "max_pool",
    "on_images",
    "relu",
    "tiled",
]
