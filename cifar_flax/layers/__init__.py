"""The layers that the models are made of."""

from cifar_flax.layers.batch_norm import BatchNorm
from cifar_flax.layers.conv import Conv
from cifar_flax.layers.dense import Dense
from cifar_flax.layers.pool import global_max_pool, max_pool

__all__ = ["BatchNorm", "Conv", "Dense", "global_max_pool", "max_pool"]
