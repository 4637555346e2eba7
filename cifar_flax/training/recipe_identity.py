"""What a recipe trains with, as a checksum."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cifar_flax.definitions import Definition, hyperparameters
from cifar_flax.identity import digest
from cifar_flax.models.program import Program, digest_programs
from cifar_flax.training.phases import PHASES
from cifar_flax.training.recipes import Recipe


def identify(recipe: Recipe, steps_per_epoch: int, params: Any) -> Program:
    """Returns what a recipe trains with.

    Hyperparameters with their defaults do not count, so that a hyperparameter of a
    later version does not change the checksum. The programs of a custom optimizer and
    of the rates of custom phases count.

    Args:
      recipe: as trained, with its rates.
      steps_per_epoch: number of batches of the training split.
      params: shapes of the parameters of a replica.
    """
    plain = digest(essence(recipe))
    code = custom_programs(recipe, steps_per_epoch, params)
    if code is None:
        return Program(plain)
    return Program(digest([plain, code.sha256]), code.unknown)


def essence(value: Any) -> Any:
    """Returns a definition as plain values, without those that are defaults."""
    if isinstance(value, Definition):
        every: Any = type(value)
        fields = {
            name: getattr(value, name)
            for name, one in hyperparameters(every).items()
            if getattr(value, name) != one.default
        }
        return {"": type(value).__name__} | {n: essence(v) for n, v in fields.items()}
    if isinstance(value, tuple | list):
        return [essence(one) for one in value]
    if isinstance(value, Mapping):
        return {name: essence(one) for name, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value).__qualname__  # custom code, whose program counts


def custom_programs(
    recipe: Recipe, steps_per_epoch: int, params: Any
) -> Program | None:
    """Returns what the custom code of a recipe computes; None without such code."""
    ours = {Recipe, *PHASES.values()}
    if {type(one) for one in (recipe, *recipe.phases)} <= ours:
        return None
    schedule = recipe.schedule(steps_per_epoch)
    stages = recipe.stages(steps_per_epoch)
    given = () if recipe.has_own_optimizer else (stages,)
    tx = recipe.make_optimizer(schedule, *given)
    rates = jax.make_jaxpr(schedule)(jnp.int32(0))
    init, state = jax.make_jaxpr(tx.init, return_shape=True)(params)
    update = jax.make_jaxpr(tx.update)(params, state, params)
    return digest_programs([rates, init, update], "the recipe")
