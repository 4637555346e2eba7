"""Optuna's part in a search: what to try next, and which trial to prune.

The study is made anew from the records of the trials each time. Nothing of Optuna's is
stored, and the same records give the same proposal.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cifar_flax.errors import UserError
from cifar_flax.sweeps.space import CHOICES, Dimension, Space, Values

# This many trials are drawn before others are proposed by their results.
STARTUP = 10

# Trials are pruned once this many others of their model have finished, and not by
# their first epoch, nor in the first quarter of their epochs, when rates are compared
# rather than what they lead to.
PRUNED_FROM, FIRST_EPOCH, FIRST_SHARE = 5, 2, 0.25


@dataclasses.dataclass(frozen=True)
class Tried:
    """What a trial has reached so far.

    Attributes:
      values: of the trial.
      reached: its validation accuracy after each epoch.
      value: that after the last one; None if it is not finished.
      is_pruned: whether it was ended early.
    """

    values: Values
    reached: Sequence[float]
    value: float | None = None
    is_pruned: bool = False


def check_optuna(flag: str) -> None:
    """Raises a UserError if Optuna is not installed.

    Args:
      flag: what needs it.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            f"{flag} needs Optuna, which is not installed: "
            "pip install 'cifar-flax[search]'"
        )


def propose(space: Space, tried: Sequence[Tried], key: str) -> Values:
    """Returns the point that a tree-structured Parzen estimator tries next.

    See Bergstra and others, 2011. Trials that are not finished count as bad, so that
    several proposals at a time differ.

    Args:
      space: the space.
      tried: all trials so far, in their order.
      key: seeds the random numbers.
    """
    with _optuna() as optuna:
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4])
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=STARTUP, constant_liar=True
        )
        study, distributions = _study(optuna, space, tried, sampler)
        found = study.ask(distributions).params
    return {one.name: _read(one, found[one.name]) for one in space.dimensions}


def falls_behind(space: Space, tried: Sequence[Tried], number: int) -> bool:
    """Returns whether the best accuracy so far of a trial is below the median.

    The median is that of the finished trials at the same epoch.

    Args:
      space: the space.
      tried: all trials so far.
      number: of the trial among them, from 0.
    """
    with _optuna() as optuna:
        study, _ = _study(optuna, space, tried, None)
        pruner = optuna.pruners.MedianPruner(PRUNED_FROM, FIRST_EPOCH)
        return bool(pruner.prune(study, study.trials[number]))


@contextlib.contextmanager
def _optuna() -> Iterator[Any]:
    """Yields the package, which prints and warns nothing of its own meanwhile."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield optuna


def _study(
    optuna: Any, space: Space, tried: Sequence[Tried], sampler: Any
) -> tuple[Any, Mapping[str, Any]]:
    distributions = {one.name: _distribution(optuna, one) for one in space.dimensions}
    study = optuna.create_study(direction="maximize", sampler=sampler)
    states = optuna.trial.TrialState
    for one in tried:
        state = states.PRUNED if one.is_pruned else states.RUNNING
        params = {d.name: _write(d, one.values[d.name]) for d in space.dimensions}
        study.add_trial(
            optuna.trial.create_trial(
                state=state if one.value is None else states.COMPLETE,
                value=one.value,
                params=params,
                distributions=distributions,
                intermediate_values=dict(enumerate(one.reached, start=1)),
            )
        )
    return study, distributions


def _distribution(optuna: Any, one: Dimension) -> Any:
    if one.kind == CHOICES:  # by their numbers, because a choice may be a table
        kind = optuna.distributions.CategoricalDistribution
        return kind(list(range(len(one.values))))
    kinds = optuna.distributions
    kind = kinds.IntDistribution if one.is_integer else kinds.FloatDistribution
    return kind(*one.values, log=one.is_log)


def _write(one: Dimension, value: Any) -> Any:
    return one.values.index(value) if one.kind == CHOICES else value


def _read(one: Dimension, value: Any) -> Any:
    return one.values[value] if one.kind == CHOICES else one.settled(value)
