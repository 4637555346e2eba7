"""The kernels as JAX primitives, with all their transformation rules.

The convolution and its gradients for the input and the kernel are each linear in both
operands, and the transpose in either operand is another of the three. So forward and
reverse mode can differentiate them any number of times. Under ``vmap`` they run one
after the other. Programs for platforms other than a CPU use XLA's convolutions.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from cifar_flax.layers.native import library

Array = jax.Array

# Images in a tile, one for each lane of the kernels' vectors.
TILE = 16


def tile(images: Array) -> Array:
    """Maps [N, H, W, C] to [ceil(N / 16), H, W, C, 16]; lanes without images are 0."""
    return _tile.bind(images)


def untile(tiles: Array, count: int) -> Array:
    """Returns the first images of tiles: [T, H, W, C, 16] -> [count, H, W, C]."""
    return _untile.bind(tiles, count=count)


def convolve(tiles: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Cross-correlates tiles, as ``conv2d_product`` does for images.

    Args:
      tiles: float32 [T, H, W, C, 16].
      kernel: float32 [K, K, C, F].
      stride: in pixels.
      padding: in pixels.

    Returns:
      [T, H', W', F, 16].
    """
    return _convolve.bind(tiles, kernel, stride=stride, padding=padding)


def convolve_xla(images: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Cross-correlates images [N, H, W, C] with XLA's convolution."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def channel_sums(
    u: Array, v: Array, u_shift: Array, v_shift: Array, count: int
) -> tuple[Array, Array]:
    """Returns for each channel the sums of ``u - a`` and of ``(u - a) * (v - b)``.

    It cannot be differentiated: only functions with custom gradients may call it.

    Args:
      u: float32 tiles [T, H, W, C, 16].
      v: as ``u``.
      u_shift: a, float32 [C].
      v_shift: b, float32 [C].
      count: number of images, the first ones of the tiles.

    Returns:
      Two arrays, float32 [C].
    """
    first, second = _channel_sums.bind(u, v, u_shift, v_shift, count=count)
    return first, second


def _primitive(name: str, shape: Any, on_cpu: Any, elsewhere: Any) -> Primitive:
    """Makes a primitive on float arrays.

    Args:
      name: name of the primitive.
      shape: returns the result's shape from the operands' shapes and the parameters.
        If an operand or the result is empty, the result is 0: every primitive here
        moves numbers or adds up products of them.
      on_cpu: computes the result from float32 operands with a kernel.
      elsewhere: computes the result with XLA.
    """
    primitive = Primitive(name)

    @functools.cache
    def compiled(params: tuple) -> Any:
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    @primitive.def_impl
    def _(*operands: Any, **params: Any) -> Any:
        return compiled(tuple(params.items()))(*operands)

    @primitive.def_abstract_eval
    def _(*avals: Any, **params: Any) -> Any:
        shapes = (aval.shape for aval in avals)
        return avals[0].update(shape=shape(*shapes, **params), weak_type=False)

    def one_by_one(operands: Any, axes: Any, **params: Any) -> Any:
        mapped = [axis is not None for axis in axes]
        moved = tuple(
            jnp.moveaxis(operand, axis, 0)
            for operand, axis in zip(operands, axes, strict=True)
            if axis is not None
        )

        def of_one(parts: Any) -> Array:
            parts = iter(parts)
            pairs = zip(operands, mapped, strict=True)
            return primitive.bind(
                *(
                    next(parts) if is_mapped else operand
                    for operand, is_mapped in pairs
                ),
                **params,
            )

        return lax.map(of_one, moved), 0

    def is_empty(*operands: Any, **params: Any) -> bool:
        shapes = [operand.shape for operand in operands]
        return any(0 in one for one in (*shapes, shape(*shapes, **params)))

    def with_xla(*operands: Any, **params: Any) -> Any:
        if is_empty(*operands, **params):
            shapes = (operand.shape for operand in operands)
            return jnp.zeros(shape(*shapes, **params), operands[0].dtype)
        return elsewhere(*operands, **params)

    def with_kernel(*operands: Any, **params: Any) -> Any:
        fits = all(operand.dtype == jnp.float32 for operand in operands)
        fits = fits and not is_empty(*operands, **params) and library.available()
        return (on_cpu if fits else with_xla)(*operands, **params)

    batching.primitive_batchers[primitive] = one_by_one
    lower = functools.partial(mlir.lower_fun, multiple_results=False)
    mlir.register_lowering(primitive, lower(with_xla))
    mlir.register_lowering(primitive, lower(with_kernel), platform="cpu")
    return primitive


def _call(handler: str, operands: tuple, shapes: tuple, **attributes: int) -> Any:
    """Calls a kernel and returns its first result; a second one is its workspace."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    numbers = {name: np.int64(value) for name, value in attributes.items()}
    name = library.target(handler)
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential")
    return call(*operands, **numbers)[0]


def _workspace(
    name: str, tiles: tuple, kernel: tuple, stride: int, padding: int
) -> tuple[int]:
    """Returns the shape of a workspace; ``name`` is one of ``library.SIZES``."""
    size, _, channels, features = kernel
    function = getattr(library.load().functions, name)
    return (function(*tiles[:3], channels, features, size, stride, padding),)


def _tile_xla(images: Array) -> Array:
    padded = jnp.pad(images, [(0, -len(images) % TILE), (0, 0), (0, 0), (0, 0)])
    return jnp.moveaxis(padded.reshape(-1, TILE, *images.shape[1:]), 1, -1)


def _untile_xla(tiles: Array, count: int) -> Array:
    return jnp.moveaxis(tiles, -1, 1).reshape(-1, *tiles.shape[1:-1])[:count]


def _tiled_shape(images: tuple) -> tuple:
    return (-(-images[0] // TILE), *images[1:], TILE)


def _untiled_shape(tiles: tuple, count: int) -> tuple:
    return (count, *tiles[1:-1])


_tile = _primitive(
    "tile",
    _tiled_shape,
    lambda images: _call("tile", (images,), (_tiled_shape(images.shape),)),
    _tile_xla,
)
_untile = _primitive(
    "untile",
    _untiled_shape,
    lambda tiles, count: _call(
        "untile", (tiles,), (_untiled_shape(tiles.shape, count),)
    ),
    _untile_xla,
)


def _channel_sums_on_cpu(u: Array, *others: Array, count: int) -> Array:
    tiles, channels = u.shape[0], u.shape[3]
    shapes = (2, channels), (tiles * 2 * channels * (1 + TILE),)
    return _call("channel_sums", (u, *others), shapes, count=count)


def _channel_sums_xla(
    u: Array, v: Array, u_shift: Array, v_shift: Array, count: int
) -> Array:
    u = _untile_xla(u, count) - u_shift
    v = _untile_xla(v, count) - v_shift
    return jnp.stack([u.sum((0, 1, 2)), (u * v).sum((0, 1, 2))])


_channel_sums = _primitive(
    "channel_sums",
    lambda u, *_, **__: (2, u[3]),
    _channel_sums_on_cpu,
    _channel_sums_xla,
)


def _outputs_shape(tiles: tuple, kernel: tuple, stride: int, padding: int) -> tuple:
    size, _, _, features = kernel
    height, width = (
        max(0, (length + 2 * padding - size) // stride + 1) for length in tiles[1:3]
    )
    return (tiles[0], height, width, features, TILE)


def _convolve_on_cpu(tiles: Array, kernel: Array, **params: int) -> Array:
    outputs = _outputs_shape(tiles.shape, kernel.shape, **params)
    workspace = _workspace("forward_size", tiles.shape, kernel.shape, **params)
    return _call("conv_forward", (tiles, kernel), (outputs, workspace), **params)


def _convolve_xla(tiles: Array, kernel: Array, stride: int, padding: int) -> Array:
    images = _untile_xla(tiles, len(tiles) * TILE)
    return _tile_xla(convolve_xla(images, kernel, stride, padding))


_convolve = _primitive("convolve", _outputs_shape, _convolve_on_cpu, _convolve_xla)


def _inputs_shape(
    grad: tuple, kernel: tuple, height: int, width: int, **_: int
) -> tuple:
    return (grad[0], height, width, kernel[2], TILE)


def _input_gradient_on_cpu(
    grad: Array, kernel: Array, height: int, width: int, **params: int
) -> Array:
    inputs = _inputs_shape(grad.shape, kernel.shape, height, width)
    workspace = _workspace("input_gradient_size", grad.shape, kernel.shape, **params)
    results = (inputs, workspace)
    return _call("conv_input_gradient", (grad, kernel), results, **params)


def _input_gradient_xla(
    grad: Array, kernel: Array, height: int, width: int, stride: int, padding: int
) -> Array:
    shape = _inputs_shape(grad.shape, kernel.shape, height, width)
    inputs = jax.ShapeDtypeStruct(shape, grad.dtype)

    def convolve(tiles: Array) -> Array:
        return _convolve_xla(tiles, kernel, stride, padding)

    return jax.linear_transpose(convolve, inputs)(grad)[0]


_input_gradient = _primitive(
    "convolve_input_gradient",
    _inputs_shape,
    _input_gradient_on_cpu,
    _input_gradient_xla,
)


def _kernel_shape(tiles: tuple, grad: tuple, size: int, **_: int) -> tuple:
    return (size, size, tiles[3], grad[3])


def _kernel_gradient_on_cpu(
    tiles: Array, grad: Array, size: int, **params: int
) -> Array:
    kernel = _kernel_shape(tiles.shape, grad.shape, size)
    workspace = _workspace("kernel_gradient_size", tiles.shape, kernel, **params)
    results = (kernel, workspace)
    return _call("conv_kernel_gradient", (tiles, grad), results, **params)


def _kernel_gradient_xla(
    tiles: Array, grad: Array, size: int, stride: int, padding: int
) -> Array:
    shape = _kernel_shape(tiles.shape, grad.shape, size)
    kernel = jax.ShapeDtypeStruct(shape, grad.dtype)

    def convolve(kernel: Array) -> Array:
        return _convolve_xla(tiles, kernel, stride, padding)

    return jax.linear_transpose(convolve, kernel)(grad)[0]


_kernel_gradient = _primitive(
    "convolve_kernel_gradient",
    _kernel_shape,
    _kernel_gradient_on_cpu,
    _kernel_gradient_xla,
)


def _height_and_width(tiles: Any) -> dict[str, int]:
    return {"height": tiles.aval.shape[1], "width": tiles.aval.shape[2]}


# Let y = F(x, w), dx = D(dy, w) and dw = W(x, dy). Then <dy, y> = <dx, x> = <dw, w>, so
# that F, D and W are transposes of each other.
ad.deflinear2(_tile, lambda ct, x: [untile(ct, x.aval.shape[0])])
ad.deflinear2(
    _untile,
    lambda ct, x, count: [_pad_tiles(tile(ct), x.aval.shape[0])],
)
ad.defbilinear(
    _convolve,
    lambda ct, x, w, **params: _input_gradient.bind(
        ct, w, **_height_and_width(x), **params
    ),
    lambda ct, x, w, **params: _kernel_gradient.bind(
        x, ct, size=w.aval.shape[0], **params
    ),
)
ad.defbilinear(
    _input_gradient,
    lambda ct, dy, w, height, width, **params: _convolve.bind(ct, w, **params),
    lambda ct, dy, w, height, width, **params: _kernel_gradient.bind(
        ct, dy, size=w.aval.shape[0], **params
    ),
)
ad.defbilinear(
    _kernel_gradient,
    lambda ct, x, dy, size, **params: _input_gradient.bind(
        dy, ct, **_height_and_width(x), **params
    ),
    lambda ct, x, dy, size, **params: _convolve.bind(x, ct, **params),
)


def _pad_tiles(tiles: Array, count: int) -> Array:
    """Appends tiles without images, up to ``count`` tiles."""
    return jnp.pad(tiles, [(0, count - len(tiles))] + [(0, 0)] * 4)
