"""Where a run starts from: fresh variables, or those of another run."""

import logging
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.models.own import is_own
from cifar_flax.runs.inference import Run
from cifar_flax.runs.settings import Settings
from cifar_flax.training.optimizers import path_in_words
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Trainer

logger = logging.getLogger(__name__)


def first_state(
    trainer: Trainer, settings: Settings, model: nn.Module | None
) -> TrainState:
    """The state before the first step; of ``--init_from``, what fits of that run.

    A replica starts from the other run's replica of the same seed, or else its first.

    Args:
      trainer: of the run.
      settings: of the run.
      model: that a program gave, if any.

    Raises:
      UserError: there is no such run, or nothing of it fits.
    """
    if settings.init_from is None:
        return trainer.init()
    source = _load(settings, model)
    picked = jnp.asarray(
        [source.seeds.index(s) if s in source.seeds else 0 for s in trainer.seeds]
    )
    fresh = trainer.init().trained
    theirs = dict(_arrays(source.variables))
    new: list[str] = []

    def choose(path: tuple, leaf: jax.Array) -> jax.Array:
        name = path_in_words(path)
        found = theirs.get(name)
        if found is None or found.shape[1:] != leaf.shape[1:]:
            new.append(name)
            return leaf
        return jnp.asarray(found)[picked]

    variables = jax.tree_util.tree_map_with_path(choose, fresh)
    total = len(jax.tree.leaves(fresh))
    if len(new) == total:
        raise UserError(f"--init_from={settings.init_from}: no array of it fits")
    logger.info(
        "starting from %d of %d arrays of %s (step %d)%s",
        total - len(new),
        total,
        settings.init_from,
        source.step,
        f"; new: {', '.join(new)}" if new else "",
    )
    return trainer.start_from(variables)


def _arrays(variables: Any) -> list[tuple[str, jax.Array]]:
    leaves = jax.tree.leaves_with_path(variables)
    return [(path_in_words(path), leaf) for path, leaf in leaves]


def _load(settings: Settings, model: nn.Module | None) -> Run:
    assert settings.init_from is not None
    config = records.read_config(pathlib.Path(settings.init_from))
    given: nn.Module | str | None = settings.model if is_own(settings.model) else None
    name = settings.model_label
    if model is not None:
        given, name = model, type(model).__name__
        if hasattr(model, "num_classes"):  # the other run may have had others
            given = model.clone(num_classes=len(config.dataset.class_names))
    if config.model != name:
        raise UserError(
            f"--init_from={settings.init_from}: that run has trained {config.model}, "
            f"and this one trains {name}"
        )
    return Run.load(settings.init_from, model=given)
