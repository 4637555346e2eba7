"""How operations on arrays in tiles treat each pixel; see ``pixelwise``."""

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cifar_flax.layers.native.pixelwise import OPERATIONS, TOTALS
from cifar_flax.layers.native.primitives import TILE
from cifar_flax.layers.program import Equation, Group, Name, Program

_SAME = ("stop_gradient", "copy", "convert_element_type")
_OTHER_NAMES = {"add_any": "add", "square": "integer_pow"}
_POWERS = (2, -1, -2)


@dataclasses.dataclass(frozen=True)
class View:
    """How an array is seen: [P, C, 16], [P, 1, 16], [1, C, 1] or a single number.

    Attributes:
      pixels: P; None if it is the same for all.
      channels: C; None if it is the same for all.
    """

    pixels: int | None = None
    channels: int | None = None

    def shape(self) -> tuple[int, int, int]:
        """Returns the shape, with 16 lanes if it differs between images."""
        lanes = 1 if self.pixels is None else TILE
        return self.pixels or 1, self.channels or 1, lanes


def _view_of_shape(shape: tuple[int, ...]) -> View | None:
    """Returns how an array of unknown origin is seen; None: not at all."""
    if math.prod(shape) == 1:
        return View()
    if len(shape) < 3:
        return None
    *pixels, channels, lanes = shape
    if lanes == TILE:
        return View(math.prod(pixels), channels if channels > 1 else None)
    if math.prod(pixels) == lanes == 1:
        return View(None, channels)
    return None


def _reshaped(
    view: View | None, before: tuple[int, ...], shape: tuple[int, ...]
) -> View | None:
    """Returns how a reshaped array is seen, if it is the same array then."""
    if view is None or view == View():
        return view
    if view.pixels is None:
        return view if _view_of_shape(shape) == view else None
    if math.prod(shape) == view.pixels * TILE:
        return view if shape[-1] == TILE else None
    return view if shape[-2:] == before[-2:] else None


def _broadcast(
    view: View | None,
    before: tuple[int, ...],
    shape: tuple[int, ...],
    axes: tuple[int, ...],
) -> View | None:
    """Returns how a broadcast array is seen, if only channels repeat it."""
    last = len(shape) - 1
    varies = [(n, axis) for n, axis in zip(before, axes, strict=True) if n > 1]
    if view is None or view.pixels is None:
        if not varies:
            return View()
        by_channel = last > 0 and varies == [(shape[-2], last - 1)]
        return View(None, shape[-2]) if by_channel else None
    if shape[-1] != TILE or axes[-1] != last or last < 2:
        return None
    if math.prod(shape) == math.prod(before):
        return view if shape[-2] == (view.channels or shape[-2]) else None
    repeats = view.channels is None and all(axis != last - 1 for _, axis in varies)
    return view if repeats and math.prod(shape[:-2]) == view.pixels else None


@dataclasses.dataclass
class Operation:
    """An operation that treats all pixels alike.

    Attributes:
      name: of an operation of ``native.pixelwise``, or "integer_pow".
      operands: names of what it reads, without changes of shape.
      view: of the operand or result with most numbers.
      power: of "integer_pow".
    """

    name: str
    operands: list[Name]
    view: View
    power: int = 2


class Reader:
    """Reads a program as operations on pixels.

    Attributes:
      nodes: what is computed, in its order.
      operations: those that treat all pixels alike, by the variable that they compute.
      roots: for a variable that is another one with a changed shape, that one.
    """

    def __init__(self, program: Program, nodes: Sequence[Equation | Group]):
        """Reads the equations among all that is computed, in its order."""
        self.program, self.nodes = program, nodes
        self.operations: dict[int, Operation] = {}
        self.roots: dict[int, Name] = {}
        self._views: dict[int, View] = {}
        for equation in nodes:
            if isinstance(equation, Group) or len(equation.results) != 1:
                continue
            (result,), name = equation.results, equation.name
            if name in ("reshape", "broadcast_in_dim") or name in _SAME:
                self._rename(equation, result)
            elif name in TOTALS:
                self._total(equation, result)
            else:
                self._elementwise(equation, result)

    def root(self, name: Name) -> Name:
        """Returns a value before changes of its shape."""
        return self.roots.get(name, name) if isinstance(name, int) else name

    def view(self, name: Name) -> View | None:
        """Returns how a value is seen; None: not at all."""
        if isinstance(name, int) and name in self._views:
            return self._views[name]
        return _view_of_shape(self.program.shape(name))

    def by_pixel(self, name: Name) -> bool:
        """Whether a value is an array of images with channels."""
        view = self.view(name)
        return view is not None and None not in (view.pixels, view.channels)

    def _rename(self, equation: Equation, result: int) -> None:
        """Finds values that are others with a changed shape."""
        operand, *others = equation.operands
        if others or not self._is_readable(operand):
            return
        view, before = self.view(operand), self.program.shape(operand)
        shape = self.program.shape(result)
        if equation.name == "broadcast_in_dim":
            axes = equation.params["broadcast_dimensions"]
            view = _broadcast(view, before, shape, axes)
        elif equation.name == "reshape":
            view = _reshaped(view, before, shape)
        elif self.program.avals[result].dtype != jnp.float32:
            view = None
        if view is not None:
            self._views[result] = view
            self.roots[result] = root = self.root(operand)
            if isinstance(root, int):
                self._views.setdefault(root, view)  # [C] has no other view

    def _is_readable(self, name: Name) -> bool:
        """Whether a value is of float32, a number, or a condition on pixels."""
        if isinstance(name, core.Literal):
            return np.ndim(name.val) == 0
        aval, root = self.program.avals[name], self.root(name)
        if aval.dtype == jnp.float32 or aval.size == 1:
            return True
        return isinstance(root, int) and root in self.operations

    def _total(self, equation: Equation, result: int) -> None:
        operand, axes = equation.operands[0], equation.params["axes"]
        view, shape = self.view(operand), self.program.shape(operand)
        if view is None or view.pixels is None or not self._is_readable(operand):
            return
        if self.program.avals[result].dtype != jnp.float32:
            return
        if view.channels is None and all(shape[axis] == 1 for axis in axes):
            self._views[result], self.roots[result] = view, self.root(operand)
        elif view.channels and axes == (len(shape) - 2,):
            self._views[result] = View(view.pixels)
            self.operations[result] = Operation(
                equation.name, [self.root(operand)], view
            )

    def _elementwise(self, equation: Equation, result: int) -> None:
        name = _OTHER_NAMES.get(equation.name, equation.name)
        power = equation.params.get("y", 2)
        if name not in OPERATIONS and (name != "integer_pow" or power not in _POWERS):
            return
        if name == "select_n" and len(equation.operands) != 3:
            return
        views = [self.view(operand) for operand in equation.operands]
        if None in views or not all(map(self._is_readable, equation.operands)):
            return
        pixels = {view.pixels for view in views if view and view.pixels}
        channels = {view.channels for view in views if view and view.channels}
        if len(pixels) != 1 or len(channels) > 1:
            return
        view = View(pixels.pop(), next(iter(channels), None))
        shape = self.program.shape(result)
        whole = math.prod(shape) == math.prod(view.shape())
        repeated = view.channels is None and math.prod(shape[:-2]) == view.pixels
        if shape[-1] != TILE or not (whole or repeated):
            return
        if self.program.avals[result].dtype not in (jnp.float32, jnp.bool_):
            return
        self._views[result] = view
        operands = [self.root(operand) for operand in equation.operands]
        self.operations[result] = Operation(name, operands, view, power)
