"""Finds what combines the channels of each pixel, to compute it for one pixel at once.

A layer norm, a softmax and their gradients take sums over the channels, and use them
for each channel. ``native.pixelwise`` computes all of that in one pass over the images,
together with the products, sums and biases around it. Here such operations are found in
a traced program of tiles, whatever library wrote them.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from cifar_flax.layers.native.pixelwise import (
    MAX_BUFFERS,
    MAX_VALUES,
    TOTALS,
    PixelProgram,
    pixelwise,
    workspace,
)
from cifar_flax.layers.native.primitives import TILE
from cifar_flax.layers.pixel_views import Operation, Reader, View
from cifar_flax.layers.program import Group, Name, Program

# Numbers of the smallest array, since a call takes some microseconds; and of what a
# thread keeps beside inputs and outputs, so that it stays in its second cache.
LEAST, MOST_KEPT = 1 << 15, 1 << 17


@dataclasses.dataclass(eq=False)
class _Cluster:
    """Operations that may be computed together.

    Attributes:
      view: P, and C if one of them has channels.
      bits: one for each cluster that became part of this one.
      before: bits of clusters that must be computed before it.
      sums: whether channels are combined.
    """

    view: View
    bits: int
    before: int = 0
    sums: bool = False

    def fits(self, other: "_Cluster") -> bool:
        """Whether both have the same pixels and channels."""
        channels = {self.view.channels, other.view.channels} - {None}
        return self.view.pixels == other.view.pixels and len(channels) <= 1

    def take(self, part: "_Cluster") -> None:
        """Makes another one a part of this."""
        self.view = self.view if self.view.channels else part.view
        self.bits |= part.bits
        self.before |= part.before
        self.sums |= part.sums


def _clusters(reader: Reader) -> dict[int, _Cluster]:
    """Returns for each operation, by its result, what it is part of.

    Neighbours come together, as long as all else can be computed before or after them.
    """
    found: dict[int, _Cluster] = {}
    clusters: list[_Cluster] = []
    needs: dict[int, int] = {}  # of each value, as bits

    def variables(names: Sequence[Name]) -> set[int]:
        return {n for n in names if isinstance(n, int)}

    def closed(bits: int) -> int:
        more, bits = bits, 0
        while more != bits:
            bits = more
            for cluster in clusters:
                if cluster.bits & more:
                    more |= cluster.bits | cluster.before
        return bits

    for node in reader.nodes:
        result = node.results[0] if node.results else -1
        operation = reader.operations.get(result)
        if operation is None:
            bits = functools.reduce(
                operator.or_, (needs.get(n, 0) for n in variables(node.operands)), 0
            )
            needs.update(dict.fromkeys(node.results, bits))
            continue
        before = {n: closed(needs.get(n, 0)) for n in variables(operation.operands)}
        of = {n: found.get(n) for n in before}
        whole = _Cluster(operation.view, 1 << result)
        for part in {id(c): c for c in of.values() if c}.values():
            others = (bits for n, bits in before.items() if of[n] is not part)
            if part.fits(whole) and not any(bits & part.bits for bits in others):
                whole.take(part)
                clusters.remove(part)
                found.update({k: whole for k, c in found.items() if c is part})
        found[result] = whole
        clusters.append(whole)
        whole.sums |= operation.name in TOTALS
        for name, bits in before.items():
            if found.get(name) is not whole:
                whole.before |= bits
        needs[result] = 1 << result
    return found


@dataclasses.dataclass(eq=False)
class _Plan:
    """What a cluster computes.

    Attributes:
      cluster: see there.
      wanted: values that it computes, be it for itself alone.
      body: the values of ``wanted``, from the last to the first.
      inputs: values that it reads.
      outputs: values that others read.
    """

    cluster: _Cluster
    wanted: set[int] = dataclasses.field(default_factory=set)
    body: list[int] = dataclasses.field(default_factory=list)
    inputs: dict[int, None] = dataclasses.field(default_factory=dict)
    outputs: list[int] = dataclasses.field(default_factory=list)


class _Planner:
    """Decides what clusters read and write.

    A value of another cluster that follows from one array alone is computed again, so
    that it is neither written nor read.
    """

    def __init__(self, reader: Reader, clusters: dict[int, _Cluster]):
        """Takes clusters as they are: the result of an operation -> its cluster."""
        self._reader, self._program = reader, reader.program
        self._clusters = clusters
        self._read = self._read_by_others()
        self._found: dict[Name, frozenset[Name]] = {}

    def _read_by_others(self) -> set[Name]:
        """Returns the values that are read outside of clusters."""
        reader = self._reader
        read: set[Name] = {n for n in self._program.outputs if isinstance(n, int)}
        for node in reversed(reader.nodes):
            renames = any(result in reader.roots for result in node.results)
            if not self._clusters.keys().isdisjoint(node.results):
                continue
            if not renames or not read.isdisjoint(node.results):
                read.update(n for n in node.operands if isinstance(n, int))
        return read

    def _again(self, name: Name) -> bool:
        """Whether a value is computed again in each cluster that reads it."""
        if not isinstance(name, int) or self._changeable(name) is None:
            return False
        if self._program.avals[name].dtype == jnp.bool_:
            return True
        return self._reader.by_pixel(name) and self._sources(name) != {name}

    def _changeable(self, name: Name) -> Operation | None:
        """Returns an operation without sums whose result only clusters read."""
        operation = self._reader.operations.get(name) if isinstance(name, int) else None
        if operation is None or operation.name in TOTALS or name in self._read:
            return None
        return operation

    def _sources(self, name: Name) -> frozenset[Name]:
        """Returns the arrays of images from which a value follows; at most one."""
        if name not in self._found:
            self._found[name] = frozenset([name])
            if operation := self._changeable(name):
                wide = filter(self._reader.by_pixel, operation.operands)
                found = frozenset[Name]().union(*map(self._sources, wide))
                if len(found) <= 1:
                    self._found[name] = found
        return self._found[name]

    def plans(self) -> list[_Plan]:
        """Returns what each cluster computes."""
        plans = {id(c): _Plan(c) for c in self._clusters.values()}
        needed = set(self._read)
        names = (name for node in self._reader.nodes for name in node.results)
        for result in reversed(list(names)):
            own = self._clusters.get(result)
            if own and result in needed:
                plans[id(own)].outputs.append(result)
                plans[id(own)].wanted.add(result)
            for plan in plans.values():
                if result in plan.wanted:
                    plan.body.append(result)
                    needed.update(self._operands(plan, result))
        return [plan for plan in plans.values() if plan.outputs]

    def _operands(self, plan: _Plan, result: int) -> Iterator[int]:
        """Adds what an operation reads to a plan, and yields what others compute."""
        for operand in self._reader.operations[result].operands:
            if isinstance(operand, core.Literal):
                continue
            if self._clusters.get(operand) is plan.cluster or self._again(operand):
                plan.wanted.add(operand)
            else:
                plan.inputs[operand] = None
                yield operand


class _Writer:
    """Writes what a cluster computes as a ``PixelProgram``.

    Attributes:
      inputs: names of what the program reads.
      numbers: what it reads after these.
      outputs: for each output of the plan, which output of the program it is.
    """

    def __init__(self, reader: Reader, plan: _Plan):
        """Writes all steps."""
        self._reader, self._plan = reader, plan
        self.inputs = list(plan.inputs)
        self.numbers: list[float] = []
        self._steps: list[tuple[str, tuple[_Ref, ...]]] = []
        self._known: dict[int, _Ref] = {n: (0, k) for k, n in enumerate(self.inputs)}
        for result in reversed(plan.body):
            self._known[result] = self._write(reader.operations[result])
        # Two outputs may be the same.
        self._refs = list(dict.fromkeys(self._known[name] for name in plan.outputs))
        self.outputs = [self._refs.index(self._known[name]) for name in plan.outputs]

    def _write(self, operation: Operation) -> "_Ref":
        operands = [self._ref(name) for name in operation.operands]
        if operation.name == "integer_pow":
            first = operands[0]
            square = self._step("mul", first, first) if operation.power != -1 else first
            if operation.power > 0:
                return square
            return self._step("div", self._number(1.0), square)
        if operation.name == "div" and operation.view.channels:
            view = self._reader.view(operation.operands[1])
            if view and view.channels is None:  # as XLA does: one division for all
                inverse = self._step("div", self._number(1.0), operands[1])
                return self._step("mul", operands[0], inverse)
        return self._step(operation.name, *operands)

    def _ref(self, name: Name) -> "_Ref":
        if isinstance(name, core.Literal):
            return self._number(float(name.val))
        return self._known[name]

    def _number(self, value: float) -> "_Ref":
        # 0 and -0 are two numbers.
        same = [k for k, n in enumerate(self.numbers) if repr(n) == repr(value)]
        if not same:
            self.numbers.append(value)
        return 1, same[0] if same else len(self.numbers) - 1

    def _step(self, name: str, *operands: "_Ref") -> "_Ref":
        step = name, operands
        if step not in self._steps:
            self._steps.append(step)
        return 2, self._steps.index(step)

    def program(self) -> PixelProgram:
        """Returns the program."""
        starts = 0, len(self.inputs), len(self.inputs) + len(self.numbers)
        view = self._plan.cluster.view
        views = [self._reader.view(name) or View() for name in self.inputs]
        kinds = [(v.pixels is not None, v.channels is not None) for v in views]
        return PixelProgram(
            view.pixels or 1,
            view.channels or 1,
            (*kinds, *((False, False),) * len(self.numbers)),
            tuple(
                (name, tuple(starts[kind] + k for kind, k in operands))
                for name, operands in self._steps
            ),
            tuple(starts[kind] + k for kind, k in self._refs),
        )


# Whether a value is an input, a number or the result of a step, and which one.
_Ref = tuple[int, int]


def fused(program: Program, others: Sequence[Group]) -> list[Group]:
    """Returns what combines the channels of each pixel, each as one computation.

    Args:
      program: a program of the kernels.
      others: what else is computed together; it stays as it is.
    """
    reader = Reader(program, program.order(others))
    if not any(o.name in TOTALS for o in reader.operations.values()):
        return []
    kept = {
        result: cluster
        for result, cluster in _clusters(reader).items()
        if cluster.sums and math.prod(cluster.view.shape()) >= LEAST
    }
    while True:
        plans = _Planner(reader, kept).plans()
        writers = [(plan, _Writer(reader, plan)) for plan in plans]
        large = {id(plan.cluster) for plan, w in writers if not _is_small(w.program())}
        if not large:
            return [_group(reader, plan, writer) for plan, writer in writers]
        kept = {k: c for k, c in kept.items() if id(c) not in large}


def _is_small(program: PixelProgram) -> bool:
    buffers = len(program.inputs) + len(program.outputs) + 1
    values = len(program.inputs) + len(program.steps)
    if buffers > MAX_BUFFERS or values > MAX_VALUES:
        return False
    return workspace(program) <= MOST_KEPT


def _group(reader: Reader, plan: _Plan, writer: _Writer) -> Group:
    program = writer.program()
    views = [reader.view(name) or View() for name in writer.inputs]
    avals = [reader.program.avals[name] for name in plan.outputs]

    def compute(values: Sequence[Any]) -> list[Any]:
        inputs = [_seen(value, view) for value, view in zip(values, views, strict=True)]
        inputs += [_seen(jnp.float32(number), View()) for number in writer.numbers]
        results, found = pixelwise(inputs, program), []
        for k, aval in zip(writer.outputs, avals, strict=True):
            channels = math.prod(aval.shape) // (program.pixels * TILE)
            whole = jnp.broadcast_to(results[k], (program.pixels, channels, TILE))
            found.append(whole.reshape(aval.shape).astype(aval.dtype))
        return found

    return Group([*writer.inputs], plan.outputs, compute)


def _seen(value: Any, view: View) -> Any:
    """Returns an array as a view of it, with its lanes."""
    pixels, channels, _ = view.shape()
    array = jnp.asarray(value, jnp.float32)
    if view.pixels is None:
        return jnp.broadcast_to(array.reshape(1, channels, 1), (1, channels, TILE))
    return array.reshape(pixels, -1, TILE)[:, :channels]
