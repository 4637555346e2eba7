"""A recipe: how a model is trained, as data that can be printed and recorded."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from cifar_flax.data.augment import Augmentation, Tta
from cifar_flax.errors import UserError
from cifar_flax.training.checks import (
    MAX_STEPS,
    require,
    require_epochs,
    require_float,
    require_share,
    require_whole,
)
from cifar_flax.training.optimizers import (
    Group,
    Kind,
    Options,
    by_kind,
    check_options,
    check_patterns,
    group_of,
    make_optimizer,
)
from cifar_flax.training.phases import (
    Phase,
    count_steps,
    plain,
)
from cifar_flax.training.schedules import chain_schedules
from cifar_flax.training.stages import (
    Stage,
    make_stages,
    paused,
    spans_of,
    with_restarts,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Consecutive phases with one optimizer.

    The optimizer keeps its state from one phase to the next, unless
    ``restart_momentum`` is set. A subclass may override ``make_optimizer`` to train
    with its own optimizer; the record then contains the name of the subclass.

    Attributes:
      phases: one or more phases.
      batch_size: images in a step of each replica.
      optimizer: name of the optimizer in optax.
      options: options of the optimizer besides its rate and weight decay.
      momentum: momentum of SGD; 0 for none.
      nesterov: whether SGD uses Nesterov's momentum.
      restart_momentum: whether each phase starts SGD with a momentum buffer of zeros.
      weight_decay: see ``optimizers.make_optimizer``.
      decay: whether ``all`` parameters decay, or only ``kernels``: parameters with two
        or more axes, which excludes biases and norms.
      groups: groups of parameters with their own rate and decay; a parameter belongs to
        the first group that matches.
      freeze_norms: whether batch norms with frozen parameters normalise with their
        running statistics and do not update them.
      clip_norm: gradients with a larger norm over all parameters are scaled to it.
      accumulate: number of steps whose mean gradient makes one optimizer step.
      ema: share per step that the moving average of the variables keeps. With an
        average, evaluation uses it. 0: no average.
      lookahead: training continues from the moving average every so many steps (Zhang
        et al. 2019, https://arxiv.org/abs/1907.08610); see ``steps.lookahead_share``.
        0: never.
      label_smoothing: share of the target that is spread over all classes.
      augmentation: of the training images.
      tta: test-time augmentation; see ``augment.views``.
    """

    phases: tuple[Phase, ...]
    batch_size: int = 256
    optimizer: str = "sgd"
    options: Options = dataclasses.field(default_factory=dict)
    momentum: float = 0.9
    nesterov: bool = False
    restart_momentum: bool = False
    weight_decay: float = 0.0
    decay: Literal["all", "kernels"] = "all"
    groups: tuple[Group, ...] = ()
    freeze_norms: bool = True
    clip_norm: float | None = None
    accumulate: int = 1
    ema: float = 0.0
    lookahead: int = 0
    label_smoothing: float = 0.0
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 (frozen)
    tta: Tta = "none"

    def __post_init__(self):
        phases = self.phases
        several = isinstance(phases, tuple | list) and len(phases) > 0
        require(several, "phases", phases, "a tuple of one or more phases")
        for phase in phases:
            good = callable(getattr(phase, "schedule", None))
            require(good, "a phase", phase, "a phase such as Constant or Sgdr")
            require_epochs(getattr(phase, "epochs", None), "epochs of a phase")
        object.__setattr__(self, "phases", tuple(phases))
        object.__setattr__(self, "groups", tuple(self.groups))
        require_whole(self.batch_size, "batch_size")
        require_share(self.momentum, "momentum")
        require_float(self.weight_decay, "weight_decay")
        require_share(self.label_smoothing, "label_smoothing")
        require_share(self.ema, "ema")
        if self.lookahead:
            require_whole(self.lookahead, "lookahead")
            must = "given together with ema, the average that training continues from"
            require(self.ema > 0, "lookahead", self.lookahead, must)
        require_whole(self.accumulate, "accumulate")
        if self.clip_norm is not None:
            require_float(self.clip_norm, "clip_norm", least=1e-30)
        require(self.decay in ("all", "kernels"), "decay", self.decay, "all or kernels")
        for name in ("freeze_norms", "restart_momentum"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, value, "true or false")
        for group in self.groups:
            require(isinstance(group, Group), "a group", group, "a Group")
        good = isinstance(self.augmentation, Augmentation)
        require(good, "augmentation", self.augmentation, "an Augmentation")
        views = get_args(Tta)
        require(self.tta in views, "tta", self.tta, f"one of {', '.join(views)}")
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        if type(self).make_optimizer is not Recipe.make_optimizer:
            freeze = self._freezes[0] if any(self._freezes) else None
            must = "left out, because the recipe has a custom optimizer"
            require(freeze is None, "freeze of a phase", freeze, must)
            restarts = self.restart_momentum
            require(not restarts, "restart_momentum", restarts, must)
            return
        require(
            isinstance(self.options, Mapping), "options", self.options, "a dictionary"
        )
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
        return chain_schedules(
            [phase.schedule(steps_per_epoch) for phase in self.phases],
            self._phase_steps(steps_per_epoch),
        )

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
        return dataclasses.replace(self, phases=phases)

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
        if type(self).make_optimizer is not Recipe.make_optimizer:
            return f"of {type(self).__name__}"
        extras: dict[str, Any] = dict(self.options)
        if self.optimizer == "sgd":
            extras = {"momentum": self.momentum, "Nesterov": self.nesterov, **extras}
            extras |= {"momentum restarted by each phase": self.restart_momentum}
        decay = "weight decay" if self.decay == "all" else "weight decay of kernels"
        extras |= {decay: self.weight_decay, "gradients clipped at": self.clip_norm}
        extras |= {"steps accumulated": self.accumulate if self.accumulate > 1 else 0}
        extras |= {"moving average": self.ema, "Lookahead every": self.lookahead}
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
            words, pattern = str(phase), getattr(phase, "freeze", None)
            if size := getattr(phase, "image_size", None):
                words += f" on {size} x {size} pixels"
            return f"{words} with {pattern} frozen" if pattern else words

        return ", then ".join(words_of(phase) for phase in self.phases)


def _decay_in_words(factor: float) -> str:
    if factor in (0, 1):
        return "" if factor else " without decay"
    return f" and {factor:g} times the decay"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
