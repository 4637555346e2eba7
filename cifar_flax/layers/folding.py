"""Lets a convolution do what follows it for each number alone.

A bias, ReLU, or batch norm with running statistics after a convolution reads and writes
the whole array once more. In a program of the kernels (``native.primitives``) these are
folded into the convolution before them, as long as nothing else needs its result.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cifar_flax.layers.native import primitives
from cifar_flax.layers.program import Equation, Group, Name, Program

Array = jax.Array

# Rows of ``primitives.convolve_after``.
_SCALE, _SHIFT, _LOW, _HIGH, _LAST_SCALE, _LAST_SHIFT = range(6)


def folded(program: Program) -> list[Group]:
    """Returns convolutions with what follows them, each as one computation."""
    found = (_chain(program, index) for index in range(len(program.equations)))
    return [chain for chain in found if chain]


@dataclasses.dataclass(eq=False)
class _Step:
    """An equation that is folded into a convolution.

    Attributes:
      index: of the equation.
      source: the name of a scalar or of [C], which its other operand repeats.
      row: where it begins to change the rows of ``primitives.convolve_after``.
    """

    index: int
    source: Name
    row: int


def _chain(program: Program, index: int) -> Group | None:
    """Returns an equation with what follows it, if it is a convolution."""
    equation = program.equations[index]
    if equation.name != "convolve":
        return None
    aval = equation.source.outvars[0].aval
    if aval.dtype != jnp.float32 or 0 in aval.shape:
        return None
    name, row, steps = equation.results[0], _SCALE, list[_Step]()
    masked: list[int] = []
    while not masked and (users := program.users.get(name)):
        first, *others = users
        step = _step(program, first, name, row)
        is_relu = _is_with_zero(program, first, "max", name)
        masks = [u for u in others if is_relu and _is_with_zero(program, u, "gt", name)]
        if name in program.outputs or step is None or masks != others:
            break
        steps.append(step)
        # With y = max(x, 0), y > 0 where x > 0, so masks of x are made from y.
        masked = [name] if masks else []
        name, row = program.equations[first].results[0], step.row
    if not steps:
        return None

    def compute(values: Sequence[Any]) -> list[Array]:
        tiles, kernel, *others = values
        y = _computed(program, equation, steps, tiles, kernel, others)
        return [y] * (1 + len(masked))

    operands = [*equation.operands, *(step.source for step in steps)]
    return Group(operands, [name, *masked], compute)


def _step(program: Program, index: int, name: int, row: int) -> _Step | None:
    """Returns how an equation that reads a value is folded; None: it cannot be.

    Args:
      program: whose equation it is.
      index: of the equation.
      name: of the value.
      row: of the equation before it.
    """
    equation = program.equations[index]
    others = [operand for operand in equation.operands if operand != name]
    source = _of_channels(program, others[0], name) if len(others) == 1 else None
    if source is None:
        return None
    if equation.name in ("add", "sub", "mul"):
        row = row if row in (_SCALE, _LAST_SCALE) else _LAST_SCALE
    elif equation.name == "max" and row in (_SCALE, _LOW):
        row = _LOW
    elif equation.name == "min" and row in (_SCALE, _LOW, _HIGH):
        row = _HIGH
    else:
        return None
    return _Step(index, source, row)


def _is_with_zero(program: Program, index: int, operation: str, name: int) -> bool:
    """Whether an equation is an operation of a value and the constant 0."""
    equation = program.equations[index]
    if equation.name != operation or equation.operands[0] != name:
        return False
    other = equation.operands[1]
    return isinstance(other, core.Literal) and bool(np.all(other.val == 0))


def _of_channels(program: Program, name: Name, like: int) -> Name | None:
    """Returns the name of a scalar or of [C] that an operand repeats, or None."""
    if isinstance(name, core.Literal):
        return name if np.ndim(name.val) == 0 else None
    shape, channels = program.avals[name].shape, program.avals[like].shape[3]
    if shape == () or (len(shape) == 5 and shape == (1, 1, 1, channels, 1)):
        return name
    maker = program.maker(name)
    if maker is None or maker.name != "broadcast_in_dim":
        return None
    source = maker.operands[0]
    if isinstance(source, core.Literal):
        return source
    places = maker.params["broadcast_dimensions"]
    sizes = zip(program.avals[source].shape, places, strict=True)
    varies = [place for size, place in sizes if size > 1]
    return source if varies in ([], [3]) else None


def _computed(
    program: Program,
    convolution: Equation,
    steps: list[_Step],
    tiles: Array,
    kernel: Array,
    others: Sequence[Any],
) -> Array:
    """Computes a convolution with all that is folded into it."""
    one, none = jnp.ones(kernel.shape[-1]), jnp.zeros(kernel.shape[-1])
    rows = [one, none, none - jnp.inf, none + jnp.inf, one, none]
    name = convolution.results[0]
    for step, other in zip(steps, others, strict=True):
        equation, row = program.equations[step.index], step.row
        value = jnp.reshape(jnp.asarray(other, jnp.float32), (-1,))
        if equation.name == "mul":
            rows[row], rows[row + 1] = rows[row] * value, rows[row + 1] * value
        elif equation.name == "add":
            rows[row + 1] = rows[row + 1] + value
        elif equation.name == "sub" and equation.operands[0] == name:
            rows[row + 1] = rows[row + 1] - value
        elif equation.name == "sub":
            rows[row], rows[row + 1] = -rows[row], value - rows[row + 1]
        else:
            larger = jnp.maximum if row == _LOW else jnp.minimum
            rows[row] = larger(rows[row], value)
        name = equation.results[0]
    geometry = convolution.params["geometry"]
    return primitives.convolve_after(tiles, kernel, jnp.stack(rows), geometry)
