"""The stages of a recipe: which parameters are frozen when, and the images' size.

A phase may freeze parameters, and a later one train them again. While a parameter is
frozen its optimizer stands still: the momentum and the counts stay as they are.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Steps of the optimizer in which a parameter is trained: first, and one after the last.
Spans = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps one after the other that are compiled as one program.

    Attributes:
      start: the first step.
      stop: the step after the last.
      freeze: a regular expression that is found in the paths of the frozen parameters;
        None where there are none.
      image_size: of the training images; None: as they are.
    """

    start: int
    stop: int
    freeze: str | None
    image_size: int | None = None

    def freezes(self, path: str) -> bool:
        """Whether the parameter at a path is frozen."""
        return self.freeze is not None and re.search(self.freeze, path) is not None


def make_stages(
    steps: Sequence[int],
    patterns: Sequence[str | None],
    sizes: Sequence[int | None],
    merge: bool = True,
) -> list[Stage]:
    """Returns the stages of phases.

    Args:
      steps: of each phase.
      patterns: of what each phase freezes.
      sizes: of the images of each phase.
      merge: whether consecutive phases that differ only in their rates share a stage.
    """
    bounds = itertools.pairwise(itertools.accumulate(steps, initial=0))
    stages: list[Stage] = []
    for (start, stop), pattern, size in zip(bounds, patterns, sizes, strict=True):
        last = stages[-1] if stages and merge else None
        if last and (last.freeze, last.image_size) == (pattern, size):
            start = stages.pop().start
        stages.append(Stage(start, stop, pattern, size))
    return stages


def spans_of(path: str, stages: Sequence[Stage], every: int) -> Spans:
    """When the parameter at a path is trained.

    Args:
      path: of the parameter.
      stages: of the recipe.
      every: steps of training whose mean gradient makes one step of the optimizer; it
        counts where the parameter is trained in all of them.
    """
    spans: list[tuple[int, int]] = []
    for stage in stages:
        if stage.freezes(path):
            continue
        start, stop = stage.start, stage.stop
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, stop))
    whole = [(-(-start // every), stop // every) for start, stop in spans]
    return tuple((start, stop) for start, stop in whole if start < stop)


def with_restarts(
    tx: optax.GradientTransformation, starts: Sequence[int]
) -> optax.GradientTransformation:
    """Returns an optimizer whose momentum is zero again at some of its steps.

    The arrays of floating-point numbers in its state become zero, and its counts go on.

    Args:
      tx: SGD with momentum.
      starts: steps of the optimizer, from 0, that begin without momentum.
    """
    at = np.array(starts, np.int32)

    def init(params: optax.Params) -> tuple[jax.Array, optax.OptState]:
        return jnp.int32(0), tx.init(params)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        step, inner = state
        keep = ~(step == at).any()

        def kept(leaf: jax.Array) -> jax.Array:
            is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jnp.where(keep, leaf, 0) if is_float else leaf

        updates, inner = tx.update(grads, jax.tree.map(kept, inner), params)
        return updates, (step + 1, inner)

    return optax.GradientTransformation(init, update)


def paused(
    make: Callable[[optax.Schedule], optax.GradientTransformation],
    schedule: optax.Schedule,
    spans: Spans,
) -> optax.GradientTransformation:
    """An optimizer that takes a step only within spans, and stands still between them.

    Args:
      make: the optimizer with a schedule.
      schedule: the rate at each step, within the spans or not.
      spans: at least one.
    """
    starts, stops = np.array(spans, np.int32).T
    done = np.cumsum(stops - starts)  # of its own steps at the end of each span
    skipped = stops - done

    def rate(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        # The optimizer counts the steps that it takes.
        span = jnp.searchsorted(done[:-1], count, side="right")
        return schedule(count + jnp.asarray(skipped)[span])

    def is_trained(step: jax.Array) -> jax.Array:
        return ((step >= starts) & (step < stops)).any()

    return optax.conditionally_mask(make(rate), is_trained)
