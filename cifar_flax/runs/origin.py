"""Finds where a run starts: with new variables, or from another run."""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax import records
from cifar_flax.data import Split
from cifar_flax.errors import UserError, one_line
from cifar_flax.identity import run_of
from cifar_flax.models.program import shapes_of
from cifar_flax.own_code import is_own
from cifar_flax.runs.checkpoint import open_checkpoints
from cifar_flax.runs.inference import Run
from cifar_flax.runs.recipe_choice import OF_SCHEDULE
from cifar_flax.runs.recorded_settings import differences
from cifar_flax.runs.settings import Settings
from cifar_flax.training import processes
from cifar_flax.training.optimizers import path_in_words
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """The point from which a run begins or continues.

    Attributes:
      state: of all replicas.
      seconds: time spent on training so far.
      lines: lines of metrics so far.
      losses: losses of the steps so far, float32 [R, S].
    """

    state: TrainState
    seconds: float
    lines: list[records.LogPoint]
    losses: np.ndarray

    @classmethod
    def new(cls, state: TrainState) -> "Start":
        """Returns the start before the first step."""
        return cls(state, 0.0, [], np.empty((len(state.step), 0), np.float32))


def told_by_first(trainer: Trainer, start: Start | None) -> Start:
    """Returns the start that the first of several processes has found.

    Args:
      trainer: of the run.
      start: the start in the first process; None in the others.
    """
    if processes.count() == 1:
        assert start is not None
        return start
    given = start or Start.new(trainer.blank())
    words = dataclasses.replace(given.state, key=jax.random.key_data(given.state.key))
    words, seconds = processes.of_first((words, given.seconds))
    state = dataclasses.replace(words, key=jax.random.wrap_key_data(words.key))
    if start is not None:
        return dataclasses.replace(start, state=state)
    # The other processes write no records and need no losses.
    losses = np.full((len(trainer.seeds), int(state.step.max())), np.nan, np.float32)
    return Start(state, float(seconds), [], losses)


def first_start(
    trainer: Trainer,
    settings: Settings,
    origin: Run | None,
    config: records.Config,
    split: Split,
) -> Start:
    """Returns where a run begins: with new variables, or at the end of another run.

    Args:
      trainer: of the run.
      settings: of the run.
      origin: the other run, if there is one; see ``load_origin``.
      config: of the run.
      split: the training images.

    Raises:
      UserError: the other run does not exist, or nothing of it fits.
    """
    if settings.continue_from is not None:
        return _continued(trainer, pathlib.Path(settings.continue_from), config)
    if origin is not None:
        return Start.new(_from_variables(trainer, settings, origin, config, split))
    return Start.new(trainer.init(split))


# Settings that may differ between a run and the run that it continues.
_MAY_DIFFER = (
    *("recipe", "init_from", "continue_from", "tta", "lowering"),
    *OF_SCHEDULE,
)


def _continued(trainer: Trainer, folder: pathlib.Path, config: records.Config) -> Start:
    """Returns the end of another run; its records become the first of this run."""
    where, before = f"--continue_from={folder}", records.read_config(folder)
    if frozen := [one for one in trainer.stages if one.freeze is not None]:
        raise UserError(
            f"{where}: a phase freezes {frozen[0].freeze!r}, and the optimizer of such "
            "a run cannot go on with other phases; --init_from takes over only the "
            "variables"
        )
    if trainer.recipe.lookahead:
        logger.warning(
            "%s: Lookahead depends on the length of the whole training, so the result "
            "differs from that of one longer run",
            where,
        )
    result = records.read_result(folder)
    if result is None:
        raise UserError(
            f"{where}: that run is not finished; continue it with --workdir={folder} "
            "--resume"
        )
    was = {n: v for n, v in before.settings.items() if n not in _MAY_DIFFER}
    now = {n: v for n, v in config.settings.items() if n not in _MAY_DIFFER}
    different = differences(now, was)
    if before.dataset.fingerprint != config.dataset.fingerprint:
        different.append(f"the data set was {before.dataset.source}")
    if different:
        raise UserError(
            f"{where}: {'; '.join(different)}; --init_from takes over only the "
            "variables"
        )
    place, run = folder / records.CHECKPOINTS, run_of(before)
    with open_checkpoints(place, owner=False, run=run) as checkpoints:
        if not checkpoints.is_sound(result.steps):
            raise UserError(
                f"{where}: it has no valid checkpoint of its last step, "
                f"{result.steps}; --workdir={folder} --resume repeats the lost steps"
            )
        state, seconds = checkpoints.restore(trainer.blank(), result.steps)
    logger.info("continuing from step %d of %s", result.steps, folder)
    losses = read_losses(folder, result.steps, len(trainer.seeds))
    return Start(state, seconds, records.read_metrics(folder), losses)


def read_losses(folder: pathlib.Path, steps: int, replicas: int) -> np.ndarray:
    """Reads the losses of the first steps of a run, float32 [R, S].

    Losses that are lost are NaN.

    Args:
      folder: of the run.
      steps: S.
      replicas: R.
    """
    losses = np.full((replicas, steps), np.nan, np.float32)
    if not steps:
        return losses
    try:
        found = records.read_steps(folder).losses
        if len(found) != replicas:
            raise UserError(
                f"{folder / records.STEPS} has {len(found)} replicas, and the run has "
                f"{replicas}"
            )
    except UserError as error:
        logger.warning("%s; the losses of the first %d steps are lost", error, steps)
        return losses
    count = min(steps, found.shape[1])
    losses[:, :count] = found[:, :count]
    return losses


def _from_variables(
    trainer: Trainer,
    settings: Settings,
    source: Run,
    config: records.Config,
    split: Split,
) -> TrainState:
    """Returns the initial state with those variables of another run that fit.

    A replica takes the variables of the other run's replica with the same seed, or of
    its first replica. If the classes are others, the last layer is new.
    """
    names, head = config.dataset.class_names, set[str]()
    if names != source.class_names:
        head = _head_of(trainer, settings, config)
    picked = jnp.asarray(
        [source.seeds.index(s) if s in source.seeds else 0 for s in trainer.seeds]
    )
    fresh = trainer.init(split).trained
    theirs = dict(_arrays(source.variables))
    new: list[str] = []

    def choose(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path_in_words(path)
        found = theirs.get(name)
        fits = found is not None and found.shape[1:] == leaf.shape[1:]
        if not fits or name in head:
            new.append(name)
            return leaf
        return jnp.asarray(found)[picked]

    variables = jax.tree_util.tree_map_with_path(choose, fresh)
    total = len(jax.tree.leaves(fresh))
    if len(new) == total:
        raise UserError(
            f"--init_from={settings.init_from}: none of its arrays fits"
            + (f", and its classes are {_short(source.class_names)}" if head else "")
        )
    if head:
        logger.info(
            "the classes were %s and are %s, so the last layer is new",
            *(_short(source.class_names), _short(names)),
        )
    logger.info(
        "starting from %d of %d arrays of %s (step %d)%s",
        total - len(new),
        total,
        settings.init_from,
        source.step,
        f"; new: {', '.join(new)}" if new else "",
    )
    return trainer.start_from(variables)


def _head_of(trainer: Trainer, settings: Settings, config: records.Config) -> set[str]:
    """Returns the paths of the arrays whose shapes depend on the number of classes.

    For a model with a fixed number of classes, they are those of its last layer.
    """
    model, shape = trainer.model, trainer.spec.image_shape
    other, more = None, trainer.spec.num_classes + 1
    if "model_fields" not in config.settings:  # the settings name the model
        other = settings.make_model(more)
    elif hasattr(model, "num_classes"):
        other = model.clone(num_classes=more)
    ours = {name: leaf.shape for name, leaf in _arrays(shapes_of(model, shape))}
    if other is not None:
        theirs = {n: leaf.shape for n, leaf in _arrays(shapes_of(other, shape))}
        if head := {name for name in ours if theirs.get(name) != ours[name]}:
            return head
    last = [row.path for row in trainer.layers if row.num_params][-1]
    prefix = "/".join(["params", *last.split("."), ""])
    return {name for name in ours if name.startswith(prefix) or not last}


def _short(names: Sequence[str]) -> str:
    return one_line(", ".join(names), 60)


def _arrays(variables: Any) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree.leaves_with_path(variables)
    return [(path_in_words(path), leaf) for path, leaf in leaves]


def load_origin(settings: Settings, model: nn.Module | None) -> Run | None:
    """Loads the run from which a run starts; None if it starts anew.

    Args:
      settings: of the run.
      model: the model that a program gave, if any.

    Raises:
      UserError: there is no such run, or it has trained another model.
    """
    flag = "init_from" if settings.init_from is not None else "continue_from"
    folder = settings.init_from or settings.continue_from
    if folder is None:
        return None
    config = records.read_config(pathlib.Path(folder))
    given: nn.Module | str | None = settings.model if is_own(settings.model) else None
    name = settings.model_label
    if model is not None:
        given, name = model, type(model).__name__
        if hasattr(model, "num_classes"):  # the other run may have had other classes
            given = model.clone(num_classes=len(config.dataset.class_names))
    if config.model != name:
        raise UserError(
            f"--{flag}={folder}: that run has trained {config.model}, and this one "
            f"trains {name}"
        )
    return Run.load(folder, model=given)
