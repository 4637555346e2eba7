"""The convolution layer, with its own implementations (lowerings) for CPUs."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

from cifar_flax.errors import UserError
from cifar_flax.layers.conv_product import conv2d_product
from cifar_flax.layers.initializers import fan_in_uniform
from cifar_flax.layers.native import library, primitives
from cifar_flax.layers.native.geometry import Geometry
from cifar_flax.layers.tiled_norm import add_bias
from cifar_flax.layers.tiles import Images, Tiles

Array = jax.Array
Lowering = Literal["auto", "native", "product", "xla"]

_lowering: contextvars.ContextVar[Lowering] = contextvars.ContextVar(
    "lowering", default="auto"
)
_tiling = contextvars.ContextVar("tiling", default=False)


@contextlib.contextmanager
def convolving(lowering: Lowering) -> Iterator[None]:
    """Sets the lowering of the layers ``Conv`` that are traced within the block.

    It lets ``tiled`` make tiles. For other layers see ``layers.rule``.

    Args:
      lowering: used by each layer whose own lowering is ``"auto"``.
    """
    one, other = _lowering.set(lowering), _tiling.set(True)
    try:
        yield
    finally:
        _lowering.reset(one)
        _tiling.reset(other)


def resolve(lowering: Lowering) -> Lowering:
    """Replaces ``"auto"`` by the lowering that suits this device.

    On a CPU it is ``"native"`` or, without the kernels, ``"product"``; on other devices
    it is ``"xla"``.

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


def tiled(images: Array, dtype: jnp.dtype | None = None) -> Images:
    """Converts images to tiles if the layers of a model may pass tiles to each other.

    They may if a trainer trains or evaluates with the native kernels. Otherwise the
    images are returned unchanged.

    Args:
      images: [N, H, W, C].
      dtype: computation dtype; None: that of the images.
    """
    is_float32 = jnp.dtype(dtype or images.dtype) == images.dtype == jnp.float32
    if is_float32 and _tiling.get() and resolve(_lowering.get()) == "native":
        return Tiles.of(images)
    return images


def conv2d(
    images: Images, kernel: Array, stride: int, padding: int, lowering: Lowering
) -> Images:
    """Cross-correlates with zeros outside the image; see ``conv2d_product``.

    Args:
      images: [N, H, W, C].
      kernel: [K, K, C, F].
      stride: in pixels.
      padding: in pixels.
      lowering: see ``Conv``. The native kernels compute only float32; other dtypes use
        matrix products instead.
    """
    lowering, geometry = resolve(lowering), Geometry.square(stride, padding)
    if lowering == "native" and images.dtype != jnp.float32:
        lowering = "product"
    if lowering == "native":
        if not isinstance(images, Tiles):
            tiles = Tiles.of(images)
            return conv2d(tiles, kernel, stride, padding, lowering).images
        return images.map(lambda array: primitives.convolve(array, kernel, geometry))
    if isinstance(images, Tiles):
        return Tiles.of(conv2d(images.images, kernel, stride, padding, lowering))
    if lowering == "product":
        return conv2d_product(images, kernel, stride, padding)
    return primitives.convolve_xla(images, kernel, geometry)


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
      lowering: how to convolve: ``"native"``, the kernels for a CPU; ``"product"``,
        matrix products; ``"xla"``, ``jax.lax``'s; ``"auto"``, the trainer's choice
        or, without a trainer, the first of these that suits the device.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 0
    use_bias: bool = True
    kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
    dtype: jnp.dtype | None = None
    lowering: Lowering = "auto"

    @nn.compact
    def __call__(self, images: Images) -> Images:
        """Maps [N, H, W, C] to [N, H', W', features], and tiles to tiles."""
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
        tiles = isinstance(images, Tiles)
        pixels = images.array if tiles else images
        pixels, kernel, bias = nn.dtypes.promote_dtype(
            pixels, kernel, bias, dtype=self.dtype
        )
        images = Tiles(pixels, images.count) if tiles else pixels
        lowering = _lowering.get() if self.lowering == "auto" else self.lowering
        outputs = conv2d(images, kernel, self.stride, self.padding, lowering)
        if bias is None:
            return outputs
        return add_bias(outputs, bias) if tiles else outputs + bias
