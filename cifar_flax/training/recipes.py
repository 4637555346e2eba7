"""A recipe: how a model is trained, as data that can be printed and recorded."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from cifar_flax.data.augment import Augmentation, Tta
from cifar_flax.definitions import (
    LENGTH,
    MAX_STEPS,
    SHARE,
    Definition,
    Hyper,
    Valid,
    between,
    float32,
    plain,
    require,
    whole,
)
from cifar_flax.errors import UserError, in_words
from cifar_flax.training.optimizers import (
    Group,
    Kind,
    Options,
    by_kind,
    check_options,
    check_patterns,
    group_of,
    make_optimizer,
    names,
)
from cifar_flax.training.phases import PHASES, Phase, count_steps
from cifar_flax.training.schedules import chain_schedules
from cifar_flax.training.stages import (
    Stage,
    make_stages,
    paused,
    spans_of,
    with_restarts,
)


def _is_several(phases: Any) -> bool:
    return isinstance(phases, tuple | list) and len(phases) > 0


def _is_sequence(groups: Any) -> bool:
    return isinstance(groups, tuple | list)


def _is_mapping(options: Any) -> bool:
    return isinstance(options, Mapping)


@dataclasses.dataclass(frozen=True)
class Recipe(Definition):
    """Consecutive phases with one optimizer.

    The optimizer keeps its state from one phase to the next, unless
    ``restart_momentum`` is set. A subclass may override ``make_optimizer`` to train
    with its own optimizer; the record then contains the name of the subclass.
    """

    phases: Annotated[
        tuple[Phase, ...],
        Hyper(
            "One or more phases.",
            Valid(_is_several, "a tuple of one or more phases", tuple),
            flag=False,
        ),
    ]
    batch_size: Annotated[int, Hyper("Images in a step of each seed.", whole())] = 256
    optimizer: Annotated[
        str, Hyper("Name of an optimizer of optax.", choices=names)
    ] = "sgd"
    options: Annotated[
        Options,
        Hyper(
            """Options of the optimizer as JSON, such as '{"b1": 0.95}'.""",
            Valid(_is_mapping, "a dictionary"),
            flag="optimizer_args",
            more="Its rate and weight decay are not among them.",
        ),
    ] = dataclasses.field(default_factory=dict, hash=False)
    momentum: Annotated[float, Hyper("Momentum of SGD; 0: none.", SHARE)] = 0.9
    nesterov: Annotated[bool, Hyper("Use Nesterov's momentum in SGD.")] = False
    restart_momentum: Annotated[
        bool,
        Hyper("Each phase starts SGD with a momentum buffer of zeros.", flag=False),
    ] = False
    weight_decay: Annotated[
        float,
        Hyper(
            "Weight decay: decoupled if the optimizer supports it, else an L2 penalty.",
            float32(),
            more="See ``optimizers.make_optimizer``.",
        ),
    ] = 0.0
    decay: Annotated[
        Literal["all", "kernels"],
        Hyper(
            "Parameters that decay: all, or only kernels, without norms and biases.",
            more="Kernels are the parameters with two or more axes.",
        ),
    ] = "all"
    groups: Annotated[
        tuple[Group, ...],
        Hyper(
            "Groups of parameters with their own rate and decay.",
            Valid(_is_sequence, "a tuple of Groups", tuple),
            flag=False,
            more="A parameter belongs to the first group that matches.",
        ),
    ] = ()
    freeze_norms: Annotated[
        bool,
        Hyper(
            "Batch norms with frozen parameters normalise with their running "
            "statistics and do not update them.",
            flag=False,
        ),
    ] = True
    clip_norm: Annotated[
        float | None,
        Hyper("Scale gradients with a larger norm to this.", float32(1e-30)),
    ] = None
    accumulate: Annotated[
        int,
        Hyper(
            "Number of steps whose mean gradient makes one optimizer step.",
            whole(),
            more="The rates are those of a batch that is larger by this factor.",
        ),
    ] = 1
    ema: Annotated[
        float,
        Hyper(
            "Evaluate a moving average of the variables that keeps this share per "
            "step; 0: no average.",
            SHARE,
        ),
    ] = 0.0
    lookahead: Annotated[
        int,
        Hyper(
            "Continue from the moving average every so many steps; 0: never.",
            whole(0),
            more="Zhang et al. 2019, https://arxiv.org/abs/1907.08610; see "
            "``steps.lookahead_share``.",
        ),
    ] = 0
    lookahead_start: Annotated[
        float | None,
        Hyper(
            "Epoch from which the average of Lookahead is formed.",
            between(0, MAX_STEPS),
            flag=False,
            more="Until then the average is a copy of the variables, and afterwards "
            "training also continues from it at the end of every epoch (Jordan 2024). "
            "None: from the first step, and not at the ends of epochs.",
        ),
    ] = None
    label_smoothing: Annotated[
        float, Hyper("Share of the target that is spread over all classes.", SHARE)
    ] = 0.0
    augmentation: Annotated[
        Augmentation,
        Hyper(
            "Of the training images.",
            Valid(lambda value: isinstance(value, Augmentation), "an Augmentation"),
            flag=False,
        ),
    ] = Augmentation()  # noqa: RUF009 (frozen)
    tta: Annotated[
        Tta,
        Hyper(
            "Test-time augmentation: evaluate the mean logits of several views. flip: "
            "the image and its mirror image; multicrop: these, also moved by a pixel "
            "in two directions.",
            more="See ``augment.views``.",
        ),
    ] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for phase in self.phases:
            good = callable(getattr(phase, "schedule", None))
            require(good, "a phase", phase, "a phase such as Constant or Sgdr")
            LENGTH.check(getattr(phase, "epochs", None), "epochs of a phase")
        for group in self.groups:
            require(isinstance(group, Group), "a group", group, "a Group")
        if self.lookahead:
            must = "given together with ema, the average that training continues from"
            require(self.ema > 0, "lookahead", self.lookahead, must)
        elif self.lookahead_start is not None:
            must = "given together with lookahead"
            require(False, "lookahead_start", self.lookahead_start, must)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if self.has_own_optimizer:
            freeze = self._freezes[0] if any(self._freezes) else None
            must = "left out, because the recipe has a custom optimizer"
            require(freeze is None, "freeze of a phase", freeze, must)
            restarts = self.restart_momentum
            require(not restarts, "restart_momentum", restarts, must)
            return
        if self.optimizer != "sgd" and (self.momentum, self.nesterov) != (0.9, False):
            raise UserError(
                f"momentum={self.momentum} and nesterov={self.nesterov} are options of "
                f"sgd; give the options of {self.optimizer} instead"
            )
        if self.restart_momentum and self.optimizer != "sgd":
            raise UserError(
                f"restart_momentum is true and the optimizer is {self.optimizer}; it "
                "needs sgd"
            )
        if self.optimizer != "sgd" or self.options:
            check_options(self.optimizer, self._options)

    @property
    def has_own_optimizer(self) -> bool:
        """Whether a subclass makes the optimizer."""
        return type(self).make_optimizer is not Recipe.make_optimizer

    @property
    def epochs(self) -> float:
        """Total length of all phases."""
        return plain(sum(phase.epochs for phase in self.phases))

    def count_steps(self, steps_per_epoch: int) -> int:
        """Returns the total length in steps.

        Raises:
          UserError: int32 cannot hold the number of steps.
        """
        if self.epochs * steps_per_epoch > MAX_STEPS:
            raise UserError(
                f"{self.epochs} epochs of {steps_per_epoch} steps are more than "
                f"{MAX_STEPS} steps; lower the epochs, or raise batch_size"
            )
        return sum(self._phase_steps(steps_per_epoch))

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate at each step of the whole recipe.

        Raises:
          UserError: int32 cannot hold the number of steps.
        """
        self.count_steps(steps_per_epoch)
        if self.accumulate == 1 or self.has_own_optimizer:
            return chain_schedules(
                [phase.schedule(steps_per_epoch) for phase in self.phases],
                self._phase_steps(steps_per_epoch),
            )
        # As for a batch that is larger by this factor. A phase begins with the first
        # group of steps that begins in it.
        every = self.accumulate
        ends = itertools.accumulate(self._phase_steps(steps_per_epoch), initial=0)
        groups = itertools.pairwise(-(-end // every) for end in ends)
        large = chain_schedules(
            [_of_groups(phase, steps_per_epoch, every) for phase in self.phases],
            [stop - start for start, stop in groups],
        )
        return lambda step: large(jnp.asarray(step) // every)

    def _phase_steps(self, steps_per_epoch: int) -> list[int]:
        return count_steps([phase.epochs for phase in self.phases], steps_per_epoch)

    def stretched(self, epochs: float) -> "Recipe":
        """Returns a recipe of the same shape with a total length of ``epochs``.

        Raises:
          UserError: a custom phase has no ``stretched`` method.
        """
        for phase in self.phases:
            good = callable(getattr(phase, "stretched", None))
            require(good, "a phase", phase, "one that has stretched(factor)")
        factor = epochs / self.epochs
        phases: tuple[Any, ...] = self.phases
        phases = tuple(phase.stretched(factor) for phase in phases)
        start = self.lookahead_start
        start = None if start is None else start * factor
        return dataclasses.replace(self, phases=phases, lookahead_start=start)

    def stages(self, steps_per_epoch: int) -> list[Stage]:
        """Returns the stages of the phases, in steps.

        Phases that differ only in their rates share one, unless the momentum restarts.
        """
        sizes = [getattr(phase, "image_size", None) for phase in self.phases]
        return make_stages(
            self._phase_steps(steps_per_epoch),
            self._freezes,
            sizes,
            merge=not self.restart_momentum,
        )

    @property
    def _freezes(self) -> list[str | None]:
        """The pattern of the parameters that each phase freezes."""
        return [getattr(phase, "freeze", None) for phase in self.phases]

    def make_optimizer(
        self, schedule: optax.Schedule, stages: Sequence[Stage] = ()
    ) -> optax.GradientTransformation:
        """Makes the optimizer of all parameters.

        Args:
          schedule: the learning rate at each step of training, usually
            ``self.schedule(...)``.
          stages: of the recipe, if phases freeze parameters or restart the momentum.
        """
        every = self.accumulate
        changes = any(stage.freeze is not None for stage in stages)

        def of_kind(kind: Kind) -> optax.GradientTransformation:
            def rate(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
                return kind.rate * schedule(jnp.asarray(count) * every)

            def make(schedule: optax.Schedule) -> optax.GradientTransformation:
                decay = self.weight_decay * kind.decay
                return make_optimizer(self.optimizer, self._options, schedule, decay)

            scaled = schedule if kind.rate == every == 1 else rate
            return paused(make, scaled, kind.spans) if kind.spans else make(scaled)

        def kind_of(path: str, leaf: jax.Array) -> Kind | None:
            group = group_of(self.groups, path)
            spans = spans_of(path, stages, every) if changes else None
            if group.frozen or spans == ():
                return None
            decays = self.decay == "all" or leaf.ndim > 1
            return Kind(group.rate, group.decay * decays, spans)

        def check(paths: list[str]) -> None:
            patterns = [group.pattern for group in self.groups]
            patterns += [stage.freeze for stage in stages if stage.freeze is not None]
            check_patterns(paths, patterns)
            for stage in stages or [Stage(0, 1, None)]:
                if all(self.is_frozen(path, stage) for path in paths):
                    pattern = stage.freeze or patterns[0]
                    raise UserError(
                        f"every parameter is frozen, by the pattern {pattern!r} among "
                        f"others; leave some of {', '.join(paths)} to be trained"
                    )
            if changes and not any(spans_of(path, stages, every) for path in paths):
                raise UserError(
                    f"accumulate is {every}: phases freeze every parameter before it "
                    "is trained for so many steps; lower it"
                )

        tx = of_kind(Kind(1.0, True))
        if self.groups or self.decay != "all" or changes:
            tx = by_kind(kind_of, of_kind, check)
        if self.restart_momentum:
            starts = [-(-stage.start // every) for stage in stages[1:]]
            tx = with_restarts(tx, starts)
        if self.clip_norm is not None:
            tx = optax.chain(optax.clip_by_global_norm(self.clip_norm), tx)
        if every > 1:
            tx = optax.MultiSteps(tx, every).gradient_transformation()
        return tx

    def is_frozen(self, path: str, stage: Stage | None = None) -> bool:
        """Returns whether a parameter is frozen by its group or in a stage."""
        by_stage = stage is not None and stage.freezes(path)
        return by_stage or group_of(self.groups, path).frozen

    @property
    def _options(self) -> Options:
        if self.optimizer != "sgd":
            return self.options
        momentum = self.momentum or None
        return {"momentum": momentum, "nesterov": self.nesterov, **self.options}

    @property
    def optimizer_in_words(self) -> str:
        """Description of the optimizer that ``make_optimizer`` makes."""
        if self.has_own_optimizer:
            return f"of {type(self).__name__}"
        extras: dict[str, Any] = dict(self.options)
        if self.optimizer == "sgd":
            extras = {"momentum": self.momentum, "Nesterov": self.nesterov, **extras}
            extras |= {"momentum restarted by each phase": self.restart_momentum}
        decay = "weight decay" if self.decay == "all" else "weight decay of kernels"
        extras |= {decay: self.weight_decay, "gradients clipped at": self.clip_norm}
        extras |= {"steps accumulated": self.accumulate if self.accumulate > 1 else 0}
        extras |= {"moving average": self.ema, "Lookahead every": self.lookahead}
        extras |= {"from epoch": self.lookahead_start}
        words = [
            name if value is True else f"{name} {_number(value)}"
            for name, value in extras.items()
            if value
        ]
        words += [
            f"{group.pattern} frozen"
            if group.frozen
            else f"{group.pattern} at {group.rate:g} times the rate"
            + _decay_in_words(group.decay)
            for group in self.groups
        ]
        name = "SGD" if self.optimizer == "sgd" else self.optimizer
        return ", ".join([name, *words])

    def __str__(self) -> str:
        def words_of(phase: Any) -> str:
            words, pattern = in_words(str(phase)), getattr(phase, "freeze", None)
            if size := getattr(phase, "image_size", None):
                words += f" on {size} x {size} pixels"
            return f"{words} with {pattern} frozen" if pattern else words

        return ", then ".join(words_of(phase) for phase in self.phases)


def _of_groups(phase: Any, steps_per_epoch: int, every: int) -> optax.Schedule:
    """Returns the rates of a phase at each group of so many steps."""
    with contextlib.suppress(UserError):  # a part of the phase may be too short
        if steps_per_epoch % every == 0:
            return phase.schedule(steps_per_epoch // every)
        if type(phase) in PHASES.values():  # these take any number of steps
            return phase.schedule(steps_per_epoch / every)
    schedule = phase.schedule(steps_per_epoch)
    return lambda group: schedule(jnp.asarray(group) * every)


def _decay_in_words(factor: float) -> str:
    if factor in (0, 1):
        return "" if factor else " without decay"
    return f" and {factor:g} times the decay"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
