"""Writes and reads what a run will record, before its first step.

A record that cannot be read again is found here, and not after hours of training. The
state is written with the names and types of its arrays, but with one number in each.
"""

import copy
import math
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.json_files import MAX_TEXT, check_survives, encode
from cifar_flax.models import MODELS
from cifar_flax.records import MAX_ARRAYS
from cifar_flax.runs.checkpoint import open_checkpoints, structure_of
from cifar_flax.runs.journal import WORST_BYTES
from cifar_flax.runs.outcome import outcome
from cifar_flax.runs.subject import Subject, with_recipe
from cifar_flax.training.evaluation import Evaluation
from cifar_flax.training.lr_range import RangeSettings
from cifar_flax.training.state import TrainState
from cifar_flax.training.trainer import Trainer

# The structures of states that this process has written and read.
_KNOWN: set[tuple[str, ...]] = set()


def rehearse(subject: Subject, trainer: Trainer, config: records.Config) -> None:
    """Checks that the records and checkpoints of a run can be read.

    Args:
      subject: what the run trains.
      trainer: the trainer of the run, or with ``--lr=auto`` that of its range test.
      config: the content of ``config.json``.

    Raises:
      UserError: something cannot be read as it is written; the message names it.
    """
    config = copy.deepcopy(config)
    if config.recipe is None:  # its rates are not known yet
        config = with_recipe(config, trainer)
    check_survives(config, records.CONFIG)
    state, count = trainer.template, len(trainer.seeds)
    _check_state(subject, state)
    ends = np.full(count, trainer.total_steps), (None,) * count
    logits = np.empty((count, 0, trainer.spec.num_classes))
    metrics = {metric.name: np.zeros(count) for metric in subject.metrics}
    test = Evaluation(logits, np.zeros(count), np.zeros(count), metrics)
    also = dict.fromkeys(subject.also_test, test)
    result = outcome(subject, trainer, config, ends, test, also, 1.0)
    check_survives(result, records.RESULT)
    _check_sizes(subject, trainer)


def rehearse_range_test(
    subject: Subject, trainer: Trainer, config: records.Config, settings: RangeSettings
) -> None:
    """Checks that the records of a range test can be read; see ``rehearse``."""
    check_survives(config, records.CONFIG)
    seeds, steps = list(trainer.seeds), settings.steps_for(trainer)
    curve: list[list[float | None]] = [[1 / 3]] * len(seeds)
    record = records.RangeTest(
        model=subject.name,
        seeds=seeds,
        num_steps=steps,
        rates=[1 / 3],
        losses=curve,
        smoothed=curve,
        seconds=1.0,
        compile_seconds=1.0,
    )
    check_survives(record, records.RANGE_TEST)
    _check_size(
        records.RANGE_TEST,
        steps * (2 * len(seeds) + 1) * len("0.0123456789012345, "),
        MAX_TEXT,
        f"{steps} steps of {len(seeds)} seeds; lower --num_steps",
    )


def _check_state(subject: Subject, shapes: TrainState) -> None:
    """Raises a UserError if a checkpoint of a state could not be read."""
    structure = tuple(structure_of(shapes))
    leaves, tree = jax.tree.flatten(shapes)
    pairs = zip(structure, leaves, strict=True)
    if empty := [name for name, leaf in pairs if 0 in leaf.shape]:
        raise UserError(
            f"{empty[0]} of the state has no elements, and a checkpoint cannot hold "
            "it; leave it out of the model or of the optimizer"
        )
    ours = subject.model is None and subject.settings.model in MODELS
    if (ours and subject.recipe is None) or structure in _KNOWN:
        return
    small = [_small(leaf, number) for number, leaf in enumerate(leaves)]
    state: TrainState = jax.tree.unflatten(tree, small)
    with tempfile.TemporaryDirectory() as folder, open_checkpoints(folder) as saved:
        try:
            saved.save(state)
            read, _ = saved.restore(state)
        except UserError as error:
            problem = str(error).replace(folder, records.CHECKPOINTS)
            raise UserError(
                f"the state of the model and its optimizer cannot be saved: {problem}"
            ) from error
    found = jax.tree.leaves(read)
    for name, mine, theirs in zip(structure, small, found, strict=True):
        if not _equal(mine, theirs):
            raise UserError(
                f"a checkpoint cannot hold {name}: it is read as another array; give "
                "it a name without dots"
            )
    _KNOWN.add(structure)


def _small(leaf: Any, number: int) -> jax.Array:
    """Returns an array of one element instead of a large one."""
    shape = (1,) * len(leaf.shape)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.split(jax.random.key(number), shape)
    return jnp.full(shape, number % 100).astype(leaf.dtype)


def _equal(one: jax.Array, other: jax.Array) -> bool:
    if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
        one, other = map(jax.random.key_data, (one, other))
    return one.dtype == other.dtype and np.array_equal(one, other)


def _check_sizes(subject: Subject, trainer: Trainer) -> None:
    """Raises a UserError if a record becomes larger than what is read."""
    seeds, steps = len(trainer.seeds), trainer.total_steps
    epochs, spec = math.ceil(trainer.recipe.epochs), trainer.spec
    numbers = [1 / 3] * seeds
    line = records.LogPoint(
        step=steps,
        epoch=epochs,
        learning_rate=1 / 3,
        train_loss=numbers,
        train_accuracy=numbers,
        val_loss=numbers,
        val_accuracy=numbers,
        val_metrics={metric.name: numbers for metric in subject.metrics},
        images_per_second=1e5 / 3,
        seconds=1e5 / 3,
    )
    fewer = "train fewer seeds in a run"
    _check_size(
        records.METRICS,
        epochs * len(encode(line)),
        MAX_TEXT,
        f"{epochs} epochs of {seeds} seeds; lower the epochs, or {fewer}",
    )
    _check_size(
        records.STEPS,
        4 * (seeds + 1) * steps,
        MAX_ARRAYS,
        f"{steps} steps of {seeds} seeds; lower the epochs, or {fewer}",
    )
    sizes: dict[str | None, int] = {None: len(subject.splits.test)}
    sizes |= {name: len(one.split) for name, one in subject.also_test.items()}
    classes = spec.num_classes
    for name, images in sizes.items():
        _check_size(
            records.predictions_of(name),
            4 * images * (seeds * classes + 2) + WORST_BYTES,
            MAX_ARRAYS,
            f"{seeds} seeds, {images} test images and {classes} classes; {fewer}",
        )


def _check_size(name: str, size: int, limit: int, why: str) -> None:
    if size > limit:
        raise UserError(
            f"{name} would take {size / 2**20:.0f} MiB, more than the {limit >> 20} "
            f"that are read, for {why}"
        )
