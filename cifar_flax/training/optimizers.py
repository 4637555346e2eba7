"""Optimizers of optax by name, for all parameters or for groups of them."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from cifar_flax.errors import UserError, one_line
from cifar_flax.training.checks import require, require_float, require_pattern
from cifar_flax.training.stages import Spans

# They take more than gradients and a schedule, or have to be evaluated elsewhere than
# at their parameters.
_OTHERS = (
    *("dpsgd", "galore", "lbfgs", "momo", "momo_adam", "noisy_sgd", "optimistic_adam"),
    *("rprop", "schedule_free_adamw", "schedule_free_sgd", "sm3", "sophia"),
)

FROZEN = "frozen"  # label of the parameters that never move

Options = Mapping[str, bool | int | float | str | None]


@dataclasses.dataclass(frozen=True)
class Group:
    """Parameters that are trained in their own way.

    Attributes:
      pattern: a regular expression that is found in their paths, such as
        ``head/kernel``.
      rate: factor of the learning rate.
      decay: whether their weights decay; or the factor by which, of ``weight_decay``.
      frozen: they keep their values.
    """

    pattern: str
    rate: float = 1.0
    decay: bool | float = True
    frozen: bool = False

    def __post_init__(self):
        require_pattern(self.pattern, "the pattern of a group")
        require_float(self.rate, "the rate of a group")
        if not isinstance(self.decay, bool):
            require_float(self.decay, "the decay of a group")
        good = isinstance(self.frozen, bool)
        require(good, "frozen of a group", self.frozen, "true or false")


@functools.cache
def names() -> tuple[str, ...]:
    """The optimizers that can be named: those of optax that take a learning rate."""
    found = (
        name
        for module in (optax, optax.contrib)
        for name, value in vars(module).items()
        if callable(value) and name[0].islower() and not name.startswith("scale_by")
        if name not in _OTHERS and _parameters(value)[:1] == ["learning_rate"]
    )
    return tuple(sorted(found))


def options_of(name: str) -> list[str]:
    """What can be said of an optimizer beside its rate and its decay.

    Raises:
      UserError: there is none of that name.
    """
    ours = ("learning_rate", "weight_decay")
    return [option for option in _parameters(_factory(name)) if option not in ours]


def check_options(name: str, options: Options) -> None:
    """UserError where an optimizer cannot be made with options, or not be used here."""
    known = options_of(name)
    if wrong := [option for option in options if option not in known]:
        raise UserError(
            f"{name} has no option {wrong[0]}; its options are {', '.join(known)}"
        )
    for option, value in options.items():
        plain = isinstance(value, bool | int | float | str | None)
        require(plain, f"{option} of {name}", value, "a number, a text, true or false")
    problem = _problem_with(name, tuple(sorted(options.items())))
    if problem is not None:
        raise UserError(f"{name} cannot be used with {dict(options)}: {problem}")


@functools.cache  # a sweep asks thousands of times for the same
def _problem_with(name: str, options: tuple[tuple[str, Any], ...]) -> str | None:
    """What an optimizer says of options, in a line; None where it takes them."""
    shapes = {"kernel": (2, 2), "bias": (2,)}

    def update() -> Any:
        params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        tx = make_optimizer(name, dict(options), lambda step: 0.1 + 0 * step, 0.1)
        return tx.update(params, tx.init(params), params)

    try:
        jax.eval_shape(update)
    except Exception as error:  # whatever its own checks raise
        return one_line(error)
    return None


def make_optimizer(
    name: str, options: Options, schedule: optax.Schedule, weight_decay: float
) -> optax.GradientTransformation:
    """An optimizer of optax.

    Where it has weight decay of its own, that is decoupled from the gradient,
    ``parameter -= rate * weight_decay * parameter``, this is what ``weight_decay`` is;
    else it is an L2 penalty, ``gradient += weight_decay * parameter``.

    Args:
      name: one of ``names()``.
      options: see ``options_of``.
      schedule: of the learning rate.
      weight_decay: see above.
    """
    given: dict[str, Any] = dict(options)
    factory = _factory(name)
    if name == "muon":  # all of a kernel but its outputs is one side of a matrix
        given["muon_weight_dimension_numbers"] = _matrices
    if "weight_decay" in _parameters(factory):
        return factory(schedule, **given, weight_decay=weight_decay)
    return optax.chain(
        optax.add_decayed_weights(weight_decay), factory(schedule, **given)
    )


@dataclasses.dataclass(frozen=True)
class Kind:
    """How parameters are trained, of one group or of several.

    Attributes:
      rate: factor of the learning rate.
      decay: factor of the weight decay.
      spans: steps of the optimizer in which they are trained; None for all of them.
    """

    rate: float
    decay: float
    spans: Spans | None = None

    def __str__(self) -> str:
        # Part of the names of an optimizer's state in checkpoints.
        words = f"{self.rate:g} {'decay' if self.decay else 'no decay'}"
        if self.decay not in (0, 1):
            words = f"{words} times {self.decay:g}"
        spans = self.spans or ()
        return " ".join([words, *(f"{start}-{stop}" for start, stop in spans)])


def by_kind(
    kind_of: Callable[[str, jax.Array], Kind | None],
    make: Callable[[Kind], optax.GradientTransformation],
    check: Callable[[list[str]], None],
) -> optax.GradientTransformation:
    """A transformation for each kind of parameters.

    Args:
      kind_of: the kind of a parameter, by its path and its array; None: it is frozen.
      make: the transformation of a kind.
      check: is given the paths of all parameters, and may raise a UserError.
    """

    def of(params: Any) -> optax.GradientTransformation:
        leaves = jax.tree.leaves_with_path(params)
        paths = [path_in_words(path) for path, _ in leaves]
        check(paths)
        kinds = [
            kind_of(path, leaf) for path, (_, leaf) in zip(paths, leaves, strict=True)
        ]
        transforms = {str(kind): make(kind) for kind in kinds if kind is not None}
        labels = [FROZEN if kind is None else str(kind) for kind in kinds]
        tree = jax.tree.unflatten(jax.tree.structure(params), labels)
        return optax.partition({**transforms, FROZEN: optax.set_to_zero()}, tree)

    return optax.GradientTransformation(
        lambda params: of(params).init(params),
        lambda grads, state, params=None: of(grads).update(grads, state, params),
    )


def check_patterns(paths: list[str], patterns: Sequence[str]) -> None:
    """UserError where a pattern is found in no parameter's path."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"the pattern {pattern!r} is found in no parameter's path; the paths "
                f"are {', '.join(paths)}"
            )


def group_of(groups: Sequence[Group], path: str) -> Group:
    """The first group whose pattern is found in a path; a plain one without any."""
    return next((g for g in groups if re.search(g.pattern, path)), Group(""))


def path_in_words(path: tuple) -> str:
    """The place of a parameter, as ``stage0_block0/conv/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _parameters(factory: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(factory).parameters)
    except ValueError:  # of what C has made
        return []


def _factory(name: str) -> Callable[..., optax.GradientTransformation]:
    if name not in names():
        known = ", ".join(names())
        raise UserError(f"optimizer is {name!r}; it must be one of {known}")
    return getattr(optax, name, None) or getattr(optax.contrib, name)


def _matrices(params: Any) -> Any:
    def numbers_of(leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if leaf.ndim < 2:
            return None
        *reduced, output = range(leaf.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(reduced), output)

    return jax.tree.map(numbers_of, params)
