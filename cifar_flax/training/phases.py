"""The phases of a recipe: their lengths and learning rates."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import optax

from cifar_flax.errors import UserError
from cifar_flax.training.checks import (
    MAX_STEPS,
    is_number,
    require,
    require_epochs,
    require_float,
    require_pattern,
    require_share,
    require_whole,
)
from cifar_flax.training.schedules import (
    one_cycle,
    sgdr,
    through,
    trapezoid,
    warm_cosine,
)

MAX_SIDE = 4096  # of an image

# The compiled schedule has a branch for each cycle; a thousand compile in seconds.
MAX_CYCLES = 1_000


class Phase(Protocol):
    """A part of training. You can write your own phase with these two members."""

    @property
    def epochs(self) -> float:
        """Length of the phase."""

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""


def count_steps(lengths: Sequence[float], steps_per_epoch: int) -> list[int]:
    """Converts the lengths of consecutive parts from epochs to steps.

    Each part ends at the step nearest to its end, so that rounding errors do not add
    up.

    Raises:
      UserError: a part is shorter than half a step.
    """
    ends = [round(end * steps_per_epoch) for end in itertools.accumulate(lengths)]
    counts = [end - start for start, end in itertools.pairwise([0, *ends])]
    for length, count in zip(lengths, counts, strict=True):
        if count < 1:
            raise UserError(
                f"{length:g} epochs of {steps_per_epoch} steps are less than one step; "
                "give more epochs"
            )
    return counts


def in_words(epochs: float) -> str:
    """Returns a length as text, such as ``1 epoch`` or ``2.5 epochs``."""
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


def plain(epochs: float) -> float:
    """Returns a number as an int if it is whole."""
    return int(epochs) if epochs == int(epochs) else epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Phase:
    """What a phase may change besides the rate.

    Attributes:
      freeze: a regular expression; parameters keep their values if it matches in their
        paths.
      image_size: height and width to which the training images are resized, after all
        augmentation; None: no resizing.
    """

    freeze: str | None = None
    image_size: int | None = None

    def __post_init__(self):
        if self.freeze is not None:
            require_pattern(self.freeze, "freeze of a phase")
        if self.image_size is not None:
            require_whole(self.image_size, "image_size of a phase", MAX_SIDE)


@dataclasses.dataclass(frozen=True)
class _Timed(_Phase):
    """A phase with a number of epochs and a highest rate.

    Attributes:
      learning_rate: the highest rate.
      epochs: length of the phase; it need not be whole.
    """

    learning_rate: float
    epochs: float

    def __post_init__(self):
        super().__post_init__()
        require_float(self.learning_rate, "the rate")
        require_epochs(self.epochs)
        object.__setattr__(self, "epochs", plain(self.epochs))

    def stretched(self, factor: float) -> Any:
        """Returns a phase of the same shape with ``factor`` times as many epochs."""
        return dataclasses.replace(self, epochs=self.epochs * factor)

    def _steps(self, steps_per_epoch: int) -> int:
        return count_steps([self.epochs], steps_per_epoch)[0]


@dataclasses.dataclass(frozen=True)
class Constant(_Timed):
    """A constant learning rate."""

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        del steps_per_epoch
        return optax.constant_schedule(self.learning_rate)

    def __str__(self) -> str:
        return f"{in_words(self.epochs)} at {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Linear(_Timed):
    """A rate that changes linearly.

    Attributes:
      learning_rate: the rate that ``start`` and ``end`` are shares of.
      epochs: length of the phase; it need not be whole.
      start: share of the rate at the beginning.
      end: share of the rate at the end.
    """

    start: float = 1.0
    end: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("start", "end"):
            share = getattr(self, name)
            require(is_number(share) and 0 <= share <= 1, name, share, "from 0 to 1")

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        first, last = (self.learning_rate * share for share in (self.start, self.end))
        return through([(0, first), (steps, last)])

    def __str__(self) -> str:
        first, last = (self.learning_rate * share for share in (self.start, self.end))
        return f"{in_words(self.epochs)} from {first:g} to {last:g}"


@dataclasses.dataclass(frozen=True)
class Cosine(_Timed):
    """A linear warm-up, then half a cosine; see ``schedules.warm_cosine``.

    Attributes:
      learning_rate: rate at the end of the warm-up.
      epochs: length of the phase; it need not be whole.
      warmup: epochs of the warm-up, which are part of ``epochs``.
      final: share of the rate at the end.
    """

    warmup: float = 0
    final: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.warmup:
            require_epochs(self.warmup, "warmup")
        require(self.warmup < self.epochs, "warmup", self.warmup, "shorter than epochs")
        require_share(self.final, "final")
        object.__setattr__(self, "warmup", plain(self.warmup))

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        warmup = min(round(self.warmup * steps_per_epoch), steps - 1)
        return warm_cosine(self.learning_rate, steps, warmup, self.final)

    def stretched(self, factor: float) -> "Cosine":
        """Returns a phase of the same shape with ``factor`` times as many epochs."""
        epochs, warmup = self.epochs * factor, self.warmup * factor
        return dataclasses.replace(self, epochs=epochs, warmup=warmup)

    def __str__(self) -> str:
        warmup = f", {in_words(self.warmup)} of it warm-up" if self.warmup else ""
        return (
            f"a cosine of {in_words(self.epochs)} from {self.learning_rate:g} to "
            f"{self.learning_rate * self.final:g}{warmup}"
        )


@dataclasses.dataclass(frozen=True)
class OneCycle(_Timed):
    """A linear rise, a linear fall, then to zero; see ``schedules.one_cycle``.

    Attributes:
      learning_rate: the highest rate.
      epochs: length of the phase; it need not be whole.
      start: share of the rate at the beginning, and at the end of the fall.
      tail: share of the epochs, at the end, in which the rate goes to 0.
    """

    start: float = 0.1
    tail: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        require_share(self.start, "start")
        require_share(self.tail, "tail")

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        return one_cycle(self.learning_rate, steps, self.start, self.tail)

    def __str__(self) -> str:
        return f"one cycle of {in_words(self.epochs)} up to {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Trapezoid(_Timed):
    """A linear rise, a constant rate, a linear fall; see ``schedules.trapezoid``.

    Attributes:
      learning_rate: the constant rate.
      epochs: length of the phase; it need not be whole.
      rise: share of the epochs in which the rate rises from 0.
      fall: share of the epochs in which it falls to 0.
    """

    rise: float = 0.1
    fall: float = 0.4

    def __post_init__(self):
        super().__post_init__()
        require_share(self.rise, "rise")
        require_share(self.fall, "fall")
        both = self.rise + self.fall
        require(both <= 1, "rise and fall together", both, "1 at most")

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        return trapezoid(self.learning_rate, steps, self.rise, self.fall)

    def __str__(self) -> str:
        return f"a trapezoid of {in_words(self.epochs)} up to {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Sgdr(_Phase):
    """Cosine cycles from a peak rate to zero; see ``schedules.sgdr``.

    Attributes:
      learning_rate: rate at the start of each cycle.
      cycles: number of cycles.
      cycle_len: length of the first cycle in epochs; it need not be whole.
      cycle_mult: each cycle is this many times as long as the one before.
      slow_start: share of the first cycle, at its start, in which the rate is a
        hundredth of ``learning_rate``.
    """

    learning_rate: float
    cycles: int
    cycle_len: float = 1
    cycle_mult: int = 1
    slow_start: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        require_float(self.learning_rate, "the rate")
        require_whole(self.cycles, "cycles", MAX_CYCLES)
        require_epochs(self.cycle_len, "cycle_len")
        require_whole(self.cycle_mult, "cycle_mult")
        require_share(self.slow_start, "slow_start")
        object.__setattr__(self, "cycle_len", plain(self.cycle_len))
        # Python's whole numbers do not overflow.
        if sum(self.cycle_mult**i for i in range(self.cycles)) > MAX_STEPS or (
            self.epochs > MAX_STEPS
        ):
            raise UserError(
                f"cycles={self.cycles}, cycle_len={self.cycle_len} and cycle_mult="
                f"{self.cycle_mult} are more than {MAX_STEPS} epochs; lower one of them"
            )

    @property
    def epochs(self) -> float:
        """Total length of all cycles."""
        return plain(sum(self.lengths))

    @property
    def lengths(self) -> list[float]:
        """Length of each cycle, in epochs."""
        return [self.cycle_len * self.cycle_mult**i for i in range(self.cycles)]

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = count_steps(self.lengths, steps_per_epoch)
        slow_steps = math.ceil(self.slow_start * steps[0])
        return sgdr(self.learning_rate, steps, slow_steps)

    def stretched(self, factor: float) -> "Sgdr":
        """Returns a phase of the same shape with ``factor`` times as many epochs."""
        return dataclasses.replace(self, cycle_len=self.cycle_len * factor)

    def __str__(self) -> str:
        lengths = " + ".join(f"{length:g}" for length in self.lengths)
        words = f"cosine cycles of {lengths} epochs"
        if self.cycles == 1:
            words = f"a cosine cycle of {in_words(self.epochs)}"
        words = f"{words} from {self.learning_rate:g}"
        if self.slow_start:
            words += f" ({self.slow_start:.3g} of the first at a hundredth of it)"
        return words


# The phases by their names in a recipe file.
_KINDS = (Constant, Linear, Sgdr, Cosine, OneCycle, Trapezoid)
PHASES: dict[str, type] = {kind.__name__.lower(): kind for kind in _KINDS}
