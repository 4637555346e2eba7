"""A recipe: how a model is trained, as data that can be printed and recorded."""

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cifar_flax.definitions import (
    LENGTH,
    MAX_STEPS,
    plain,
    require,
)
from cifar_flax.errors import UserError, in_words
from cifar_flax.own_code import OwnCode, is_code, label_of_code, load_code
from cifar_flax.training.losses import LOSSES, check_args
from cifar_flax.training.optimizers import (
    SCHEDULE_FREE,
    Average,
    Group,
    Kind,
    Options,
    by_kind,
    check_options,
    check_patterns,
    group_of,
    make_optimizer,
    schedule_free,
)
from cifar_flax.training.phases import PHASES, count_steps
from cifar_flax.training.recipe_fields import RecipeFields
from cifar_flax.training.schedules import chain_schedules
from cifar_flax.training.stages import (
    Stage,
    make_stages,
    paused,
    spans_of,
    with_restarts,
)


@dataclasses.dataclass(frozen=True)
class Recipe(RecipeFields):
    """Consecutive phases with one optimizer.

    The optimizer keeps its state from one phase to the next, unless
    ``restart_momentum`` is set. Own functions may take the place of the optimizer, of
    the loss and of others. A subclass may override ``make_optimizer`` to train with its
    own optimizer for given rates; the record then contains the name of the subclass.
    """

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
        own = label_of_code(self.average or self.optimizer)
        must = f"0, because {own} gives the variables to evaluate"
        require(not (self.ema and self._gives_average), "ema", self.ema, must)
        if self.loss_args and self.loss in LOSSES:
            check_args(str(self.loss), self.loss_args)
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if self.has_own_optimizer:
            freeze = self._freezes[0] if any(self._freezes) else None
            must = "left out, because the recipe has a custom optimizer"
            require(freeze is None, "freeze of a phase", freeze, must)
            restarts = self.restart_momentum
            require(not restarts, "restart_momentum", restarts, must)
            return
        name = label_of_code(self.optimizer)
        if self.optimizer != "sgd" and (self.momentum, self.nesterov) != (0.9, False):
            raise UserError(
                f"momentum={self.momentum} and nesterov={self.nesterov} are options of "
                f"sgd; give the options of {name} instead"
            )
        if self.restart_momentum and self.optimizer != "sgd":
            raise UserError(
                f"restart_momentum is true and the optimizer is {name}; it needs sgd"
            )
        unknown = isinstance(self.optimizer, str) and is_code(self.optimizer)
        if not unknown and (self.optimizer != "sgd" or self.options):
            check_options(self.optimizer, self._options)

    def code(self) -> dict[str, Any]:
        """Returns the own code that the recipe names or holds, by its flag."""
        given = {n: getattr(self, n) for n in ("optimizer", "loss", "average")}
        given |= {"augment": self.augmentation.augment}
        return {name: value for name, value in given.items() if is_code(value)}

    def with_code(self, loaded: Mapping[str, OwnCode] | None = None) -> "Recipe":
        """Returns the recipe with loaded functions in place of their names.

        Args:
          loaded: the functions by their flags; None: this loads them.

        Raises:
          UserError: the code cannot be loaded.
        """
        named = self.code()
        if not named:
            return self
        if loaded is None:
            loaded = {name: load_code(value, name) for name, value in named.items()}
        own = {name: loaded[name] for name in named}
        augmentation = self.augmentation
        if "augment" in own:
            augment = own.pop("augment")
            augmentation = dataclasses.replace(augmentation, augment=augment)
        changed: dict[str, Any] = {**own, "augmentation": augmentation}
        return dataclasses.replace(self, **changed)

    @property
    def own_average(self) -> Average | None:
        """The function that gives the variables to evaluate; None without one."""
        if self.average is not None:
            return load_code(self.average, "average")
        return schedule_free if self._is_schedule_free else None

    @property
    def has_average(self) -> bool:
        """Whether evaluation reads other variables than those that are trained."""
        return bool(self.ema) or self._gives_average

    @property
    def _gives_average(self) -> bool:
        return self.average is not None or self._is_schedule_free

    @property
    def _is_schedule_free(self) -> bool:
        return self.optimizer in SCHEDULE_FREE and not self.has_own_optimizer

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
    def loss_in_words(self) -> str:
        """Description of the loss."""
        words = [label_of_code(self.loss)]
        words += [f"{name} {value}" for name, value in self.loss_args.items()]
        if self.class_weights is not None:
            weights = self.class_weights
            each = [] if isinstance(weights, str) else [f"{w:g}" for w in weights]
            words += [f"class weights {', '.join(each) or weights}"]
        if self.label_smoothing:
            words += [f"label smoothing {self.label_smoothing:g}"]
        return ", ".join(words)

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
        if self.average is not None:
            words += [f"evaluated at {label_of_code(self.average)}"]
        name = "SGD" if self.optimizer == "sgd" else label_of_code(self.optimizer)
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
