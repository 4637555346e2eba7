"""The lowerings for every convolution that a JAX program computes on a CPU.

A rule replaces how JAX lowers ``lax.conv_general_dilated`` for a CPU, so that layers of
any library, and the gradients that JAX derives from them, use the kernels. It is in
force where ``fast_convolutions`` or ``lowering`` say so; elsewhere XLA's convolution
remains.
"""

import contextlib
import functools
import logging
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir

from cifar_flax.errors import UserError
from cifar_flax.layers.forms import NATIVE, PRODUCT, XLA, Computing, Form
from cifar_flax.layers.native import library

Array = jax.Array

logger = logging.getLogger(__name__)

# Part of the key by which JAX keeps compiled programs; see ``COMPUTING``.
_lowering = jax.make_user_context("xla")

COMPUTING = {"native": NATIVE, "product": PRODUCT}

# They are computed in float32.
_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


class fast_convolutions(contextlib.AbstractContextManager):  # a function, to its users
    """Makes JAX compute convolutions on a CPU with the kernels of this project.

    As a statement, ``cf.fast_convolutions()``, it holds for all programs that this
    process compiles from then on. As a context, ``with cf.fast_convolutions():``, it
    holds for those that this thread compiles or calls within the block.

    The layers of a program stay as they are: ``flax.linen``, ``flax.nnx`` and other
    libraries, and plain ``jax.lax``. Results differ from XLA's by rounding. Other
    devices, ``jax.export``, and programs whose arrays the compiler divides over several
    devices keep XLA's convolution; so do convolutions of other types than float32,
    bfloat16 and float16, and those that a warning names.

    Args:
      enabled: False: use XLA's convolutions again.

    Raises:
      UserError: the kernels are not available; the message says why.
    """

    def __init__(self, enabled: bool = True):
        """Starts to hold for the process."""
        if enabled:
            try:
                library.load()
            except library.BuildError as error:
                raise UserError(f"there are no fast convolutions: {error}") from error
        _register()
        self._value = "native" if enabled else "xla"
        self._before = _lowering.get_global()
        _lowering.set_global(self._value)

    def __enter__(self) -> "fast_convolutions":
        """Holds for this thread alone."""
        _lowering.set_global(self._before)
        self._block = _lowering(self._value)
        self._block.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Ends the block."""
        self._block.__exit__(*error)


@contextlib.contextmanager
def lowering(name: str) -> Any:
    """Compiles and calls programs within the block with a lowering of ``COMPUTING``.

    Args:
      name: of the lowering; any other name stands for XLA's convolution.
    """
    _register()
    with _lowering(name):
        yield


@functools.cache
def _register() -> None:
    rules = mlir._platform_specific_lowerings["cpu"]
    entry = rules[lax.conv_general_dilated_p]
    generic = getattr(entry, "rule", entry)
    mlir.register_lowering(
        lax.conv_general_dilated_p, functools.partial(_lower, generic), platform="cpu"
    )


def _lower(generic: Any, ctx: Any, lhs: Any, rhs: Any, **params: Any) -> Any:
    """Lowers a convolution, or has JAX do it."""
    how = COMPUTING.get(_lowering.value)
    exported = ctx.module_context.lowering_parameters.for_export
    if how is None or exported or (how is NATIVE and _is_divided(ctx)):
        return generic(ctx, lhs, rhs, **params)
    (images, kernel), (outputs,) = ctx.avals_in, ctx.avals_out
    form = form_of(images, kernel, outputs, params)
    problem = form if isinstance(form, str) else form.problem(how)
    if isinstance(form, str) or problem:
        shapes = " and ".join(str(aval.shape) for aval in ctx.avals_in)
        _tell(f"of {shapes} {ctx.name_stack}".rstrip(), problem)
        return generic(ctx, lhs, rhs, **params)

    if how is NATIVE and form.suits_xla:
        how = XLA

    def computed(lhs: Array, rhs: Array) -> Array:
        lhs, rhs = lhs.astype(jnp.float32), rhs.astype(jnp.float32)
        found = _compute(form, how, params["dimension_numbers"], lhs, rhs)
        return found.astype(outputs.dtype)

    with _lowering("xla"):  # of the convolutions in ``computed``
        return mlir.lower_fun(computed, multiple_results=False)(ctx, lhs, rhs)


@functools.lru_cache(maxsize=1024)
def _tell(place: str, problem: str) -> None:
    """Warns once of each place."""
    logger.warning(
        "the convolution %s uses XLA, which may be many times slower in a loop of "
        "steps: %s",
        place,
        problem,
    )


def _is_divided(ctx: Any) -> bool:
    """Whether the compiler divides the arrays of the program over devices."""
    context = ctx.module_context.axis_context
    if (mesh := getattr(context, "mesh", None)) is not None:
        manual = [mesh.shape[axis] for axis in context.manual_axes]
        return math.prod(mesh.shape.values()) != math.prod(manual)
    return getattr(context, "num_devices", 1) != 1


def form_of(images: Any, kernel: Any, outputs: Any, params: Any) -> Form | str:
    """Returns the form of a convolution that the kernels compute.

    Args:
      images: abstract value of the left operand.
      kernel: of the right operand.
      outputs: of the result.
      params: of ``lax.conv_general_dilated_p``.

    Returns:
      The form, or why there is none, in a few words.
    """
    avals = (images, kernel, outputs)
    if any(aval.dtype not in _DTYPES for aval in avals):
        return f"its type is {outputs.dtype}"
    shapes = [aval.shape for aval in avals]
    if not all(isinstance(n, int) for shape in shapes for n in shape):
        return "its shape is symbolic"
    if any(0 in shape for shape in shapes):
        return "an operand is empty"
    if len(images.shape) < 3:
        return "it has no spatial axes"
    specs = params["dimension_numbers"]
    return Form(
        images=_ordered(shapes[0], specs.lhs_spec, "NSC"),
        kernel=_ordered(shapes[1], specs.rhs_spec, "SCN"),
        outputs=_ordered(shapes[2], specs.out_spec, "NSC"),
        strides=tuple(params["window_strides"]),
        padding=tuple(tuple(pair) for pair in params["padding"]),
        lhs_dilation=tuple(params["lhs_dilation"]),
        rhs_dilation=tuple(params["rhs_dilation"]),
        groups=params["feature_group_count"],
        batch_groups=params["batch_group_count"],
        # Images come first nearly everywhere. So does what JAX sums over for a kernel.
        sums_over_images=params["batch_group_count"] > 1 or specs.lhs_spec[1] == 0,
    )


def _axes(spec: tuple[int, ...], order: str) -> list[int]:
    """Returns the axes of an operand in an order; S stands for the spatial axes."""
    of = {"N": [spec[0]], "C": [spec[1]], "S": list(spec[2:])}
    return [axis for letter in order for axis in of[letter]]


def _ordered(shape: tuple[int, ...], spec: tuple[int, ...], order: str) -> Any:
    return tuple(shape[axis] for axis in _axes(spec, order))


def _compute(form: Form, how: Computing, specs: Any, lhs: Array, rhs: Array) -> Array:
    """Computes a form on operands whose axes have the order of their specifications."""
    lhs = lhs.transpose(_axes(specs.lhs_spec, "NSC"))
    rhs = rhs.transpose(_axes(specs.rhs_spec, "SCN"))
    axes = _axes(specs.out_spec, "NSC")
    outputs = form.compute(how, lhs, rhs)
    return outputs.transpose([axes.index(axis) for axis in range(len(axes))])
