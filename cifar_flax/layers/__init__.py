"""The layers that the models are made of."""

from cifar_flax.layers.batch_norm import BatchNorm
from cifar_flax.layers.conv import Conv
from cifar_flax.layers.dense import Dense

__all__ = ["BatchNorm", "Conv", "Dense"]
