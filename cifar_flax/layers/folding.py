"""A transformation that lets a convolution do what follows it for each number alone.

A bias, ReLU, or batch norm with running statistics after a convolution reads and writes
the whole array once more. In a program of the kernels (``native.primitives``) these are
folded into the convolution before them, as long as nothing else needs its result.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from cifar_flax.layers.native import primitives

Array = jax.Array

# A variable of a program by its number, or a constant of the program.
_Name = int | core.Literal

# Rows of ``primitives.convolve_after``.
_SCALE, _SHIFT, _LOW, _HIGH, _LAST_SCALE, _LAST_SHIFT = range(6)


def folded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the same values but for rounding, and fewer passes.

    It is meant for a function that computes gradients, not for one to be
    differentiated.
    """
    return evaluated(function, lambda traced, leaves: _Program(traced).run(leaves))


def evaluated(
    function: Callable[..., Any], evaluate: Callable[[Any, list[Any]], Sequence[Any]]
) -> Callable[..., Any]:
    """Returns a function that is traced at each call, and then evaluated otherwise.

    Args:
      function: of trees of arrays.
      evaluate: returns the outputs of a traced program for the leaves of its arguments.
    """

    @functools.wraps(function)
    def computed(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
        outputs = evaluate(traced, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return computed


def bound(equation: Any, values: Sequence[Any]) -> list[Any]:
    """Returns the results of an equation of a jaxpr."""
    primitive, params = equation.primitive, equation.params
    found = primitive.bind(*values, **primitive.get_bind_params(params))
    return list(found) if primitive.multiple_results else [found]


def inlined(name: str, params: Any) -> Any:
    """Returns the jaxpr of a call whose body may stand in its place."""
    if name in ("jit", "pjit", "closed_call", "core_call"):
        return params.get("jaxpr") or params.get("call_jaxpr")
    if name in ("custom_jvp_call", "custom_vjp_call"):
        return params["call_jaxpr"]
    return None


@dataclasses.dataclass(eq=False)
class _Equation:
    """An equation of a program without calls; the names of its operands are unique."""

    source: Any
    operands: list[_Name]
    results: list[int]

    @property
    def name(self) -> str:
        return self.source.primitive.name


@dataclasses.dataclass(eq=False)
class _Step:
    """An equation that is folded into a convolution.

    Attributes:
      index: of the equation.
      source: the name of a scalar or of [C], which its other operand repeats.
      row: where it begins to change the rows of ``primitives.convolve_after``.
    """

    index: int
    source: _Name
    row: int


@dataclasses.dataclass(eq=False)
class _Chain:
    """A convolution and what follows it.

    Attributes:
      convolution: index of its equation.
      steps: what follows, in its order.
      masked: what the last of them reads, if it is a ReLU and masks are made from that.
    """

    convolution: int
    steps: list[_Step] = dataclasses.field(default_factory=list)
    masked: int | None = None


class _Program:
    """A jaxpr as a list of equations, without calls."""

    def __init__(self, traced: Any):
        """Finds the convolutions with something to fold into them."""
        self._equations: list[_Equation] = []
        self._avals: list[Any] = []
        self._made_by: dict[int, int] = {}
        self._inputs = [self._new(v.aval) for v in traced.jaxpr.invars]
        self._consts: dict[int, Any] = {}
        self._outputs = self._add(traced, self._inputs)
        self._users: dict[int, list[int]] = {}
        for index, equation in enumerate(self._equations):
            for name in equation.operands:
                if isinstance(name, int):
                    self._users.setdefault(name, []).append(index)
        found = map(self._chain, range(len(self._equations)))
        self._chains = {chain.steps[-1].index: chain for chain in found if chain}

    def run(self, values: Sequence[Any]) -> list[Any]:
        """Returns the outputs."""
        known = {**self._consts, **dict(zip(self._inputs, values, strict=True))}
        replaced: dict[int, int] = {}

        def read(name: _Name) -> Any:
            if isinstance(name, core.Literal):
                return name.val
            return known[replaced.get(name, name)]

        skipped = {
            index
            for chain in self._chains.values()
            for index in (chain.convolution, *(step.index for step in chain.steps))
        }
        for index, equation in enumerate(self._equations):
            if chain := self._chains.get(index):
                known[equation.results[0]] = self._computed(chain, read)
                if chain.masked is not None:  # with y = max(x, 0), y > 0 where x > 0
                    replaced[chain.masked] = equation.results[0]
            elif index not in skipped:
                operands = [read(name) for name in equation.operands]
                with equation.source.ctx.manager:
                    outputs = bound(equation.source, operands)
                known.update(zip(equation.results, outputs, strict=True))
        return [read(name) for name in self._outputs]

    def _new(self, aval: Any) -> int:
        self._avals.append(aval)
        return len(self._avals) - 1

    def _add(self, closed: Any, inputs: Sequence[_Name]) -> list[_Name]:
        """Appends the equations of a jaxpr, and returns the names of its outputs."""
        names: dict[Any, _Name] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            names[variable] = number = self._new(variable.aval)
            self._consts[number] = value

        def name_of(atom: Any) -> _Name:
            return atom if isinstance(atom, core.Literal) else names[atom]

        for equation in closed.jaxpr.eqns:
            operands = [name_of(atom) for atom in equation.invars]
            if inner := inlined(equation.primitive.name, equation.params):
                outputs = self._add(inner, operands)
                names.update(zip(equation.outvars, outputs, strict=True))
                continue
            results = [self._new(v.aval) for v in equation.outvars]
            self._made_by.update(dict.fromkeys(results, len(self._equations)))
            self._equations.append(_Equation(equation, operands, results))
            names.update(zip(equation.outvars, results, strict=True))
        return [name_of(atom) for atom in closed.jaxpr.outvars]

    def _chain(self, index: int) -> _Chain | None:
        """Returns what may be folded into an equation, if it is a convolution."""
        equation = self._equations[index]
        if equation.name != "convolve":
            return None
        aval = equation.source.outvars[0].aval
        if aval.dtype != jnp.float32 or 0 in aval.shape:
            return None
        name, row, chain = equation.results[0], _SCALE, _Chain(index)
        while name not in self._outputs and (users := self._users.get(name)):
            first, *others = users
            step = self._step(first, name, row)
            is_relu = self._is_with_zero(first, "max", name)
            masks = [u for u in others if is_relu and self._is_with_zero(u, "gt", name)]
            if step is None or masks != others:
                break
            chain.steps.append(step)
            if masks:
                chain.masked = name
                break
            name, row = self._equations[first].results[0], step.row
        return chain if chain.steps else None

    def _step(self, index: int, name: int, row: int) -> _Step | None:
        """Returns how an equation that reads a value is folded; None: it cannot be.

        Args:
          index: of the equation.
          name: of the value.
          row: of the equation before it.
        """
        equation = self._equations[index]
        others = [operand for operand in equation.operands if operand != name]
        source = self._of_channels(others[0], name) if len(others) == 1 else None
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

    def _is_with_zero(self, index: int, operation: str, name: int) -> bool:
        """Whether an equation is an operation of a value and the constant 0."""
        equation = self._equations[index]
        if equation.name != operation or equation.operands[0] != name:
            return False
        other = equation.operands[1]
        return isinstance(other, core.Literal) and bool(np.all(other.val == 0))

    def _of_channels(self, name: _Name, like: int) -> _Name | None:
        """Returns the name of a scalar or of [C] that an operand repeats, or None."""
        if isinstance(name, core.Literal):
            return name if np.ndim(name.val) == 0 else None
        shape = self._avals[name].shape
        channels = self._avals[like].shape[3]
        if shape == () or (len(shape) == 5 and shape == (1, 1, 1, channels, 1)):
            return name
        maker = self._made_by.get(name)
        if maker is None or self._equations[maker].name != "broadcast_in_dim":
            return None
        equation = self._equations[maker]
        source = equation.operands[0]
        if isinstance(source, core.Literal):
            return source
        places = equation.source.params["broadcast_dimensions"]
        sizes = zip(self._avals[source].shape, places, strict=True)
        varies = [place for size, place in sizes if size > 1]
        return source if varies in ([], [3]) else None

    def _computed(self, chain: _Chain, read: Callable[[_Name], Any]) -> Array:
        """Computes a convolution with all that is folded into it."""
        convolution = self._equations[chain.convolution]
        tiles, kernel = map(read, convolution.operands)
        one, none = jnp.ones(kernel.shape[-1]), jnp.zeros(kernel.shape[-1])
        rows = [one, none, none - jnp.inf, none + jnp.inf, one, none]
        name = convolution.results[0]
        for step in chain.steps:
            equation, row = self._equations[step.index], step.row
            value = jnp.reshape(jnp.asarray(read(step.source), jnp.float32), (-1,))
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
        geometry = convolution.source.params["geometry"]
        return primitives.convolve_after(tiles, kernel, jnp.stack(rows), geometry)
