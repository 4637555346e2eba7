"""Small programs for each pixel, as a JAX primitive.

Layer norm, softmax and their gradients combine the channels of one pixel of an image.
XLA reads and writes the whole array for each of their sums. The kernel here computes
all of such a program for one pixel of 16 images, in the first cache, before the next.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from cifar_flax.layers.native import library
from cifar_flax.layers.native.primitives import TILE

Array = jax.Array

# The operations of pixelwise.h in their order, as functions of arrays
# [pixels, channels, 16]. Comparisons give 1 or 0.
OPERATIONS: dict[str, Callable[..., Array]] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "div": jnp.divide,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "select_n": lambda which, no, yes: jnp.where(which != 0, yes, no),
    "neg": jnp.negative,
    "exp": jnp.exp,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "reduce_sum": lambda x: x.sum(1, keepdims=True),
    "reduce_max": lambda x: x.max(1, keepdims=True),
}
TOTALS = ("reduce_sum", "reduce_max")

# As in pixelwise.h.
MAX_BUFFERS, MAX_VALUES = 32, 128


@dataclasses.dataclass(frozen=True)
class PixelProgram:
    """What is computed for each pixel of 16 images.

    A value has a number for each channel, or one for all. Values are counted: first the
    inputs, then the results of the steps.

    Attributes:
      pixels: P.
      channels: C.
      inputs: for each input whether it differs between pixels, and between channels.
      steps: the name of an operation, and the values that it takes. Sums and maxima
        take one with a number for each channel.
      outputs: values.
    """

    pixels: int
    channels: int
    inputs: tuple[tuple[bool, bool], ...]
    steps: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[int, ...]

    def wide(self) -> list[bool]:
        """Returns for each value whether it has a number for each channel."""
        found = [by_channel for _, by_channel in self.inputs]
        for name, operands in self.steps:
            found.append(name not in TOTALS and any(found[k] for k in operands))
        return found

    def shapes(self) -> list[tuple[int, int, int]]:
        """Returns the shapes of the outputs, [P, C, 16] or [P, 1, 16]."""
        wide = self.wide()
        return [
            (self.pixels, self.channels if wide[k] else 1, TILE) for k in self.outputs
        ]


def pixelwise(inputs: Sequence[Array], program: PixelProgram) -> list[Array]:
    """Computes a program for each pixel.

    Args:
      inputs: float32 [P or 1, C or 1, 16], as the program says.
      program: at most ``MAX_VALUES`` values, and fewer than ``MAX_BUFFERS`` inputs and
        outputs.

    Returns:
      The outputs; see ``PixelProgram.shapes``.
    """
    return _pixelwise.bind(*inputs, program=program)


def _pixelwise_xla(*inputs: Array, program: PixelProgram) -> list[Array]:
    values = list(inputs)
    for name, operands in program.steps:
        found = OPERATIONS[name](*(values[k] for k in operands))
        values.append(found.astype(jnp.float32))
    shapes = zip(program.outputs, program.shapes(), strict=True)
    return [jnp.broadcast_to(values[k], shape) for k, shape in shapes]


def _pixelwise_on_cpu(*inputs: Array, program: PixelProgram) -> list[Array]:
    if not library.available():
        return _pixelwise_xla(*inputs, program=program)
    numbers, workspace = _numbers(program)
    tasks = min(program.pixels, 128)  # 2 * MAX_WORKERS of vectors.h
    shapes = [*program.shapes(), (min(tasks, 64) * workspace,)]
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    call = jax.ffi.ffi_call(library.target("pixelwise"), results)
    return list(call(*inputs, program=numbers))[:-1]


def _numbers(program: PixelProgram) -> tuple[np.ndarray, int]:
    """Returns the attribute that pixelwise.h describes, and the floats of a worker."""
    wide, count = program.wide(), len(program.inputs)
    widths = [program.channels * TILE if is_wide else TILE for is_wide in wide]
    last_use = {k: at for at, (_, used) in enumerate(program.steps) for k in used}
    places: list[tuple[int, int, int, int]] = []
    for k, (by_pixel, _) in enumerate(program.inputs):
        places.append((k, 0, by_pixel * widths[k], wide[k] * TILE))
    free: dict[int, list[int]] = {}
    size = TILE
    for at, (_, used) in enumerate(program.steps):
        k = count + at
        for other in {u for u in used if last_use[u] == at}:
            if other >= count and other not in program.outputs:
                free.setdefault(widths[other], []).append(places[other][1])
        if k in program.outputs:
            buffer = count + program.outputs.index(k)
            places.append((buffer, 0, widths[k], wide[k] * TILE))
            continue
        if not free.get(widths[k]):
            free[widths[k]] = [size]
            size += widths[k]
        buffer = count + len(program.outputs)
        places.append((buffer, free[widths[k]].pop(), 0, wide[k] * TILE))
    names = list(OPERATIONS)
    steps = [
        (names.index(name), count + at, *used, *(0,) * (3 - len(used)))
        for at, (name, used) in enumerate(program.steps)
    ]
    sizes = count, len(program.outputs), len(places), len(steps)
    header = program.pixels, program.channels, size, *sizes
    flat = [number for row in (header, *places, *steps) for number in row]
    return np.array(flat, np.int64), size


_pixelwise = Primitive("pixelwise")
_pixelwise.multiple_results = True


@_pixelwise.def_abstract_eval
def _(*inputs: Any, program: PixelProgram) -> list[Any]:
    return [inputs[0].update(shape=shape) for shape in program.shapes()]


@_pixelwise.def_impl
def _(*inputs: Any, program: PixelProgram) -> list[Array]:
    return jax.jit(lambda *args: _pixelwise.bind(*args, program=program))(*inputs)


mlir.register_lowering(
    _pixelwise, mlir.lower_fun(_pixelwise_xla, multiple_results=True)
)
mlir.register_lowering(
    _pixelwise, mlir.lower_fun(_pixelwise_on_cpu, multiple_results=True), platform="cpu"
)


def workspace(program: PixelProgram) -> int:
    """Returns the floats that a thread needs beside inputs and outputs."""
    return _numbers(program)[1]
