"""A recipe says how a model is trained; it is data, and printed and recorded as such.

``LESSON`` holds the lesson's own recipe for each model.
"""

import dataclasses

import optax

from cifar_flax.errors import UserError
from cifar_flax.schedules import chain_schedules, sgdr

# Rates and penalties are float32 in the compiled program, steps int32. Below the
# smallest normal number a rate would silently be 0.
MIN_FLOAT, MAX_FLOAT = 1.2e-38, 3.4e38
MAX_STEPS = 2**31 - 1
MAX_SHARE = 1 - 2**-24  # what is closer to 1 is rounded to it

# The compiled schedule has a branch for each; a thousand compile in seconds.
MAX_CYCLES = 1_000


def _require(condition: bool, name: str, value, must: str) -> None:
    if not condition:
        raise UserError(f"{name} is {value}; it must be {must}")


def _require_rate(value: float) -> None:
    _require_float(value, "the rate")


def _require_float(value: float, name: str) -> None:
    normal = value == 0 or MIN_FLOAT <= value <= MAX_FLOAT
    _require(normal, name, value, f"0, or from {MIN_FLOAT:g} to {MAX_FLOAT:g}")


def _require_steps(count: int, name: str) -> None:
    _require(1 <= count <= MAX_STEPS, name, count, f"from 1 to {MAX_STEPS}")


def _require_share(value: float, name: str) -> None:
    _require(0 <= value <= MAX_SHARE, name, value, "in [0, 1)")


def _epochs(count: int) -> str:
    return "1 epoch" if count == 1 else f"{count} epochs"


@dataclasses.dataclass(frozen=True)
class Constant:
    """A constant learning rate for some epochs."""

    learning_rate: float
    epochs: int

    def __post_init__(self):
        _require_rate(self.learning_rate)
        _require_steps(self.epochs, "epochs")

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
        _require(
            1 <= self.cycles <= MAX_CYCLES,
            "cycles",
            self.cycles,
            f"from 1 to {MAX_CYCLES}",
        )
        for name in ("cycle_len", "cycle_mult"):
            _require_steps(getattr(self, name), name)
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
