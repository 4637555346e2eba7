"""Convolution: one layer, with a lowering of its own for CPUs.

On a CPU it is computed by ``conv2d_product``, with matrix products; accelerators keep
``lax.conv_general_dilated``.
"""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.errors import UserError
from cifar_flax.layers.conv_product import conv2d_product
from cifar_flax.layers.initializers import fan_in_uniform

Array = jax.Array
Lowering = Literal["auto", "native", "product"]


def conv2d_native(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Cross-correlation by XLA; arguments and result as in ``conv2d_product``."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class Conv(nn.Module):
    """A square convolution over [N, H, W, C] images, zero-padded alike on all sides.

    Padding is explicit because ``"SAME"`` pads (0, 1) for an even size and stride 2,
    where these networks pad (1, 1). Kernel and bias start from ``fan_in_uniform``.

    Attributes:
      features: output channels F.
      kernel_size: K, in pixels.
      stride: step between output positions, in pixels.
      padding: zeros on each side, in pixels.
      use_bias: adds a bias for each output channel.
      dtype: type of the computation; parameters stay float32. None: the input's.
      lowering: how it is computed; ``"auto"`` takes products on a CPU and XLA's
        convolution elsewhere.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    dtype: jnp.dtype | None = None
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Maps [N, H, W, C] to [N, H', W', features]."""
        size = self.kernel_size
        if min(images.shape[1:3]) + 2 * self.padding < size:
            raise UserError(
                f"layer {'.'.join(self.path)}: a kernel of {size} x {size} pixels with "
                f"a padding of {self.padding} does not fit images of "
                f"{images.shape[1]} x {images.shape[2]}; give larger images"
            )
        fan_in = size * size * images.shape[-1]
        init = fan_in_uniform(fan_in)
        shape = (size, size, images.shape[-1], self.features)
        kernel = self.param("kernel", init, shape)
        bias = self.param("bias", init, (self.features,)) if self.use_bias else None
        images, kernel, bias = nn.dtypes.promote_dtype(
            images, kernel, bias, dtype=self.dtype
        )
        native = self.lowering == "native" or (
            self.lowering == "auto" and jax.default_backend() != "cpu"
        )
        conv2d = conv2d_native if native else conv2d_product
        outputs = conv2d(images, kernel, self.stride, self.padding)
        return outputs if bias is None else outputs + bias
