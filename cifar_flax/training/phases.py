"""The phases of a recipe: their lengths and learning rates."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Protocol

import optax

from cifar_flax.definitions import (
    LENGTH,
    MAX_SIDE,
    MAX_STEPS,
    PATTERN,
    SHARE,
    Definition,
    Hyper,
    Valid,
    between,
    float32,
    is_number,
    plain,
    require,
    whole,
)
from cifar_flax.errors import UserError
from cifar_flax.training.schedules import (
    one_cycle,
    sgdr,
    through,
    trapezoid,
    warm_cosine,
)

# The compiled schedule has a branch for each cycle; a thousand compile in seconds.
MAX_CYCLES = 1_000


class Phase(Protocol):
    """A part of training. You can write your own phase with these two members."""

    @property
    def epochs(self) -> float:
        """Length of the phase."""

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""


def count_steps(lengths: Sequence[float], steps_per_epoch: float) -> list[int]:
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
                f"{length:g} epochs of {steps_per_epoch:g} steps are less than one "
                "step; give more epochs"
            )
    return counts


def in_words(epochs: float) -> str:
    """Returns a length as text, such as ``1 epoch`` or ``2.5 epochs``."""
    return "1 epoch" if epochs == 1 else f"{epochs:g} epochs"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Phase(Definition):
    """What a phase may change besides the rate."""

    freeze: Annotated[
        str | None,
        Hyper(
            "Pattern of parameters that keep their values.",
            PATTERN,
            label="freeze of a phase",
            more="A regular expression that matches in their paths.",
        ),
    ] = None
    image_size: Annotated[
        int | None,
        Hyper(
            "Height and width to which the training images are resized.",
            whole(1, MAX_SIDE),
            label="image_size of a phase",
            more="After all augmentation; None: no resizing.",
        ),
    ] = None


# The highest rate of a phase.
Rate = Annotated[float, Hyper("Highest learning rate.", float32(), label="the rate")]


@dataclasses.dataclass(frozen=True)
class _Timed(_Phase):
    """A phase with a number of epochs and a highest rate."""

    learning_rate: Rate
    epochs: Annotated[
        int | float,
        Hyper("Length of the phase, in epochs, whole or not.", LENGTH),
    ]

    def stretched(self, factor: float) -> Any:
        """Returns a phase of the same shape with ``factor`` times as many epochs."""
        return dataclasses.replace(self, epochs=self.epochs * factor)

    def _steps(self, steps_per_epoch: float) -> int:
        return count_steps([self.epochs], steps_per_epoch)[0]


@dataclasses.dataclass(frozen=True)
class Constant(_Timed):
    """A constant learning rate."""

    def schedule(self, steps_per_epoch: float) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        del steps_per_epoch
        return optax.constant_schedule(self.learning_rate)

    def __str__(self) -> str:
        return f"{in_words(self.epochs)} at {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Linear(_Timed):
    """A rate that changes linearly."""

    start: Annotated[
        float, Hyper("Share of the rate at the beginning.", between(0, 1))
    ] = 1.0
    end: Annotated[float, Hyper("Share of the rate at the end.", between(0, 1))] = 0.0
    at_start: Annotated[
        bool,
        Hyper("Whether a step has the rate at its start instead of in its middle."),
    ] = False

    def schedule(self, steps_per_epoch: float) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        first, last = (self.learning_rate * share for share in (self.start, self.end))
        return through([(0, first), (steps, last)], self.at_start)

    def __str__(self) -> str:
        first, last = (self.learning_rate * share for share in (self.start, self.end))
        return f"{in_words(self.epochs)} from {first:g} to {last:g}"


@dataclasses.dataclass(frozen=True)
class Cosine(_Timed):
    """A linear warm-up, then half a cosine; see ``schedules.warm_cosine``."""

    warmup: Annotated[
        int | float,
        Hyper(
            "Epochs of the warm-up, which are part of the length.",
            Valid(
                lambda value: is_number(value) and (value == 0 or LENGTH.test(value)),
                f"0, or {LENGTH.words}",
                plain,
            ),
        ),
    ] = 0
    final: Annotated[float, Hyper("Share of the rate at the end.", SHARE)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.warmup < self.epochs, "warmup", self.warmup, "shorter than epochs")

    def schedule(self, steps_per_epoch: float) -> optax.Schedule:
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
    """A linear rise, a linear fall, then to zero; see ``schedules.one_cycle``."""

    start: Annotated[
        float,
        Hyper(
            "Share of the rate at the beginning, and at the end of the fall.",
            SHARE,
        ),
    ] = 0.1
    tail: Annotated[
        float,
        Hyper(
            "Share of the epochs, at the end, in which the rate goes to 0.",
            SHARE,
        ),
    ] = 0.1

    def schedule(self, steps_per_epoch: float) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        return one_cycle(self.learning_rate, steps, self.start, self.tail)

    def __str__(self) -> str:
        return f"one cycle of {in_words(self.epochs)} up to {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Trapezoid(_Timed):
    """A linear rise, a constant rate, a linear fall; see ``schedules.trapezoid``."""

    rise: Annotated[
        float,
        Hyper("Share of the epochs in which the rate rises from 0.", SHARE),
    ] = 0.1
    fall: Annotated[
        float,
        Hyper("Share of the epochs in which the rate falls to 0.", SHARE),
    ] = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.rise + self.fall
        require(both <= 1, "rise and fall together", both, "1 at most")

    def schedule(self, steps_per_epoch: float) -> optax.Schedule:
        """Returns the rate at each step of the phase, from step 0."""
        steps = self._steps(steps_per_epoch)
        return trapezoid(self.learning_rate, steps, self.rise, self.fall)

    def __str__(self) -> str:
        return f"a trapezoid of {in_words(self.epochs)} up to {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Sgdr(_Phase):
    """Cosine cycles from a peak rate to zero; see ``schedules.sgdr``."""

    learning_rate: Rate
    cycles: Annotated[
        int, Hyper("Number of SGDR cycles from --lr to 0.", whole(1, MAX_CYCLES))
    ]
    cycle_len: Annotated[
        int | float, Hyper("Epochs in the first SGDR cycle, whole or not.", LENGTH)
    ] = 1
    cycle_mult: Annotated[
        int, Hyper("Factor between the lengths of consecutive SGDR cycles.", whole())
    ] = 1
    slow_start: Annotated[
        float,
        Hyper(
            "Share of the first cycle, at its start, with a hundredth of the rate.",
            SHARE,
        ),
    ] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
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

    def schedule(self, steps_per_epoch: float) -> optax.Schedule:
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
