"""A transformation that keeps images in tiles from one convolution to the next.

The kernels want a batch in tiles of 16 images (``native.primitives``). Layers of other
libraries know nothing of this, and each of their convolutions would bring its operands
into tiles and its result back. ``in_tiles`` computes a function as it was traced, but
keeps an array in tiles while the operations on it allow that: what treats all images
alike is the same operation on an array with another order of axes.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

from cifar_flax.layers.folding import folded
from cifar_flax.layers.pixelwise import fused
from cifar_flax.layers.program import Program, bound, evaluated, inlined
from cifar_flax.layers.tiled_values import Tiled, Tiler, Value, plain
from cifar_flax.layers.tiling_rules import RULES


def in_tiles(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function with the same values, computed in tiles where that is faster.

    It is meant for a function that computes gradients, not for one to be
    differentiated.
    """

    def evaluate(traced: Any, leaves: list[Any]) -> list[Any]:
        if not _convolves(traced.jaxpr):
            return core.jaxpr_as_fun(traced)(*leaves)
        outputs = _Interpreter().run(traced.jaxpr, traced.consts, leaves)
        return [plain(value) for value in outputs]

    def combine(traced: Any, leaves: list[Any]) -> list[Any]:
        program = Program(traced)
        groups = folded(program)
        return program.run(leaves, [*groups, *fused(program, groups)])

    return evaluated(evaluated(function, evaluate), combine)


def _convolves(jaxpr: Any) -> bool:
    """Whether there is a convolution that ``in_tiles`` would see."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        inner = inlined(equation.primitive.name, equation.params)
        if inner and _convolves(inner.jaxpr):
            return True
    return False


class _Interpreter:
    """Evaluates a jaxpr on plain, tiled and spread arrays."""

    def __init__(self):
        self._tiler = Tiler()

    def run(self, jaxpr: Any, consts: Sequence[Any], values: Sequence[Value]) -> list:
        """Returns the values of the outputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        known.update(zip(jaxpr.invars, values, strict=True))

        def read(atom: Any) -> Value:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        products, partners = _only_multiplied(jaxpr), _summed_together(jaxpr)
        for equation in jaxpr.eqns:
            operands = [read(v) for v in equation.invars]
            self._tiler.partner = known.get(partners.get(id(equation)))
            self._tiler.of_product = not products.isdisjoint(equation.outvars)
            with equation.ctx.manager:
                outputs = self._equation(equation, operands)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation: Any, values: list[Value]) -> list[Value]:
        primitive, params = equation.primitive, equation.params
        if inner := inlined(primitive.name, params):
            return self.run(inner.jaxpr, inner.consts, values)
        rule = RULES.get(primitive.name)
        touches = any(isinstance(value, Tiled) for value in values)
        if rule and (touches or primitive.name in _STARTING):
            outputs = rule(self._tiler, equation, values)
            if outputs is not None:
                return outputs if isinstance(outputs, list) else [outputs]
        return bound(equation, [plain(value) for value in values])


def _only_multiplied(jaxpr: Any) -> set[Any]:
    """Returns the variables that are only multiplied by other arrays."""
    found: set[Any] = set()
    others = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}
    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, core.Literal)]
        is_product = equation.primitive.name == "mul" and len(variables) == 2
        (found if is_product else others).update(variables)
    return found - others


def _summed_together(jaxpr: Any) -> dict[Any, Any]:
    """Returns for the id of a sum of u the variable v, if u * v is summed, too.

    Batch norm's gradient needs both, and one pass over memory computes both.
    """
    factors = {e.outvars[0]: e.invars for e in jaxpr.eqns if e.primitive.name == "mul"}
    sums = [e for e in jaxpr.eqns if e.primitive.name == "reduce_sum"]
    others: dict[Any, Any] = {}
    for equation in sums:
        pair = factors.get(equation.invars[0], ())
        if not any(isinstance(v, core.Literal) for v in pair):
            others.update(zip(pair, reversed(pair), strict=True))
    return {id(e): others[e.invars[0]] for e in sums if e.invars[0] in others}


# Operations that may make tiles of plain arrays.
_STARTING = {"conv_general_dilated", "broadcast_in_dim"}
