"""What operations of JAX are on arrays in tiles; see ``tiling``."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.forms import transposed
from cifar_flax.layers.native import primitives
from cifar_flax.layers.native.geometry import Geometry
from cifar_flax.layers.native.primitives import TILE
from cifar_flax.layers.rule import form_of
from cifar_flax.layers.tiled_values import Spread, Tiled, Tiler, Value, plain

Array = jax.Array

# Of a matrix of each image, so that 16 fit in a cache. XLA is fast with larger ones.
MOST_NUMBERS = 1 << 14

# Of an equation and the values of its operands, of which one is tiled for most rules,
# returns the result, or a list of several, or None if plain arrays must be used.
Rule = Callable[[Tiler, Any, list[Value]], Value | list[Value] | None]
RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Any], Any]:
    def keep(rule: Any) -> Any:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return keep


@_rule(
    *("add", "add_any", "sub", "mul", "div", "rem", "max", "min", "neg", "sign", "abs"),
    *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc"),
    *("sqrt", "rsqrt", "cbrt", "square", "pow", "integer_pow", "sin", "cos", "tan"),
    *("floor", "ceil", "round", "is_finite", "eq", "ne", "lt", "le", "gt", "ge"),
    *("and", "or", "xor", "not", "select_n", "clamp", "convert_element_type", "copy"),
    *("asin", "acos", "atan", "atan2", "asinh", "acosh", "atanh", "sinh", "cosh"),
    *("log2", "lgamma", "digamma", "erf_inv", "one_minus_square", "polynomial"),
    *("bitcast_convert_type", "stop_gradient"),
)
def _elementwise(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    params = equation.params
    if params.get("sharding") is not None:
        return None
    tiled = [value for value in values if isinstance(value, Tiled)]
    axis, operands = tiled[0].axis, []
    if equation.outvars[0].aval.ndim != len(tiled[0].shape):
        return None  # bits as an array of narrower numbers
    for value in values:
        shape = jnp.shape(value) if jnp.isscalar(value) else value.shape
        if shape == ():
            operands.append(plain(value))
        elif shape[axis] == 1:  # the same for all images
            rest = [n for k, n in enumerate(shape) if k != axis]
            operands.append(plain(value).reshape(1, *rest, 1))
        else:
            operand = tiler.tiled(value, axis)
            if operand is None:
                return None
            operands.append(operand.take())
    name, compute = equation.primitive.name, equation.primitive.bind
    is_float32 = equation.outvars[0].aval.dtype == jnp.float32
    if name == "erfc" and tiler.of_product and is_float32:
        # GELU; erfc itself is too large for XLA to be one pass with what follows. The
        # absolute error of this is a rounding of 1, as in PyTorch's GELU.
        compute, params = (lambda u: 1 - lax.erf(u)), {}
    array = compute(*operands, **params)
    found = Tiled(array, axis, tiled[0].count, scaled=_scaled(equation, values))
    if name in ("erf", "erfc"):
        found.again = compute(*map(_apart, operands), **params)
    elif name == "mul" and len(tiled) == 2:
        if tiled[0].array.shape == tiled[1].array.shape:
            found.factors = tiled[0], tiled[1]
    elif name == "square" or (name == "integer_pow" and params["y"] == 2):
        found.factors = tiled[0], tiled[0]
    return found


def _scaled(equation: Any, values: list[Value]) -> tuple[Tiled, Any, Any] | None:
    """Returns ``Tiled.scaled`` of a negative, a product or a difference."""
    name = equation.primitive.name
    value, *others = sorted(values, key=lambda v: not isinstance(v, Tiled))
    base, factor, shift = value.scaled or (value, 1.0, None)
    if name == "neg":
        return base, -factor, shift
    by_channel = _by_channel(others[0], value) if len(others) == 1 else None
    if by_channel is None or equation.outvars[0].aval.shape != value.shape:
        return None
    if name == "mul":
        return base, factor * by_channel, shift
    if name == "sub" and value.scaled is None:
        return base, 1.0 if value is values[0] else -1.0, by_channel
    return None


def _by_channel(value: Value, like: Tiled) -> Array | None:
    """Returns a value that differs only between channels, [C] or of one number."""
    last = len(like.shape) - 1
    if isinstance(value, Spread):
        if value.axes not in ((), (last,)):
            return None
        value = value.array
    if isinstance(value, Tiled) or like.axis == last:
        return None
    value = jnp.asarray(value)
    return value.reshape(-1) if value.size == max((1, *value.shape[-1:])) else None


def _apart(array: Array) -> Array:
    """Returns an array of equal values, which XLA takes for another one.

    XLA writes out every part of GELU that its gradient needs, too: five passes over
    memory. Computed from arrays apart, each is one pass, and both take half the time.
    """
    kind = jnp.finfo(array.dtype)
    return lax.reduce_precision(array, kind.nexp, kind.nmant)


@_rule("broadcast_in_dim")
def _broadcast(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value, *_), params = values, equation.params
    shape, axes = tuple(params["shape"]), tuple(params["broadcast_dimensions"])
    if params.get("sharding") is not None or len(values) > 1:
        return None
    if not isinstance(value, Tiled):
        return Spread(plain(value), shape, axes)
    axis = axes[value.axis]
    if shape[axis] != value.shape[value.axis]:
        return None
    rest = [n for k, n in enumerate(shape) if k != axis]
    whole = (value.array.shape[0], *rest, TILE)
    between = [a + 1 if a < axis else a for a in axes if a != axis]
    places = (0, *between, len(whole) - 1)
    array = lax.broadcast_in_dim(value.array, whole, places)
    return Tiled(array, axis, value.count)


@_rule("reshape")
def _reshape(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value, *more), shape = values, tuple(equation.params["new_sizes"])
    if more or equation.params["dimensions"] is not None:
        return None
    before = math.prod(value.shape[: value.axis])
    for axis, length in enumerate(shape):
        if length == value.shape[value.axis] and math.prod(shape[:axis]) == before:
            rest = [n for k, n in enumerate(shape) if k != axis]
            return Tiled(value.array.reshape(-1, *rest, TILE), axis, value.count)
    return None


@_rule("squeeze")
def _squeeze(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value,), gone = values, equation.params["dimensions"]
    if value.axis in gone:
        return None
    rest = [n for k, n in enumerate(value.shape) if k not in gone and k != value.axis]
    axis = value.axis - sum(k < value.axis for k in gone)
    return Tiled(value.array.reshape(-1, *rest, TILE), axis, value.count)


@_rule("transpose")
def _transpose(tiler: Tiler, equation: Any, values: list[Value]) -> Value:
    (value,), order = values, equation.params["permutation"]
    places = [value.place(k) for k in order if k != value.axis]
    last = value.array.ndim - 1
    array = value.array.transpose(0, *places, last)
    return Tiled(array, order.index(value.axis), value.count)


@_rule(
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and"),
    *("reduce_or", "argmax", "argmin"),
)
def _reduce(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value,), axes = values, equation.params["axes"]
    places = [value.place(k) for k in axes if k != value.axis]
    if value.axis not in axes:
        array = equation.primitive.bind(
            value.array, **{**equation.params, "axes": tuple(places)}
        )
        axis = value.axis - sum(k < value.axis for k in axes)
        return Tiled(array, axis, value.count)
    last = value.array.ndim - 1
    over_all = sorted(places) == list(range(1, last - 1)) and last > 2
    is_sum = equation.primitive.name == "reduce_sum"
    if is_sum and over_all and value.array.dtype == jnp.float32:
        if value.factors:
            return tiler.product_by_channel(*value.factors)
        return tiler.sum_by_channel(value)
    if value.count % TILE or equation.primitive.name.startswith("arg"):
        return None
    return equation.primitive.bind(
        value.array, **{**equation.params, "axes": (0, *sorted(places), last)}
    )


@_rule("pad")
def _pad(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value, fill), sides = values, equation.params["padding_config"]
    if not isinstance(value, Tiled) or sides[value.axis] != (0, 0, 0):
        return None
    rest = [side for k, side in enumerate(sides) if k != value.axis]
    ends = (0, 0, 0)
    array = lax.pad(value.array, plain(fill), [ends, *rest, ends])
    return Tiled(array, value.axis, value.count)


@_rule("slice")
def _slice(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value,), params = values, equation.params
    strides = params["strides"] or (1,) * len(value.shape)
    parts = list(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    )
    first, end, stride = parts.pop(value.axis)
    index = tuple(slice(*part) for part in parts)
    if (first, end, stride) == (0, value.count, 1):
        return Tiled(value.array[(slice(None), *index)], value.axis, value.count)
    tile, lane = divmod(first, TILE)
    if lane + end - first > TILE:
        return None
    images = value.array[(tile, *index, slice(lane, lane + end - first, stride))]
    return jnp.moveaxis(images, -1, value.axis)


@_rule("rev")
def _rev(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value,), axes = values, equation.params["dimensions"]
    if value.axis in axes:
        return None
    array = lax.rev(value.array, [value.place(k) for k in axes])
    return Tiled(array, value.axis, value.count)


@_rule("concatenate")
def _concatenate(tiler: Tiler, equation: Any, values: list[Value]) -> Any:
    along = equation.params["dimension"]
    axis = next(value.axis for value in values if isinstance(value, Tiled))
    if axis == along:
        return None
    parts = [part for value in values if (part := tiler.tiled(value, axis))]
    if len(parts) < len(values):
        return None
    place = parts[0].place(along)
    array = lax.concatenate([part.array for part in parts], place)
    return Tiled(array, axis, parts[0].count)


@_rule("split")
def _split(tiler: Tiler, equation: Any, values: list[Value]) -> Any:
    """The gradient of a concatenation."""
    (value,), params = values, equation.params
    if params["axis"] == value.axis:
        return None
    place = value.place(params["axis"])
    parts = lax.split(value.array, params["sizes"], place)
    return [Tiled(part, value.axis, value.count) for part in parts]


@_rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _window(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    (value,) = values
    params = _window_of_tiles(equation.params, value.axis)
    if params is None:
        return None
    array = equation.primitive.bind(value.array, **params)
    return Tiled(array, value.axis, value.count)


@_rule("select_and_scatter_add")
def _window_gradient(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    """The gradient of a largest value goes where that was."""
    axis = next(value.axis for value in values if isinstance(value, Tiled))
    source, operand = (tiler.tiled(value, axis) for value in values)
    params = _window_of_tiles(equation.params, axis)
    if source is None or operand is None or params is None:
        return None
    array = equation.primitive.bind(source.array, operand.array, **params)
    return Tiled(array, axis, operand.count)


def _window_of_tiles(params: dict[str, Any], axis: int) -> dict[str, Any] | None:
    """Returns the parameters of a window on tiles; None if it spans several images."""
    found = dict(params)
    for name in params:
        if name.startswith("window_") or name in ("padding", "base_dilation"):
            parts = list(params[name])
            neutral = (0, 0) if name == "padding" else 1
            if parts.pop(axis) != neutral:
                return None
            found[name] = (neutral, *parts, neutral)
    return found


@_rule("conv_general_dilated")
def _convolve(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    first, second = (v.aval for v in equation.invars)
    avals = first, second, equation.outvars[0].aval
    params = equation.params
    specs = params["dimension_numbers"]
    form = form_of(*avals, params)
    if isinstance(form, str) or len(form.strides) != 2 or form.dilates_twice:
        return None
    if any(aval.dtype != jnp.float32 for aval in avals):
        return None
    geometry, size = form.geometry_and_size()
    if form.sums_over_images:
        return _kernel_gradient(tiler, form, specs, values, geometry, size)
    images = tiler.tiled(values[0], specs.lhs_spec[0])
    if images is None:
        return None
    order = [images.place(k) for k in (*specs.lhs_spec[2:], specs.lhs_spec[1])]
    array = images.array.transpose(0, *order, 4)
    kernel = plain(values[1])
    kernel = kernel.transpose(*specs.rhs_spec[2:], specs.rhs_spec[1], specs.rhs_spec[0])
    if form.lhs_dilation == (1, 1):
        outputs = primitives.convolve(array, kernel, geometry)
    else:
        kernel = transposed(kernel, form.groups)
        outputs = primitives.input_gradient(array, kernel, form.outputs[1:3], geometry)
    places = (*specs.out_spec[2:], specs.out_spec[1])
    back = [1 + places.index(k) for k in range(4) if k != specs.out_spec[0]]
    return Tiled(outputs.transpose(0, *back, 4), specs.out_spec[0], images.count)


def _kernel_gradient(
    tiler: Tiler, form: Any, specs: Any, values: list, geometry: Any, size: Any
) -> Array | None:
    """Its sums run over the images, so both operands are in tiles."""
    if form.groups > 1:
        return None
    images = tiler.tiled(values[0], specs.lhs_spec[1])
    grad = tiler.tiled(values[1], specs.rhs_spec[1])
    if images is None or grad is None:
        return None
    first = [images.place(k) for k in (*specs.lhs_spec[2:], specs.lhs_spec[0])]
    second = [grad.place(k) for k in (*specs.rhs_spec[2:], specs.rhs_spec[0])]
    x, dy = images.array.transpose(0, *first, 4), grad.array.transpose(0, *second, 4)
    if form.lhs_dilation != (1, 1):
        x, dy = dy, x
    sums = primitives.kernel_gradient(x, dy, size, geometry, images.count)
    outputs = form.of_kernel_gradient(sums, geometry.groups)
    places = (specs.out_spec[0], *specs.out_spec[2:], specs.out_spec[1])
    return outputs.transpose([places.index(k) for k in range(4)])


@_rule("dot_general")
def _dot(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    """A dense layer for each pixel is a convolution with one tap."""
    (left, right), (batch, _) = equation.params["dimension_numbers"]
    avals = [v.aval for v in (*equation.invars, *equation.outvars)]
    if any(aval.dtype != jnp.float32 for aval in avals):
        return None
    if batch:
        return _products(tiler, equation, values)
    lhs, rhs = values
    (first, second), count = (len(aval.shape) for aval in avals[:2]), len(left)
    if first < 3:
        return None
    if left == right == tuple(range(count)) and count > 1:
        x, dy = tiler.tiled(lhs, 0), tiler.tiled(rhs, 0)
        if x is None or dy is None:
            return None
        sums = primitives.kernel_gradient(
            _pixels(x, count), _pixels(dy, count), (1, 1), Geometry(), x.count
        )
        return sums.reshape(avals[2].shape)
    if not isinstance(lhs, Tiled) or lhs.axis or left != tuple(range(first)[-count:]):
        return None
    kernel, length = plain(rhs), math.prod(avals[0].shape[-count:])
    if right == tuple(range(count)):
        kernel = kernel.reshape(length, -1)
    elif right == tuple(range(second)[-count:]):
        kernel = kernel.reshape(-1, length).T
    else:
        return None
    pixels = _pixels(lhs, first - count)
    outputs = primitives.convolve(pixels, kernel[None, None], Geometry())
    array = outputs.reshape(len(pixels), *avals[2].shape[1:], TILE)
    return Tiled(array, 0, lhs.count)


def _products(tiler: Tiler, equation: Any, values: list[Value]) -> Value | None:
    """Products of two matrices of each image, as of attention."""
    terms, batch = equation.params["dimension_numbers"]
    first = next(k for k, value in enumerate(values) if isinstance(value, Tiled))
    axis, pairs = values[first].axis, list(zip(*batch, strict=True))
    at = batch[first].index(axis) if axis in batch[first] else None
    if at is None or len(pairs) > 2 or len(terms[0]) != 1:
        return None
    arrays, axes = [], []
    for value, batched, (term,), own in zip(
        values, batch, terms, pairs[at], strict=True
    ):
        free = [k for k in range(len(value.shape)) if k not in (*batched, term)]
        tiled = tiler.tiled(value, own)
        if tiled is None or len(free) != 1:
            return None
        group = [tiled.place(k) for k in batched if k != own]
        places = tiled.place(free[0]), tiled.place(term)
        array = tiled.array
        if not group:
            array, group = array[:, None], [1]
            places = places[0] + 1, places[1] + 1
        if array.shape[places[0]] * array.shape[places[1]] > MOST_NUMBERS:
            return None
        arrays.append(array)
        axes.append((group[0], *places))
    outputs = primitives.products(arrays[0], arrays[1], axes[0], axes[1])
    outputs = outputs if len(pairs) == 2 else outputs[:, 0]
    return Tiled(outputs, at, values[first].count)


def _pixels(value: Tiled, axes: int) -> Array:
    """Returns tiles of images with so many axes before those of the channels."""
    tiles, *shape, _ = value.array.shape
    pixels, channels = shape[: axes - 1], shape[axes - 1 :]
    return value.array.reshape(tiles, math.prod(pixels), 1, math.prod(channels), TILE)
