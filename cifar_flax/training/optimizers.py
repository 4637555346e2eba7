"""Makes optimizers of optax by name, for all parameters or for groups of them."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from cifar_flax.definitions import (
    PATTERN,
    Definition,
    Hyper,
    Valid,
    float32,
    require,
)
from cifar_flax.errors import UserError, one_line
from cifar_flax.own_code import is_code, label_of_code, load_code
from cifar_flax.training.muon import muon
from cifar_flax.training.stages import Spans

# These optimizers need more than gradients, the loss and a schedule.
_OTHERS = (
    *("dpsgd", "galore", "lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "sm3"),
    "sophia",
)

# These must be evaluated at other values than the parameters.
SCHEDULE_FREE = ("schedule_free_adamw", "schedule_free_sgd")

FROZEN = "frozen"  # label of the parameters that are not trained

Options = Mapping[str, bool | int | float | str | None]


# Makes an optimizer from its schedule and options.
Factory = Callable[..., optax.GradientTransformation]

# (average, variables, opt_state, step) -> average; see ``Recipe``.
Average = Callable[[Any, Any, Any, jax.Array], Any]

_FACTOR = float32()


@dataclasses.dataclass(frozen=True)
class Group(Definition):
    """A group of parameters with its own rate and weight decay."""

    pattern: Annotated[
        str,
        Hyper(
            "A regular expression that matches in the paths of the parameters, such as "
            "``head/kernel``.",
            PATTERN,
            label="the pattern of a group",
        ),
    ]
    rate: Annotated[
        float,
        Hyper("Factor of the learning rate.", _FACTOR, label="the rate of a group"),
    ] = 1.0
    decay: Annotated[
        bool | float,
        Hyper(
            "Whether the parameters decay, or a factor of the weight decay.",
            Valid(
                lambda value: isinstance(value, bool) or _FACTOR.test(value),
                _FACTOR.words,
            ),
            label="the decay of a group",
        ),
    ] = True
    frozen: Annotated[
        bool,
        Hyper(
            "Whether the parameters keep their initial values.",
            label="frozen of a group",
        ),
    ] = False


@functools.cache
def names() -> tuple[str, ...]:
    """Returns the names of the optimizers of optax that need only a learning rate."""
    found = (
        name
        for module in (optax, optax.contrib)
        for name, value in vars(module).items()
        if callable(value) and name[0].islower() and not name.startswith("scale_by")
        if name not in _OTHERS and _parameters(value)[:1] == ["learning_rate"]
    )
    return tuple(sorted(found))


def options_of(name: str | Factory) -> list[str]:
    """Returns the options of an optimizer besides learning rate and weight decay.

    Raises:
      UserError: no optimizer has that name.
    """
    options = _parameters(_factory(name))[1:]
    return [option for option in options if option != "weight_decay"]


def check_options(name: str | Factory, options: Options) -> None:
    """Raises a UserError if an optimizer does not accept the options."""
    known, title = options_of(name), label_of_code(name)
    if wrong := [option for option in options if option not in known]:
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise UserError(f"{title} has no option {wrong[0]}; {has}")
    for option, value in options.items():
        plain = isinstance(value, bool | int | float | str | None)
        require(plain, f"{option} of {title}", value, "a number, a text, true or false")
    if not isinstance(name, str):
        return  # it may ask for the parameters of a certain network
    problem = _problem_with(name, tuple(sorted(options.items())))
    if problem is not None:
        raise UserError(f"{title} cannot be used with {dict(options)}: {problem}")


@functools.lru_cache(1_000)  # a sweep checks the same options thousands of times
def _problem_with(name: str, options: tuple[tuple[str, Any], ...]) -> str | None:
    """Returns what an optimizer says against its options in one line, or None."""
    shapes = {"kernel": (2, 2), "bias": (2,)}

    def update() -> Any:
        params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        tx = make_optimizer(name, dict(options), lambda step: 0.1 + 0 * step, 0.1)
        extended = optax.with_extra_args_support(tx)
        return extended.update(params, tx.init(params), params, value=jnp.zeros(()))

    try:
        jax.eval_shape(update)
    except Exception as error:  # the checks of optax raise different types
        return one_line(error)
    return None


def schedule_free(average: Any, variables: Any, opt_state: Any, step: Any) -> Any:
    """Returns the variables to evaluate of a schedule-free optimizer; an ``Average``.

    ``x = (y - (1 - b1) z) / b1`` of the parameters y and the state's z; groups of
    parameters have states of their own (Defazio et al. 2024,
    https://arxiv.org/abs/2405.15682).
    """
    del average, step

    def is_state(leaf: Any) -> bool:
        return isinstance(leaf, optax.contrib.ScheduleFreeState)

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    params = variables["params"]
    for state in filter(is_state, jax.tree.leaves(opt_state, is_leaf=is_state)):
        params = jax.tree.map(
            lambda z, y, b1=state.b1: y if is_masked(z) else (y - (1 - b1) * z) / b1,
            *(state.z, params),
            is_leaf=is_masked,
        )
    return {**variables, "params": params}


def make_optimizer(
    name: str | Factory,
    options: Options,
    schedule: optax.Schedule,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Makes an optimizer of optax, or a user's own.

    If the optimizer has decoupled weight decay, ``weight_decay`` is its factor:
    ``parameter -= rate * weight_decay * parameter``. Otherwise ``weight_decay`` is the
    factor of an L2 penalty: ``gradient += weight_decay * parameter``.

    Args:
      name: one of ``names()``, or a function of the schedule and the options.
      options: see ``options_of``.
      schedule: the learning rate at each step.
      weight_decay: see above.
    """
    factory = _factory(name)
    decays = "weight_decay" in _parameters(factory)
    given = {"weight_decay": weight_decay} if decays else {}
    tx = factory(schedule, **options, **given)
    if not isinstance(tx, optax.GradientTransformation):
        must = "an optax.GradientTransformation"
        raise TypeError(
            f"it gives an object of type {type(tx).__name__}; it must give {must}"
        )
    return tx if decays else optax.chain(optax.add_decayed_weights(weight_decay), tx)


@dataclasses.dataclass(frozen=True)
class Kind:
    """How parameters are trained; parameters of several groups may share a kind.

    Attributes:
      rate: factor of the learning rate.
      decay: factor of the weight decay.
      spans: steps of the optimizer in which the parameters are trained; None: all.
    """

    rate: float
    decay: float
    spans: Spans | None = None

    def __str__(self) -> str:
        # Checkpoints contain this text in the names of the optimizer's state.
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
    """Makes an optimizer that trains each kind of parameters in its own way.

    Args:
      kind_of: returns the kind of a parameter from its path and its array; None if the
        parameter is frozen.
      make: makes the optimizer of a kind.
      check: called with the paths of all parameters; it may raise a UserError.
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

    return optax.GradientTransformationExtraArgs(
        lambda params: of(params).init(params),
        lambda grads, state, params=None, **extra: of(grads).update(
            grads, state, params, **extra
        ),
    )


def check_patterns(paths: list[str], patterns: Sequence[str]) -> None:
    """Raises a UserError if a pattern matches in no parameter's path."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(
                f"the pattern {pattern!r} is found in no parameter's path; the paths "
                f"are {', '.join(paths)}"
            )


def group_of(groups: Sequence[Group], path: str) -> Group:
    """Returns the first group that matches a path, or a default group."""
    return next((g for g in groups if re.search(g.pattern, path)), Group(""))


def path_in_words(path: tuple) -> str:
    """Returns the path of a parameter, such as ``stage0_block0/conv/kernel``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _parameters(factory: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(factory).parameters)
    except ValueError:  # functions written in C have no signature
        return []


def _factory(name: str | Factory) -> Factory:
    if not isinstance(name, str) or is_code(name):
        return load_code(name, "optimizer").function
    if name not in names():
        known = ", ".join(names())
        raise UserError(f"optimizer is {name!r}; it must be one of {known}")
    if name == "muon":
        return muon  # with less computation than optax's
    return getattr(optax, name, None) or getattr(optax.contrib, name)
