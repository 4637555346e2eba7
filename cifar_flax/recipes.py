"""A recipe says how a model is trained; it is data, and printed and recorded as such.

``LESSON`` holds the lesson's own recipe for each model.
"""

import dataclasses
import math

import optax

from cifar_flax.errors import UserError
from cifar_flax.schedules import chain_schedules, sgdr

# Of a recipe; more would take years, and the sum over endless cycles for ever.
MAX_EPOCHS = 100_000


def _require(condition: bool, name: str, value, must: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value}; it must be {must}")


def _require_rate(value: float) -> None:
    _require(0 <= value < math.inf, "the rate", value, "a number, 0 or more")


def _require_count(name: str, value: int) -> None:
    _require(1 <= value <= MAX_EPOCHS, name, value, f"from 1 to {MAX_EPOCHS}")


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant learning rate for some epochs."""

    learning_rate: float
    epochs: int

    def __post_init__(self):
        _require_rate(self.learning_rate)
        _require_count("epochs", self.epochs)

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
        for name in ("cycles", "cycle_len", "cycle_mult"):
            value = getattr(self, name)
            _require_count(name, value)
        length, epochs = self.cycle_len, 0
        for _ in range(self.cycles):
            epochs, length = epochs + length, length * self.cycle_mult
            _require_count("the length of all cycles", epochs)

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


Phase = Constant | Sgdr


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Phases one after the other, with SGD.

    The momentum buffer goes on from one phase to the next.

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
        _require(len(self.phases) > 0, "phases", self.phases, "one or more")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _require(0 <= self.momentum < 1, "momentum", self.momentum, "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, ">= 0")
        _require(
            0 <= self.label_smoothing < 1,
            "label_smoothing",
            self.label_smoothing,
            "in [0, 1)",
        )

    @property
    def epochs(self) -> int:
        """Length of all phases together."""
        return sum(phase.epochs for phase in self.phases)

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """The learning rate at each step of the whole recipe."""
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

    def __str__(self) -> str:
        return ", then ".join(str(phase) for phase in self.phases)


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
