"""A recipe says how a model is trained; it is data, and printed and recorded as such.

``LESSON`` holds the lesson's own recipe for each model.
"""

import dataclasses
import numbers
from typing import Any, Protocol

import optax

from cifar_flax.errors import UserError
from cifar_flax.training.schedules import chain_schedules, sgdr

# Rates and penalties are float32 in the compiled program, steps int32. Below the
# smallest normal number a rate would silently be 0.
MIN_FLOAT, MAX_FLOAT = 1.2e-38, 3.4e38
MAX_STEPS = 2**31 - 1
MAX_SHARE = 1 - 2**-24  # what is closer to 1 is rounded to it

# The compiled schedule has a branch for each; a thousand compile in seconds.
MAX_CYCLES = 1_000


def _require(condition: bool, name: str, value, must: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {must}")


def _require_rate(value: float) -> None:
    _require_float(value, "the rate")


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _require_float(value: float, name: str) -> None:
    normal = _is_number(value) and (value == 0 or MIN_FLOAT <= value <= MAX_FLOAT)
    _require(normal, name, value, f"0, or from {MIN_FLOAT:g} to {MAX_FLOAT:g}")


def _require_whole(value: Any, name: str, most: int = MAX_STEPS) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    must = f"a whole number from 1 to {most}"
    _require(whole and 1 <= value <= most, name, value, must)


def _require_share(value: float, name: str) -> None:
    good = _is_number(value) and 0 <= value <= MAX_SHARE
    _require(good, name, value, "in [0, 1)")


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant learning rate for some epochs."""

    learning_rate: float
    epochs: int

    def __post_init__(self):
        _require_rate(self.learning_rate)
        _require_whole(self.epochs, "epochs")

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """The rate at each step, from the phase's own step 0."""
        del steps_per_epoch
        return optax.constant_schedule(self.learning_rate)

    def __str__(self) -> str:
        return f"{_epochs(self.epochs)} at {self.learning_rate:g}"


@dataclasses.dataclass(frozen=True)
class Sgdr:
    """Cosine cycles from a peak rate to zero; see ``schedules.sgdr``.

    Attributes:
      learning_rate: at the start of each cycle.
      cycles: number of cycles.
      cycle_len: length of the first, in epochs.
      cycle_mult: each is this many times as long as the one before.
    """

    learning_rate: float
    cycles: int
    cycle_len: int = 1
    cycle_mult: int = 1

    def __post_init__(self):
        _require_rate(self.learning_rate)
        _require_whole(self.cycles, "cycles", MAX_CYCLES)
        for name in ("cycle_len", "cycle_mult"):
            _require_whole(getattr(self, name), name)
        if self.epochs > MAX_STEPS:
            raise UserError(
                f"cycles={self.cycles}, cycle_len={self.cycle_len} and cycle_mult="
                f"{self.cycle_mult} are more than {MAX_STEPS} epochs; lower one of them"
            )

    @property
    def epochs(self) -> int:
        """Length of all cycles together."""
        return sum(self.cycle_len * self.cycle_mult**i for i in range(self.cycles))

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """The rate at each step, from the phase's own step 0."""
        return sgdr(
            self.learning_rate,
            self.cycles,
            self.cycle_len * steps_per_epoch,
            self.cycle_mult,
        )

    def __str__(self) -> str:
        if self.cycles == 1:
            return (
                f"a cosine cycle of {_epochs(self.epochs)} from {self.learning_rate:g}"
            )
        lengths = (str(self.cycle_len * self.cycle_mult**i) for i in range(self.cycles))
        return (
            f"cosine cycles of {' + '.join(lengths)} epochs from {self.learning_rate:g}"
        )


class Phase(Protocol):
    """A stretch of training; one of your own takes part like those above."""

    @property
    def epochs(self) -> int:
        """Its length."""

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """The rate at each step, from the phase's own step 0."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Phases one after the other, with SGD.

    The momentum buffer goes on from one phase to the next. A subclass with another
    ``optimizer`` trains with that one, and is recorded by its own name.

    Attributes:
      phases: at least one.
      batch_size: images in a step, of each replica.
      momentum: of SGD; 0 for none.
      nesterov: Nesterov's form of the momentum.
      weight_decay: L2 penalty, ``gradient + weight_decay * parameter``, on every
        parameter, before the momentum.
      label_smoothing: share of the target that is spread over all classes.
    """

    phases: tuple[Phase, ...]
    batch_size: int = 256
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        phases = self.phases
        several = isinstance(phases, tuple | list) and len(phases) > 0
        _require(several, "phases", phases, "a tuple of one or more phases")
        for phase in phases:
            good = callable(getattr(phase, "schedule", None))
            _require(good, "a phase", phase, "a Constant, an Sgdr, or the like")
            _require_whole(getattr(phase, "epochs", None), "epochs of a phase")
        object.__setattr__(self, "phases", tuple(phases))
        _require_whole(self.batch_size, "batch_size")
        _require_share(self.momentum, "momentum")
        _require_float(self.weight_decay, "weight_decay")
        _require_share(self.label_smoothing, "label_smoothing")

    @property
    def epochs(self) -> int:
        """Length of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """The learning rate at each step of the whole recipe.

        Raises:
          UserError: it has more steps than can be counted.
        """
        if self.epochs * steps_per_epoch > MAX_STEPS:
            raise UserError(
                f"{self.epochs} epochs of {steps_per_epoch} steps are more than "
                f"{MAX_STEPS} steps; lower the epochs, or raise batch_size"
            )
        return chain_schedules(
            [phase.schedule(steps_per_epoch) for phase in self.phases],
            [phase.epochs * steps_per_epoch for phase in self.phases],
        )

    def optimizer(self, schedule: optax.Schedule) -> optax.GradientTransformation:
        """SGD with the recipe's regularisation.

        Args:
          schedule: of the learning rate; the recipe's own is ``self.schedule(...)``.
        """
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay),
            optax.sgd(schedule, momentum=self.momentum or None, nesterov=self.nesterov),
        )

    @property
    def optimizer_in_words(self) -> str:
        """What ``optimizer`` is, for a person to read."""
        if type(self).optimizer is not Recipe.optimizer:
            return f"of {type(self).__name__}"
        extras = {
            "momentum": self.momentum,
            "Nesterov": self.nesterov,
            "weight decay": self.weight_decay,
        }
        words = [
            name if value is True else f"{name} {value:g}"
            for name, value in extras.items()
            if value
        ]
        return ", ".join(["SGD", *words])

    def record(self) -> dict[str, Any]:
        """The recipe as ``config.json`` holds it: what was trained, in plain values."""
        fields: dict[str, Any] = {**vars(self)}
        del fields["phases"]
        return {
            "phases": [_phase_record(phase) for phase in self.phases],
            "optimizer": self.optimizer_in_words,
            **{name: _plain(value) for name, value in fields.items()},
        }

    def __str__(self) -> str:
        return ", then ".join(str(phase) for phase in self.phases)


def _phase_record(phase: Phase) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if dataclasses.is_dataclass(phase) and not isinstance(phase, type):
        fields = dataclasses.asdict(phase)
    plain = {name: _plain(value) for name, value in fields.items()}
    return {"kind": type(phase).__name__.lower(), "epochs": phase.epochs, **plain}


def _plain(value: Any) -> bool | int | float | str | None:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


_RESIDUAL = (Constant(1e-2, 2), Sgdr(1e-2, 3, 1, 2), Sgdr(1e-2, 8, 4))

LESSON: dict[str, Recipe] = {
    "simplenet": Recipe((Constant(1e-2, 2), Sgdr(1e-2, 2))),
    "convnet": Recipe((Constant(1e-1, 2), Sgdr(1e-1, 4))),
    "convnet2": Recipe((Constant(1e-1, 2), Sgdr(1e-1, 2))),
    "convbn": Recipe((Constant(3e-2, 2), Sgdr(1e-1, 4))),
    "convbn2": Recipe((Constant(1e-2, 2), Sgdr(1e-2, 2))),
    "resnet": Recipe(_RESIDUAL, weight_decay=1e-5),
    "resnet2": Recipe(_RESIDUAL, weight_decay=1e-6),
}
