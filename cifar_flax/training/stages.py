"""The stages of a recipe: when parameters are frozen, and the size of the images.

A phase may freeze parameters, and a later phase may train them again. While a parameter
is frozen, its momentum and its counts in the optimizer do not change.
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

# Spans of optimizer steps in which a parameter is trained: (first, last + 1).
Spans = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Consecutive steps that are compiled as one program.

    Attributes:
      start: the first step.
      stop: the step after the last.
      freeze: a regular expression that matches in the paths of the frozen parameters;
        None if no parameter is frozen.
      image_size: size of the training images; None: their own.
    """

    start: int
    stop: int
    freeze: str | None
    image_size: int | None = None

    @property
    def kind(self) -> tuple[str | None, int | None]:
        """The properties that the program of a stage depends on."""
        return self.freeze, self.image_size

    def freezes(self, path: str) -> bool:
        """Returns whether the parameter at a path is frozen."""
        return self.freeze is not None and re.search(self.freeze, path) is not None


def make_stages(
    steps: Sequence[int],
    patterns: Sequence[str | None],
    sizes: Sequence[int | None],
    merge: bool = True,
) -> list[Stage]:
    """Returns the stages of phases.

    Args:
      steps: number of steps of each phase.
      patterns: pattern of the parameters that each phase freezes.
      sizes: size of the images of each phase.
      merge: whether consecutive phases that differ only in their rates share a stage.
    """
    bounds = itertools.pairwise(itertools.accumulate(steps, initial=0))
    stages: list[Stage] = []
    for (start, stop), pattern, size in zip(bounds, patterns, sizes, strict=True):
        last = stages[-1] if stages and merge else None
        if last and last.kind == (pattern, size):
            start = stages.pop().start
        stages.append(Stage(start, stop, pattern, size))
    return stages


def spans_of(path: str, stages: Sequence[Stage], every: int) -> Spans:
    """Returns the spans of optimizer steps in which the parameter at a path is trained.

    Args:
      path: of the parameter.
      stages: of the recipe.
      every: number of training steps whose mean gradient makes one optimizer step. The
        optimizer step counts if all of its training steps train the parameter.
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

    The floating-point arrays of its state become zero, and its counts continue.

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
    """Returns an optimizer that takes steps only within spans.

    Args:
      make: makes the optimizer with a schedule.
      schedule: the rate at every step, also outside of the spans.
      spans: one or more spans.
    """
    starts, stops = np.array(spans, np.int32).T
    done = np.cumsum(stops - starts)  # optimizer steps taken at the end of each span
    skipped = stops - done

    def rate(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        # The optimizer counts only the steps that it takes.
        span = jnp.searchsorted(done[:-1], count, side="right")
        return schedule(count + jnp.asarray(skipped)[span])

    def is_trained(step: jax.Array) -> jax.Array:
        return ((step >= starts) & (step < stops)).any()

    return optax.conditionally_mask(make(rate), is_trained)
