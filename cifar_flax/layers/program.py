"""A traced program as a list of equations, some of which are computed together."""

import dataclasses
import functools
import heapq
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

# A variable of a program by its number, or a constant of the program.
Name = int | core.Literal


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
class Equation:
    """An equation of a program without calls; the names of its operands are unique."""

    source: Any
    operands: list[Name]
    results: list[int]

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.source.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the primitive."""
        return self.source.params

    def compute(self, values: Sequence[Any]) -> list[Any]:
        """Returns the results."""
        with self.source.ctx.manager:
            return bound(self.source, values)


@dataclasses.dataclass(eq=False)
class Group:
    """What computes some values of a program in place of its equations.

    Attributes:
      operands: names of what it reads.
      results: names of what it computes.
      compute: returns the results for the operands.
    """

    operands: list[Name]
    results: list[int]
    compute: Callable[[Sequence[Any]], Sequence[Any]]


class Program:
    """A jaxpr as a list of equations, without calls.

    Attributes:
      equations: in their order.
      avals: shape and dtype of each variable.
      inputs: variables of the arguments.
      outputs: names of the results.
      made_by: for a variable, the index of the equation that computes it.
      users: for a variable, the indices of the equations that read it.
    """

    def __init__(self, traced: Any):
        """Reads a closed jaxpr."""
        self.equations: list[Equation] = []
        self.avals: list[Any] = []
        self.made_by: dict[int, int] = {}
        self.inputs = [self._new(v.aval) for v in traced.jaxpr.invars]
        self._consts: dict[int, Any] = {}
        self.outputs = self._add(traced, self.inputs)
        self.users: dict[int, list[int]] = {}
        for index, equation in enumerate(self.equations):
            for name in equation.operands:
                if isinstance(name, int):
                    self.users.setdefault(name, []).append(index)

    def _new(self, aval: Any) -> int:
        self.avals.append(aval)
        return len(self.avals) - 1

    def _add(self, closed: Any, inputs: Sequence[Name]) -> list[Name]:
        """Appends the equations of a jaxpr, and returns the names of its outputs."""
        names: dict[Any, Name] = dict(zip(closed.jaxpr.invars, inputs, strict=True))
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            names[variable] = number = self._new(variable.aval)
            self._consts[number] = value

        def name_of(atom: Any) -> Name:
            return atom if isinstance(atom, core.Literal) else names[atom]

        for equation in closed.jaxpr.eqns:
            operands = [name_of(atom) for atom in equation.invars]
            if inner := inlined(equation.primitive.name, equation.params):
                outputs = self._add(inner, operands)
                names.update(zip(equation.outvars, outputs, strict=True))
                continue
            results = [self._new(v.aval) for v in equation.outvars]
            self.made_by.update(dict.fromkeys(results, len(self.equations)))
            self.equations.append(Equation(equation, operands, results))
            names.update(zip(equation.outvars, results, strict=True))
        return [name_of(atom) for atom in closed.jaxpr.outvars]

    def shape(self, name: Name) -> tuple[int, ...]:
        """Returns the shape of a value."""
        return (
            np.shape(name.val)
            if isinstance(name, core.Literal)
            else self.avals[name].shape
        )

    def maker(self, name: Name) -> Equation | None:
        """Returns the equation that computes a value; None if none does."""
        index = None if isinstance(name, core.Literal) else self.made_by.get(name)
        return None if index is None else self.equations[index]

    def run(self, values: Sequence[Any], groups: Sequence[Group]) -> list[Any]:
        """Returns the outputs.

        Args:
          values: of the arguments.
          groups: what computes some of the values; equations whose results nothing
            reads then are left out.
        """
        known = {**self._consts, **dict(zip(self.inputs, values, strict=True))}

        def read(name: Name) -> Any:
            return name.val if isinstance(name, core.Literal) else known[name]

        for node in self.order(groups):
            outputs = node.compute([read(name) for name in node.operands])
            known.update(zip(node.results, outputs, strict=True))
        return [read(name) for name in self.outputs]

    def order(self, groups: Sequence[Group]) -> list[Equation | Group]:
        """Returns what is needed for the outputs, in the order of the equations.

        A group stands where the last of its results was.
        """
        nodes: list[Equation | Group] = [*self.equations, *groups]
        maker = {name: at for at, node in enumerate(nodes) for name in node.results}
        roots = [at for at, e in enumerate(self.equations) if e.source.effects]
        roots += [maker[n] for n in self.outputs if isinstance(n, int) and n in maker]
        waits: dict[int, int] = {}
        readers: dict[int, list[int]] = {}
        while roots:
            at = roots.pop()
            if at in waits:
                continue
            names = [n for n in nodes[at].operands if isinstance(n, int)]
            before = {maker[n] for n in names if n in maker}
            waits[at] = len(before)
            for other in before:
                readers.setdefault(other, []).append(at)
            roots += before

        def ready(at: int) -> tuple[int, int]:
            return max((self.made_by[n] for n in nodes[at].results), default=at), at

        heap, order = [ready(at) for at, count in waits.items() if not count], []
        heapq.heapify(heap)
        while heap:
            _, at = heapq.heappop(heap)
            order.append(nodes[at])
            for reader in readers.get(at, ()):
                waits[reader] -= 1
                if not waits[reader]:
                    heapq.heappush(heap, ready(reader))
        return order
