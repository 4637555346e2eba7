"""The convolution layer, and the implementations (lowerings) of convolutions.

The layer is ``lax``'s convolution. ``layers.rule`` replaces how that is computed.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from cifar_flax.errors import UserError
from cifar_flax.layers.initializers import fan_in_uniform
from cifar_flax.layers.native import library, primitives
from cifar_flax.layers.native.geometry import Geometry

Lowering = Literal["auto", "native", "product", "xla"]


def resolve(lowering: Lowering) -> Lowering:
    """Replaces ``"auto"`` by the lowering that suits this device.

    On a CPU it is ``"native"``, the kernels, or, without them, ``"product"``, matrix
    products; on other devices it is ``"xla"``, XLA's convolution.

    Raises:
      UserError: ``lowering`` is ``"native"``, and the kernels are not available.
    """
    if lowering == "native":
        if jax.default_backend() != "cpu":
            raise UserError("--lowering=native: the kernels need a CPU; give auto")
        try:
            library.load()
        except library.BuildError as error:
            raise UserError(f"--lowering=native: {error}; give auto") from error
    if lowering != "auto":
        return lowering
    if jax.default_backend() != "cpu":
        return "xla"
    return "native" if library.available() else "product"


def describe(lowering: Lowering) -> str:
    """Describes a lowering in a few words."""
    lowering = resolve(lowering)
    if lowering == "native":
        return f"native kernels ({library.load().description})"
    return "matrix products" if lowering == "product" else "XLA"


class Conv(nn.Module):
    """A square convolution over [N, H, W, C] images with equal padding on all sides.

    Padding is explicit because ``"SAME"`` pads (0, 1) for an even size and stride 2,
    while these networks pad (1, 1). ``fan_in_uniform`` initialises kernel and bias if
    no other initialiser is given.

    Attributes:
      features: output channels F.
      kernel_size: K, in pixels.
      stride: step between output positions, in pixels.
      padding: zeros on each side, in pixels.
      use_bias: whether to add a bias to each output channel.
      kernel_init: initialiser of the kernel [K, K, C, F].
      bias_init: initialiser of the bias [F].
      dtype: computation dtype; None: that of the input. Parameters are float32.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        size, channels = self.kernel_size, images.shape[-1]
        if min(images.shape[1:3]) + 2 * self.padding < size:
            raise UserError(
                f"layer {'.'.join(self.path)}: a kernel of {size} x {size} pixels with "
                f"a padding of {self.padding} does not fit images of "
                f"{images.shape[1]} x {images.shape[2]}; give larger images"
            )
        init = fan_in_uniform(size * size * channels)
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", self.kernel_init or init, shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init or init, (self.features,))
        images, kernel, bias = nn.dtypes.promote_dtype(
            images, kernel, bias, dtype=self.dtype
        )
        outputs = convolve(images, kernel, self.stride, self.padding)
        return outputs if bias is None else outputs + bias


def convolve(
    images: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0
) -> jax.Array:
    """Cross-correlates images [N, H, W, C] with a kernel [K, K, C, F].

    ``y[n, a, b, f] = sum_{i, j, c} x[n, s*a + i - p, s*b + j - p, c] * w[i, j, c, f]``
    with stride s, padding p and zeros outside the image.
    """
    return primitives.convolve_xla(images, kernel, Geometry.square(stride, padding))
