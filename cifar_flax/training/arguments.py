"""Checks the arguments of a trainer."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from cifar_flax.data import DataSpec, Split
from cifar_flax.data.dataset import check_images, check_labels
from cifar_flax.errors import UserError, one_line
from cifar_flax.training.phases import PHASES
from cifar_flax.training.recipes import Recipe

# The seeds that jax.random.key takes as int32.
SEED_RANGE = range(-(2**31), 2**31)

MOST_RATES = 2**20  # steps whose rates are checked


def fresh_seeds(seeds: Sequence[int], count: int) -> tuple[int, ...]:
    """Returns the seeds that follow the largest of some seeds."""
    return tuple(range(max(seeds) + 1, max(seeds) + 1 + count))


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Returns seeds as a tuple; raises a UserError unless they differ and are int32."""
    try:
        found = tuple(int(seed) for seed in seeds)
        if found != tuple(seeds):
            raise ValueError("not whole numbers")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--seeds={seeds}: give whole numbers, such as 0,1,2 (in Python a tuple)"
        ) from error
    if not found or len(set(found)) < len(found):
        raise UserError(
            f"--seeds={','.join(map(str, found))}: give one or more different numbers, "
            "such as 0,1,2"
        )
    if wrong := [seed for seed in found if seed not in SEED_RANGE]:
        raise UserError(
            f"--seeds={wrong[0]}: a seed must be from {SEED_RANGE[0]} to "
            f"{SEED_RANGE[-1]}"
        )
    return found


def check_recipe(recipe: Recipe, spec: DataSpec) -> None:
    """Raises a UserError if recipe and data are not valid or do not fit together."""
    if not isinstance(recipe, Recipe):
        raise UserError(f"the recipe is {recipe!r}; it must be a Recipe")
    if not isinstance(spec, DataSpec):
        kind = type(spec).__name__
        raise UserError(f"the spec is a {kind}; give splits.spec, a DataSpec")
    if spec.train_size < recipe.batch_size:
        raise UserError(
            f"batch_size is {recipe.batch_size}, but there are only "
            f"{spec.train_size} training images; lower it"
        )
    weights = recipe.class_weights
    if isinstance(weights, tuple) and len(weights) != spec.num_classes:
        raise UserError(
            f"class_weights has {len(weights)} numbers, and the data have "
            f"{spec.num_classes} classes; give one number for each class"
        )


def check_rates(recipe: Recipe, steps_per_epoch: int) -> None:
    """Raises a UserError if custom phases have learning rates that are not valid."""
    if all(type(phase) in PHASES.values() for phase in recipe.phases):
        return
    total = recipe.count_steps(steps_per_epoch)
    steps = np.linspace(0, total - 1, min(total, MOST_RATES)).astype(np.int32)
    names = ", ".join(dict.fromkeys(type(one).__name__ for one in recipe.phases))
    try:
        found = jax.vmap(recipe.schedule(steps_per_epoch))(steps)
        rates = np.broadcast_to(np.asarray(found), steps.shape)
        if rates.dtype.kind not in "fiu":
            raise TypeError(f"a rate is of the type {rates.dtype}")
    except Exception as error:  # a user's phase may raise anything
        raise UserError(
            f"the schedule of the phases ({names}) gives no rate for each step: "
            f"{one_line(error)}"
        ) from error
    valid = (rates >= 0) & np.isfinite(rates.astype(np.float32))
    if not valid.all():
        first = valid.argmin()
        raise UserError(
            f"the learning rate of step {steps[first]} is {rates[first]:g}, from the "
            f"phases ({names}); it must be a finite number, 0 or more"
        )


def check_trains(name: str, every: int, steps: int) -> None:
    """Raises a UserError if something that happens every so many steps never does."""
    if every > steps:
        raise UserError(
            f"{name} is {every}, but there are only {steps} steps, so nothing would be "
            "trained; lower it, or train for longer"
        )


def check_memory(spec: DataSpec, padding: int) -> None:
    """Raises a UserError if the device cannot hold the training images."""
    device = jax.local_devices()[0]
    # A CPU has no limit; the images are in its memory already.
    limit = (device.memory_stats() or {}).get("bytes_limit")
    height, width, channels = spec.image_shape
    size = (height + 2 * padding) * (width + 2 * padding) * channels + 4  # the label
    needed = spec.train_size * size
    if limit is not None and needed > limit:
        raise UserError(
            f"{spec.train_size:,} training images of {height} x {width} x {channels} "
            f"take {needed / 1e9:.2f} GB, and {device.device_kind} has "
            f"{limit / 1e9:.2f} GB for them; lower --train_size or --image_size"
        )


def check_split(what: str, split: Split, spec: DataSpec) -> None:
    """Raises a UserError if a split's images or labels are not as the data's."""
    if not isinstance(split, Split):
        raise UserError(f"the {what} is a {type(split).__name__}; give a Split")
    check_images(what, split.images, spec.image_shape)
    check_labels(what, split.labels, len(split), spec.num_classes)


def check_tree(what: str, tree: Any, wanted: Any) -> None:
    """Raises a UserError if a tree's arrays are not those that the program takes."""
    found, expected = (
        {
            path: (leaf.dtype, leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(one)
            if hasattr(leaf, "shape")
        }
        for one in (tree, wanted)
    )
    # Texts take longer than a small evaluation, so they are made of a difference only.
    if different := {path for path, _ in found.items() ^ expected.items()}:
        path = min(different, key=jax.tree_util.keystr)
        given, must = (
            f"{one[path][0]} {list(one[path][1])}" if path in one else None
            for one in (found, expected)
        )
        raise UserError(
            f"the {what} is not of this trainer: {jax.tree_util.keystr(path)} is "
            f"{given or 'missing'}; it must be {must or 'left out'}"
        )
