"""Counts the floating-point operations of a traced program."""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def products_by_scope(jaxpr: Jaxpr) -> dict[tuple[str, ...], int]:
    """Returns the floating-point operations of all products, by their named scope.

    A multiplication and its addition count 2. For matrices that is ``2 * out * K`` with
    the number of outputs and the length K of the sums. A convolution takes ``2 * out *
    taps * C / groups``, which counts taps that fall on the padding, but not those on
    the zeros that a transposed convolution puts between its inputs. The body of a scan
    counts once for each step, the body of a while loop once, and of the branches of a
    conditional the largest counts. Biases, norms and activations are not counted.

    Args:
      jaxpr: the program.

    Returns:
      The operations of each scope, such as ``("Net", "Conv_0")``.
    """
    found: dict[tuple[str, ...], int] = collections.defaultdict(int)
    for scope, count in _products(jaxpr, ()):
        found[scope] += count
    return dict(found)


def _products(
    jaxpr: Jaxpr, outer: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], int]]:
    for eqn in jaxpr.eqns:
        scope = (*outer, *_names(str(eqn.source_info.name_stack)))
        if eqn.primitive.name == "dot_general":
            yield scope, _of_product(eqn)
        elif eqn.primitive.name == "conv_general_dilated":
            yield scope, _of_convolution(eqn)
        elif eqn.primitive.name == "cond":
            branches = [list(_products(b.jaxpr, scope)) for b in eqn.params["branches"]]
            yield from max(branches, key=lambda one: sum(count for _, count in one))
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in jaxprs_in_params(eqn.params):
                for deeper, count in _products(inner, scope):
                    yield deeper, times * count


def _names(scope: str) -> list[str]:
    """Returns the names of a scope such as ``vmap(Net/Conv_0)``."""
    return [name for name in re.split(r"[/()]", scope) if name]


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _of_product(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    length = math.prod(_shape(eqn.invars[0])[axis] for axis in contracted)
    return 2 * math.prod(_shape(eqn.outvars[0])) * length


def _of_convolution(eqn: JaxprEqn) -> int:
    kernel = _shape(eqn.invars[1])
    axes = eqn.params["dimension_numbers"].rhs_spec
    # A kernel's input axis holds the channels of one group.
    taps = math.prod(kernel[axis] for axis in axes[1:])
    zeros = math.prod(eqn.params["lhs_dilation"])
    return 2 * math.prod(_shape(eqn.outvars[0])) * taps // zeros
