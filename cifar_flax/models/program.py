"""What a model computes, as a checksum.

Two models compute the same if JAX traces the same programs from them: for the initial
values, for the logits and their gradients in training, and for the logits in
evaluation. A program holds every operation and every constant, so it changes with the
model's code, with modules that this code imports, with fields, lambdas and globals, and
not with its comments.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from cifar_flax.jax_settings import known_settings
from cifar_flax.models.calling import evaluate_logits, init_variables, train_logits

# Operations whose code is not in the program.
_OPAQUE = re.compile(r"\b(pure_callback|io_callback|ffi_call)\[")


@dataclasses.dataclass(frozen=True)
class Program:
    """What a function computes.

    Attributes:
      sha256: of its traced programs, in hex.
      unknown: why they do not tell everything; None if they do.
    """

    sha256: str
    unknown: str | None = None


@known_settings()
@jax.default_matmul_precision(None)  # it decides bits and not what is computed
def program_of(model: nn.Module, image_shape: tuple[int, int, int]) -> Program:
    """Traces a model and returns what it computes, without computing anything.

    Args:
      model: see ``models.calling``.
      image_shape: (H, W, C).
    """
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def train(variables: Any, images: jax.Array, key: jax.Array) -> Any:
        def sums(params: Any) -> Any:
            logits, collections = train_logits(
                model, {**variables, "params": params}, images, key
            )
            # Any cotangent shows the rules of all gradients.
            return (logits.astype(jnp.float32) ** 2).sum(), (logits, collections)

        return jax.grad(sums, has_aux=True)(variables["params"])

    init, variables = jax.make_jaxpr(
        lambda key, images: init_variables(model, key, images), return_shape=True
    )(key, images)
    trained = jax.make_jaxpr(train)(variables, images, key)
    evaluated = jax.make_jaxpr(lambda v, x: evaluate_logits(model, v, x))(
        variables, images
    )
    return digest_programs([init, trained, evaluated], "the model")


def shapes_of(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """Returns the shapes of a model's variables by collection."""
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return jax.eval_shape(
        lambda images: init_variables(model, jax.random.key(0), images), images
    )


def _constants(program: Any) -> Iterator[Any]:
    """Yields the constants of a program, then those of the functions that it calls."""
    yield from getattr(program, "consts", ())
    for equation in getattr(program, "jaxpr", program).eqns:
        for leaf in jax.tree.leaves([*equation.params.values()]):
            if isinstance(leaf, ClosedJaxpr | Jaxpr):
                yield from _constants(leaf)


def digest_programs(
    programs: Sequence[jax.extend.core.ClosedJaxpr], of: str
) -> Program:
    """Returns the checksum of traced programs and their constants.

    Args:
      programs: as from ``jax.make_jaxpr``.
      of: what they compute, for the reason why they do not tell everything.
    """
    digest, unknown = hashlib.sha256(), None
    for program in programs:
        text = str(program)
        digest.update(text.encode())
        for array in map(np.asarray, _constants(program)):
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        if opaque := _OPAQUE.search(text):
            unknown = f"{of} calls code that JAX does not see ({opaque[1]})"
    return Program(digest.hexdigest(), unknown)
