"""A transformation that keeps images in tiles from one convolution to the next.

The kernels want a batch in tiles of 16 images (``native.primitives``). Layers of other
libraries know nothing of this, and each of their convolutions would bring its operands
into tiles and its result back. ``in_tiles`` computes a function as it was traced, but
keeps an array in tiles while the operations on it allow that: what treats all images
alike is the same operation on an array with another order of axes.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from cifar_flax.layers.forms import transposed
from cifar_flax.layers.native import primitives
from cifar_flax.layers.native.primitives import TILE, Geometry
from cifar_flax.layers.rule import form_of

Array = jax.Array


@dataclasses.dataclass(eq=False)
class Tiled:
    """An array with a batch of N images along one axis, stored in tiles.

    Attributes:
      array: [N / 16, *rest, 16]; the other axes in their order.
      axis: of the batch in the array that it stands for.
      factors: two tiled arrays whose product it is, if that is known.
    """

    array: Array
    axis: int
    factors: tuple["Tiled", "Tiled"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it stands for."""
        tiles, *rest, _ = self.array.shape
        return (*rest[: self.axis], tiles * TILE, *rest[self.axis :])

    def place(self, axis: int) -> int:
        """Returns the axis of ``array`` for another axis than the batch."""
        return axis + 1 if axis < self.axis else axis

    def plain(self) -> Array:
        """Returns the array that it stands for."""
        tiles, *rest, _ = self.array.shape
        flat = self.array.reshape(tiles, 1, 1, math.prod(rest), TILE)
        images = primitives.untile(flat, tiles * TILE)
        return jnp.moveaxis(images.reshape(-1, *rest), 0, self.axis)


@dataclasses.dataclass(eq=False)
class Spread:
    """An array that is the same along all axes but those of a smaller array.

    Attributes:
      array: the smaller array.
      shape: of the array that it stands for.
      axes: where the axes of ``array`` are among those.
    """

    array: Array
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def plain(self) -> Array:
        """Returns the array that it stands for."""
        return lax.broadcast_in_dim(self.array, self.shape, self.axes)

    def tiled(self, axis: int) -> Array | None:
        """Returns it in tiles, or None if it differs between images."""
        array, axes = self.array, self.axes
        if axis in axes:
            at = axes.index(axis)
            if array.shape[at] != 1:
                return None
            array = array.reshape([n for k, n in enumerate(array.shape) if k != at])
            axes = tuple(a for a in axes if a != axis)
        rest = [n for k, n in enumerate(self.shape) if k != axis]
        shape = (self.shape[axis] // TILE, *rest, TILE)
        places = tuple(a + 1 if a < axis else a for a in axes)
        return lax.broadcast_in_dim(array, shape, places)


Value = Any  # Array, Tiled or Spread


def in_tiles(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the same values, computed in tiles where that is faster.

    It is meant for a function that computes gradients, not for one to be
    differentiated.
    """

    @functools.wraps(function)
    def computed(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        leaves = jax.tree.leaves(args)
        if _convolves(traced.jaxpr):
            outputs = _Interpreter().run(traced.jaxpr, traced.consts, leaves)
        else:
            outputs = core.jaxpr_as_fun(traced)(*leaves)
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [_plain(value) for value in outputs]
        )

    return computed


def _convolves(jaxpr: Any) -> bool:
    """Whether there is a convolution that ``in_tiles`` would see."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        inner = _inlined(equation.primitive.name, equation.params)
        if inner and _convolves(inner.jaxpr):
            return True
    return False


def _plain(value: Value) -> Array:
    return value.plain() if isinstance(value, Tiled | Spread) else value


class _Interpreter:
    """Evaluates a jaxpr on plain, tiled and spread arrays."""

    def __init__(self):
        # The tiles of plain arrays, and sums over channels, which are used twice.
        self._tiles: dict[tuple[int, int], tuple[Array, Tiled]] = {}
        self._sums: dict[tuple[int, int], tuple[Any, tuple[Array, Array]]] = {}

    def run(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Value]) -> list:
        """Returns the values of the outputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(atom: Any) -> Value:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        last = _last_uses(jaxpr)
        for number, equation in enumerate(jaxpr.eqns):
            outputs = self._equation(equation, [read(v) for v in equation.invars])
            known.update(zip(equation.outvars, outputs, strict=True))
            for variable in last.get(number, ()):
                known.pop(variable, None)
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value]) -> list[Value]:
        primitive, params = equation.primitive, equation.params
        if inner := _inlined(primitive.name, params):
            return self.run(inner.jaxpr, inner.consts, values)
        rule = RULES.get(primitive.name)
        touches = any(isinstance(value, Tiled) for value in values)
        if rule and (touches or primitive.name in _STARTING):
            outputs = rule(self, equation, values)
            if outputs is not None:
                return [outputs]
        values = [_plain(value) for value in values]
        with jax.named_scope(str(equation.source_info.name_stack) or "tiles"):
            outputs = primitive.bind(*values, **params)
        return list(outputs) if primitive.multiple_results else [outputs]

    def tiled(self, value: Value, axis: int) -> Tiled | None:
        """Returns an array in tiles along an axis; None if it has no such tiles."""
        if isinstance(value, Tiled):
            return value if value.axis == axis else self.tiled(value.plain(), axis)
        if isinstance(value, Spread):
            array = value.tiled(axis)
            return (
                self.tiled(value.plain(), axis) if array is None else Tiled(array, axis)
            )
        if value.shape[axis] % TILE or value.size == 0:
            return None
        key = id(value), axis
        if key not in self._tiles:
            images = jnp.moveaxis(value, axis, 0)
            count, *rest = images.shape
            flat = primitives.tile(images.reshape(count, 1, 1, math.prod(rest)))
            array = flat.reshape(-1, *rest, TILE)
            self._tiles[key] = value, Tiled(array, axis)
        return self._tiles[key][1]

    def channel_sums(self, u: Tiled, v: Tiled) -> tuple[Array, Array]:
        """Returns the sums of u, and of u * v, over all axes but the last."""
        key = id(u.array), id(v.array)
        if key not in self._sums:
            zeros = jnp.zeros(u.array.shape[-2])
            tiles, *rest, channels, _ = u.array.shape
            shape = (tiles, math.prod(rest), 1, channels, TILE)
            sums = primitives.channel_sums(
                u.array.reshape(shape),
                v.array.reshape(shape),
                zeros,
                zeros,
                tiles * TILE,
            )
            self._sums[key] = (u, v), sums
        return self._sums[key][1]


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """Returns for each equation the variables that nothing after it uses."""
    last = {}
    for number, equation in enumerate(jaxpr.eqns):
        for atom in equation.invars:
            if not isinstance(atom, core.Literal):
                last[atom] = number
    kept = {id(v) for v in jaxpr.outvars}
    uses: dict[int, list[Any]] = {}
    for variable, number in last.items():
        if id(variable) not in kept:
            uses.setdefault(number, []).append(variable)
    return uses


def _inlined(name: str, params: Any) -> Any:
    """Returns the jaxpr of a call whose body may stand in its place."""
    if name in ("jit", "pjit", "closed_call", "core_call"):
        return params.get("jaxpr") or params.get("call_jaxpr")
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return params["call_jaxpr"]
    return None


# Operations that may make tiles of plain arrays.
_STARTING = {"conv_general_dilated", "broadcast_in_dim"}

RULES: dict[str, Callable[[_Interpreter, Any, list[Value]], Value | None]] = {}


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
    *("stop_gradient", "copy_p", "atan2", "asinh", "acosh", "atanh", "sinh", "cosh"),
)
def _elementwise(self: _Interpreter, equation: Any, values: list[Value]) -> Value:
    tiled = [value for value in values if isinstance(value, Tiled)]
    axis, operands = tiled[0].axis, []
    for value in values:
        shape = jnp.shape(value) if jnp.isscalar(value) else value.shape
        if shape == ():
            operands.append(_plain(value))
        elif shape[axis] == 1:  # the same for all images
            rest = [n for k, n in enumerate(shape) if k != axis]
            operands.append(_plain(value).reshape(1, *rest, 1))
        else:
            operand = self.tiled(value, axis)
            if operand is None:
                return None
            operands.append(operand.array)
    params = equation.params
    if params.get("sharding", None) is not None:
        return None
    array = equation.primitive.bind(*operands, **params)
    factors = None
    if equation.primitive.name == "mul" and len(tiled) == 2:
        if tiled[0].array.shape == tiled[1].array.shape:
            factors = tiled[0], tiled[1]
    elif equation.primitive.name == "square" or (
        equation.primitive.name == "integer_pow" and params["y"] == 2
    ):
        factors = tiled[0], tiled[0]
    return Tiled(array, axis, factors)


@_rule("broadcast_in_dim")
def _broadcast(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value, *_), params = values, equation.params
    shape, axes = tuple(params["shape"]), tuple(params["broadcast_dimensions"])
    if params.get("sharding") is not None or len(values) > 1:
        return None
    if not isinstance(value, Tiled):
        if isinstance(value, Spread):
            value = value.plain()
        return Spread(value, shape, axes)
    axis = axes[value.axis]
    if shape[axis] != value.shape[value.axis]:
        return None
    rest = [n for k, n in enumerate(shape) if k != axis]
    whole = (value.array.shape[0], *rest, TILE)
    between = [a + 1 if a < axis else a for a in axes if a != axis]
    places = (0, *between, len(whole) - 1)
    return Tiled(lax.broadcast_in_dim(value.array, whole, places), axis)


@_rule("reshape")
def _reshape(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value, *more), shape = values, tuple(equation.params["new_sizes"])
    if more or equation.params["dimensions"] is not None:
        return None
    before = math.prod(value.shape[: value.axis])
    for axis, length in enumerate(shape):
        if length == value.shape[value.axis] and math.prod(shape[:axis]) == before:
            rest = [n for k, n in enumerate(shape) if k != axis]
            return Tiled(value.array.reshape(-1, *rest, TILE), axis)
    return None


@_rule("squeeze")
def _squeeze(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value,), gone = values, equation.params["dimensions"]
    if value.axis in gone:
        return None
    rest = [n for k, n in enumerate(value.shape) if k not in gone and k != value.axis]
    axis = value.axis - sum(k < value.axis for k in gone)
    return Tiled(value.array.reshape(-1, *rest, TILE), axis)


@_rule("transpose")
def _transpose(self: _Interpreter, equation: Any, values: list[Value]) -> Value:
    (value,), order = values, equation.params["permutation"]
    places = [value.place(k) for k in order if k != value.axis]
    last = value.array.ndim - 1
    return Tiled(value.array.transpose(0, *places, last), order.index(value.axis))


@_rule(
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"
)
def _reduce(self: _Interpreter, equation: Any, values: list[Value]) -> Value:
    (value,), axes = values, equation.params["axes"]
    places = [value.place(k) for k in axes if k != value.axis]
    if value.axis not in axes:
        array = equation.primitive.bind(
            value.array, **{**equation.params, "axes": tuple(places)}
        )
        return Tiled(array, value.axis - sum(k < value.axis for k in axes))
    last = value.array.ndim - 1
    over_all = sorted(places) == list(range(1, last - 1)) and last > 2
    is_sum = equation.primitive.name == "reduce_sum"
    if is_sum and over_all and value.array.dtype == jnp.float32:
        if value.factors:
            return self.channel_sums(*value.factors)[1]
        return self.channel_sums(value, value)[0]
    return equation.primitive.bind(
        value.array, **{**equation.params, "axes": (0, *sorted(places), last)}
    )


@_rule("pad")
def _pad(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value, fill), sides = values, equation.params["padding_config"]
    if not isinstance(value, Tiled) or sides[value.axis] != (0, 0, 0):
        return None
    rest = [side for k, side in enumerate(sides) if k != value.axis]
    ends = (0, 0, 0)
    return Tiled(lax.pad(value.array, _plain(fill), [ends, *rest, ends]), value.axis)


@_rule("slice")
def _slice(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value,), params = values, equation.params
    strides = params["strides"] or (1,) * len(value.shape)
    parts = list(
        zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    )
    if parts.pop(value.axis) != (0, value.shape[value.axis], 1):
        return None
    index = tuple(slice(*part) for part in parts)
    return Tiled(value.array[(slice(None), *index)], value.axis)


@_rule("rev")
def _rev(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value,), axes = values, equation.params["dimensions"]
    if value.axis in axes:
        return None
    return Tiled(lax.rev(value.array, [value.place(k) for k in axes]), value.axis)


@_rule("concatenate")
def _concatenate(self: _Interpreter, equation: Any, values: list[Value]) -> Any:
    along = equation.params["dimension"]
    axis = next(value.axis for value in values if isinstance(value, Tiled))
    if axis == along:
        return None
    parts = [part for value in values if (part := self.tiled(value, axis))]
    if len(parts) < len(values):
        return None
    place = parts[0].place(along)
    return Tiled(lax.concatenate([part.array for part in parts], place), axis)


@_rule("reduce_window_sum", "reduce_window_max", "reduce_window_min")
def _window(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    (value,) = values
    params = _window_of_tiles(equation.params, value.axis)
    if params is None:
        return None
    return Tiled(equation.primitive.bind(value.array, **params), value.axis)


@_rule("select_and_scatter_add")
def _window_gradient(
    self: _Interpreter, equation: Any, values: list[Value]
) -> Value | None:
    """The gradient of a largest value goes where that was."""
    axis = next(value.axis for value in values if isinstance(value, Tiled))
    source, operand = (self.tiled(value, axis) for value in values)
    params = _window_of_tiles(equation.params, axis)
    if source is None or operand is None or params is None:
        return None
    array = equation.primitive.bind(source.array, operand.array, **params)
    return Tiled(array, axis)


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
def _convolve(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
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
        return _kernel_gradient(self, form, specs, values, geometry, size)
    images = self.tiled(values[0], specs.lhs_spec[0])
    if images is None:
        return None
    order = [images.place(k) for k in (*specs.lhs_spec[2:], specs.lhs_spec[1])]
    array = images.array.transpose(0, *order, 4)
    kernel = _plain(values[1])
    kernel = kernel.transpose(*specs.rhs_spec[2:], specs.rhs_spec[1], specs.rhs_spec[0])
    if form.lhs_dilation == (1, 1):
        outputs = primitives.convolve(array, kernel, geometry)
    else:
        kernel = transposed(kernel, form.groups)
        outputs = primitives.input_gradient(array, kernel, form.outputs[1:3], geometry)
    found = Tiled(outputs, specs.out_spec[0])
    places = (*specs.out_spec[2:], specs.out_spec[1])
    back = [1 + places.index(k) for k in range(4) if k != specs.out_spec[0]]
    return dataclasses.replace(found, array=outputs.transpose(0, *back, 4))


def _kernel_gradient(
    self: _Interpreter, form: Any, specs: Any, values: list, geometry: Any, size: Any
) -> Array | None:
    """Its sums run over the images, so both operands are in tiles."""
    if form.groups > 1:
        return None
    images = self.tiled(values[0], specs.lhs_spec[1])
    grad = self.tiled(values[1], specs.rhs_spec[1])
    if images is None or grad is None:
        return None
    first = [images.place(k) for k in (*specs.lhs_spec[2:], specs.lhs_spec[0])]
    second = [grad.place(k) for k in (*specs.rhs_spec[2:], specs.rhs_spec[0])]
    x, dy = images.array.transpose(0, *first, 4), grad.array.transpose(0, *second, 4)
    if form.lhs_dilation != (1, 1):
        x, dy = dy, x
    sums = primitives.kernel_gradient(x, dy, size, geometry)
    outputs = form.of_kernel_gradient(sums, geometry.groups)
    places = (specs.out_spec[0], *specs.out_spec[2:], specs.out_spec[1])
    return outputs.transpose([places.index(k) for k in range(4)])


@_rule("dot_general")
def _dot(self: _Interpreter, equation: Any, values: list[Value]) -> Value | None:
    """A dense layer for each pixel is a convolution with one tap."""
    (left, right), (batch, _) = equation.params["dimension_numbers"]
    avals = [v.aval for v in (*equation.invars, *equation.outvars)]
    if batch or any(aval.dtype != jnp.float32 for aval in avals):
        return None
    lhs, rhs = values
    last = len(avals[0].shape) - 1
    if last < 2:
        return None
    if isinstance(lhs, Tiled) and lhs.axis == 0 and left == (last,):
        kernel = _plain(rhs)
        if kernel.ndim != 2:
            return None
        kernel = (kernel if right == (0,) else kernel.T)[None, None]
        outputs = primitives.convolve(_pixels(lhs), kernel, Geometry())
        return Tiled(outputs.reshape(*lhs.array.shape[:-2], -1, TILE), 0)
    if left == right == tuple(range(last)) and len(avals[1].shape) == last + 1:
        x, dy = self.tiled(lhs, 0), self.tiled(rhs, 0)
        if x is None or dy is None:
            return None
        sums = primitives.kernel_gradient(_pixels(x), _pixels(dy), (1, 1), Geometry())
        return sums[0, 0]
    return None


def _pixels(value: Tiled) -> Array:
    """Returns tiles with all axes between batch and channels as one."""
    tiles, *rest, channels, _ = value.array.shape
    return value.array.reshape(tiles, math.prod(rest), 1, channels, TILE)
