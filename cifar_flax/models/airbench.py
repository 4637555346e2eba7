"""The network of airbench94, the fastest known way to 94 % on CIFAR-10.

Jordan 2024, https://arxiv.org/abs/2404.00498. Its recipes are in
``training.named_recipes``.
"""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from cifar_flax.layers import BatchNorm, Conv, Dense, global_max_pool, max_pool
from cifar_flax.layers.conv import convolve
from cifar_flax.layers.initializers import partial_identity

# Variance of patches that counts as noise, in units of the normalised images.
WHITENING_EPSILON = 5e-4


def whitening(images: jax.Array, epsilon: float = WHITENING_EPSILON) -> Initializer:
    """Makes a kernel whose outputs on these images are uncorrelated with variance 1.

    The covariance of the patches p is ``S = E[p p^T]``, with ``S = V diag(l) V^T``. The
    filters are ``V_i / sqrt(l_i + epsilon)``, the largest l first, and then the same
    filters with the opposite sign, because the next layer is not an odd function.

    References:
      Page, How to train your ResNet, 2019; with both signs Jordan 2024.

    Args:
      images: normalised, [N, H, W, C].
      epsilon: see above.

    Returns:
      An initialiser of a kernel [K, K, C, 2 * K * K * C].
    """

    def init(key, shape, dtype=jnp.float32, out_sharding=None):
        del key, out_sharding
        *patch, _ = shape
        size = patch[0] * patch[1] * patch[2]
        covariance = patch_covariance(images, patch[0])
        values, vectors = jnp.linalg.eigh(covariance)
        filters = vectors[:, ::-1] * jax.lax.rsqrt(values[::-1] + epsilon)
        both = jnp.concatenate([filters, -filters], axis=1)
        return both.reshape(*patch, 2 * size).astype(dtype)

    return init


def patch_covariance(images: jax.Array, size: int) -> jax.Array:
    """Returns ``E[p p^T]`` over all size x size patches p: [P, P], P = size^2 C.

    The gradient of a convolution's kernel is the sum of the products of patches and
    output gradients. With the patches themselves as output gradients it is the sum of
    ``p p^T``.
    """
    count, height, width, channels = images.shape
    length = size * size * channels
    identity = jnp.eye(length).reshape(size, size, channels, length)
    patches, gradient = jax.vjp(functools.partial(convolve, images), identity)
    (products,) = gradient(patches)
    positions = (height - size + 1) * (width - size + 1)
    return products.reshape(length, length) / (count * positions)


class Airbench(nn.Module):
    """A whitening 2x2 convolution, three stages of two 3x3 convolutions, a dense layer.

    The kernel of the first layer is computed from the images with which the variables
    are initialised (see ``whitening``), and it should not be trained; its bias is 0 at
    first. A 2x2 max pool follows the first convolution of a stage. Batch norm without a
    scale and GELU then follow both convolutions. ``partial_identity`` initialises the
    kernels of the stages.

    Attributes:
      num_classes: number of logits.
      features: output channels of both convolutions of each stage.
      logit_scale: factor of the logits.
      norm: makes the normalisation layer; called with ``dtype``.
      dtype: computation dtype; parameters and logits are float32.
    """

    num_classes: int = 10
    features: Sequence[int] = (64, 256, 256)
    logit_scale: float = 1 / 9
    norm: Callable[..., nn.Module] = functools.partial(
        BatchNorm, momentum=0.6, epsilon=1e-12, use_scale=False
    )
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, num_classes]."""
        gelu = functools.partial(nn.gelu, approximate=False)
        whiten = Conv(
            8 * images.shape[-1],
            kernel_size=2,
            kernel_init=whitening(images),
            bias_init=nn.initializers.zeros,
            dtype=self.dtype,
            name="whiten",
        )
        x = gelu(whiten(images))
        for i, width in enumerate(self.features):
            for j in range(2):
                conv = Conv(
                    width,
                    padding=1,
                    use_bias=False,
                    kernel_init=partial_identity,
                    dtype=self.dtype,
                    name=f"stage{i}_conv{j}",
                )
                x = conv(x)
                if j == 0:
                    x = max_pool(x, 2)
                norm = self.norm(dtype=self.dtype, name=f"stage{i}_norm{j}")
                x = gelu(norm(x, train=train))
        x = global_max_pool(x)  # over 3 x 3 pixels if the images have 32 x 32
        head = Dense(self.num_classes, use_bias=False, dtype=self.dtype, name="head")
        return head(x).astype(jnp.float32) * self.logit_scale
