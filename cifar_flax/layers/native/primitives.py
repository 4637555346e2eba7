"""The kernels as JAX primitives.

They stand for what JAX has differentiated and mapped already: ``layers.rule`` and
``layers.tiling`` put them in place of its convolutions. Programs for platforms other
than a CPU use XLA's convolutions.
"""

import ctypes
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from cifar_flax.layers.native import library
from cifar_flax.layers.native.geometry import Geometry, Pair

Array = jax.Array

# The axes of a tiled array that groups, rows (or columns) and terms of a product have.
Axes = tuple[int, int, int]

# Images in a tile, one for each lane of the kernels' vectors.
TILE = 16


def tile(images: Array) -> Array:
    """Maps [N, H, W, C] to [ceil(N / 16), H, W, C, 16]; lanes without images are 0."""
    return _tile.bind(images)


def untile(tiles: Array, count: int) -> Array:
    """Returns the first images of tiles: [T, H, W, C, 16] -> [count, H, W, C]."""
    return _untile.bind(tiles, count=count)


def convolve(tiles: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cross-correlates tiles; see ``Geometry``.

    Args:
      tiles: float32 [T, H, W, G * C, 16] with G groups.
      kernel: float32 [K, L, C, G * F]; any sizes K and L.
      geometry: see there.

    Returns:
      [T, H', W', G * F, 16].
    """
    return _convolve.bind(tiles, kernel, geometry=geometry)


def convolve_after(
    tiles: Array, kernel: Array, rows: Array, geometry: Geometry
) -> Array:
    """Cross-correlates tiles, and then changes each number y by its channel.

    ``min(max(y * rows[0] + rows[1], rows[2]), rows[3]) * rows[4] + rows[5]``

    ``layers.folding`` makes it. Arguments and result are those of ``convolve``, and
    ``rows`` is float32 [6, G * F].
    """
    return _convolve_after.bind(tiles, kernel, rows, geometry=geometry)


def input_gradient(grad: Array, kernel: Array, size: Pair, geometry: Geometry) -> Array:
    """Returns the gradient of ``sum(grad * convolve(tiles, kernel))`` for the tiles.

    Args:
      grad: float32 [T, H', W', G * F, 16].
      kernel: as of ``convolve``.
      size: height and width of the tiles.
      geometry: of the convolution.

    Returns:
      [T, H, W, G * C, 16].
    """
    return _input_gradient.bind(grad, kernel, size=size, geometry=geometry)


def kernel_gradient(
    tiles: Array, grad: Array, size: Pair, geometry: Geometry, count: int
) -> Array:
    """Returns the gradient of ``sum(grad * convolve(tiles, kernel))`` for the kernel.

    Args:
      tiles: as of ``convolve``.
      grad: float32 [T, H', W', G * F, 16].
      size: height and width of the kernel.
      geometry: of the convolution.
      count: number of images, the first ones of the tiles.

    Returns:
      [K, L, C, G * F].
    """
    return _kernel_gradient.bind(tiles, grad, size=size, geometry=geometry, count=count)


def convolve_xla(images: Array, kernel: Array, geometry: Geometry) -> Array:
    """Cross-correlates images [N, H, W, C] with XLA's convolution."""
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=geometry.strides,
        padding=geometry.padding,
        rhs_dilation=geometry.dilations,
        feature_group_count=geometry.groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def channel_sums(
    u: Array, v: Array, u_shift: Array, v_shift: Array, count: int
) -> tuple[Array, Array]:
    """Returns for each channel the sums of ``u - a`` and of ``(u - a) * (v - b)``.

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


def products(a: Array, b: Array, a_axes: Axes, b_axes: Axes) -> Array:
    """Multiplies two matrices of each image.

    ``y[n, g, i, j] = sum_k a[n, g, i, k] * b[n, g, j, k]``

    Args:
      a: float32 tiles, [T, *rest, 16].
      b: as ``a``.
      a_axes: of ``a`` that g, i and k count.
      b_axes: of ``b`` that g, j and k count.

    Returns:
      Tiles, [T, G, I, J, 16].
    """
    return _products.bind(a, b, a_axes=a_axes, b_axes=b_axes)


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

    lower = functools.partial(mlir.lower_fun, multiple_results=False)
    mlir.register_lowering(primitive, lower(with_xla))
    mlir.register_lowering(primitive, lower(with_kernel), platform="cpu")
    return primitive


def _call(handler: str, operands: tuple, shapes: tuple, **attributes: Any) -> Any:
    """Calls a kernel and returns its first result; a second one is its workspace."""
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    numbers = {name: np.int64(value) for name, value in attributes.items()}
    name = library.target(handler)
    call = jax.ffi.ffi_call(name, results, vmap_method="sequential")
    return call(*operands, **numbers)[0]


def _call_convolution(
    name: str,
    operands: tuple,
    result: tuple,
    *,
    tiles: tuple,
    grad: tuple,
    kernel: tuple,
    geometry: Geometry,
    count: int | None = None,
) -> Any:
    """Calls one of the three kernels of a convolution.

    Args:
      name: of the kernel.
      operands: two of tiles, gradient of the outputs and kernel; for the forward pass
        perhaps what follows, see ``convolve_after``.
      result: shape of the third of these.
      tiles: shape [T, H, W, G * C, 16].
      grad: shape [T, H', W', G * F, 16].
      kernel: shape [K, L, C, G * F].
      geometry: of the convolution.
      count: number of images; None: as many as there are lanes.
    """
    numbers = [tiles[0], kernel[2], kernel[3] // geometry.groups, geometry.groups]
    inputs, outputs = tiles[1:3], grad[1:3]
    one_tap = kernel[:2] == (1, 1) and geometry == Geometry(groups=geometry.groups)
    if one_tap and math.prod(inputs) % 2 == 0:
        # All pixels are alike, and the kernels compute neighbours in a row together.
        inputs = outputs = (math.prod(inputs) // 2, 2)
    for axis in range(2):
        numbers += [inputs[axis], outputs[axis], kernel[axis]]
        numbers += [geometry.strides[axis], geometry.dilations[axis]]
        numbers += [geometry.padding[axis][0]]
    numbers.append(tiles[0] * TILE if count is None else count)
    shape = np.array(numbers, np.int64)  # struct Convolution of shape.h
    size = getattr(library.load().functions, f"{name}_size")
    workspace = (size(shape.ctypes.data_as(ctypes.c_void_p)),)
    return _call(f"conv_{name}", operands, (result, workspace), shape=shape)


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


def _products_shape(a: tuple, b: tuple, a_axes: Axes, b_axes: Axes) -> tuple:
    return (a[0], a[a_axes[0]], a[a_axes[1]], b[b_axes[1]], TILE)


def _products_on_cpu(a: Array, b: Array, a_axes: Axes, b_axes: Axes) -> Array:
    shape = _products_shape(a.shape, b.shape, a_axes, b_axes)
    numbers = [*shape[:-1], a.shape[a_axes[2]]]  # struct Product of products.h
    for array, axes in ((a, a_axes), (b, b_axes)):
        sizes = array.shape
        numbers += [math.prod(sizes[axis + 1 :]) for axis in (0, *axes)]
    return _call("products", (a, b), (shape,), shape=np.array(numbers, np.int64))


def _products_xla(a: Array, b: Array, a_axes: Axes, b_axes: Axes) -> Array:
    one, other = (
        jnp.transpose(array, (0, *axes, 4))
        for array, axes in ((a, a_axes), (b, b_axes))
    )
    return jnp.einsum("tgikl,tgjkl->tgijl", one, other)


_products = _primitive("products", _products_shape, _products_on_cpu, _products_xla)


def _outputs_shape(tiles: tuple, kernel: tuple, geometry: Geometry) -> tuple:
    height, width = geometry.outputs(tiles[1:3], kernel[:2])
    return (tiles[0], height, width, kernel[3], TILE)


def _convolve_on_cpu(
    tiles: Array, kernel: Array, *rows: Array, geometry: Geometry
) -> Array:
    outputs = _outputs_shape(tiles.shape, kernel.shape, geometry)
    return _call_convolution(
        "forward",
        (tiles, kernel, *rows),
        outputs,
        tiles=tiles.shape,
        grad=outputs,
        kernel=kernel.shape,
        geometry=geometry,
    )


def _convolve_xla(tiles: Array, kernel: Array, geometry: Geometry) -> Array:
    images = _untile_xla(tiles, len(tiles) * TILE)
    return _tile_xla(convolve_xla(images, kernel, geometry))


def _convolve_after_xla(
    tiles: Array, kernel: Array, rows: Array, geometry: Geometry
) -> Array:
    y = _convolve_xla(tiles, kernel, geometry)
    a, b, low, high, c, d = rows[..., None]
    return jnp.minimum(jnp.maximum(y * a + b, low), high) * c + d


_convolve = _primitive("convolve", _outputs_shape, _convolve_on_cpu, _convolve_xla)
_convolve_after = _primitive(
    "convolve_after",
    lambda tiles, kernel, _, geometry: _outputs_shape(tiles, kernel, geometry),
    _convolve_on_cpu,
    _convolve_after_xla,
)


def _inputs_shape(grad: tuple, kernel: tuple, size: Pair, geometry: Geometry) -> tuple:
    return (grad[0], *size, geometry.groups * kernel[2], TILE)


def _input_gradient_on_cpu(
    grad: Array, kernel: Array, size: Pair, geometry: Geometry
) -> Array:
    inputs = _inputs_shape(grad.shape, kernel.shape, size, geometry)
    return _call_convolution(
        "input_gradient",
        (grad, kernel),
        inputs,
        tiles=inputs,
        grad=grad.shape,
        kernel=kernel.shape,
        geometry=geometry,
    )


def _input_gradient_xla(
    grad: Array, kernel: Array, size: Pair, geometry: Geometry
) -> Array:
    shape = _inputs_shape(grad.shape, kernel.shape, size, geometry)
    inputs = jax.ShapeDtypeStruct(shape, grad.dtype)

    def convolve(tiles: Array) -> Array:
        return _convolve_xla(tiles, kernel, geometry)

    return jax.linear_transpose(convolve, inputs)(grad)[0]


_input_gradient = _primitive(
    "convolve_input_gradient",
    _inputs_shape,
    _input_gradient_on_cpu,
    _input_gradient_xla,
)


def _kernel_shape(
    tiles: tuple, grad: tuple, size: Pair, geometry: Geometry, count: int
) -> tuple:
    del count
    return (*size, tiles[3] // geometry.groups, grad[3])


def _kernel_gradient_on_cpu(
    tiles: Array, grad: Array, size: Pair, geometry: Geometry, count: int
) -> Array:
    kernel = _kernel_shape(tiles.shape, grad.shape, size, geometry, count)
    return _call_convolution(
        "kernel_gradient",
        (tiles, grad),
        kernel,
        tiles=tiles.shape,
        grad=grad.shape,
        kernel=kernel,
        geometry=geometry,
        count=count,
    )


def _kernel_gradient_xla(
    tiles: Array, grad: Array, size: Pair, geometry: Geometry, count: int
) -> Array:
    shape = _kernel_shape(tiles.shape, grad.shape, size, geometry, count)
    kernel = jax.ShapeDtypeStruct(shape, grad.dtype)
    images = _untile_xla(tiles, count)

    def convolve(kernel: Array) -> Array:
        return convolve_xla(images, kernel, geometry)

    return jax.linear_transpose(convolve, kernel)(_untile_xla(grad, count))[0]


_kernel_gradient = _primitive(
    "convolve_kernel_gradient",
    _kernel_shape,
    _kernel_gradient_on_cpu,
    _kernel_gradient_xla,
)
