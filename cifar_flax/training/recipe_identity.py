"""What a recipe trains with, as a checksum."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cifar_flax.data import DataSpec
from cifar_flax.definitions import Definition, hyperparameters
from cifar_flax.errors import UserError, one_line
from cifar_flax.identity import digest
from cifar_flax.jax_settings import known_settings
from cifar_flax.models.program import Program, digest_programs
from cifar_flax.own_code import OwnCode, label_of_code
from cifar_flax.training.losses import Batch, loss_function
from cifar_flax.training.phases import PHASES
from cifar_flax.training.recipes import Recipe


def identify(
    recipe: Recipe, steps_per_epoch: int, variables: Any, spec: DataSpec
) -> Program:
    """Returns what a recipe trains with.

    Hyperparameters with their defaults do not count, so that a hyperparameter of a
    later version does not change the checksum. The programs of own code and of the
    rates of custom phases count.

    Args:
      recipe: as trained, with its rates.
      steps_per_epoch: number of batches of the training split.
      variables: their shapes, of a replica.
      spec: of the data.

    Raises:
      UserError: own code fails, or gives something else than it must.
    """
    recipe = recipe.with_code()
    plain = digest(essence(recipe))
    code = custom_programs(recipe, steps_per_epoch, variables, spec)
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
    if isinstance(value, OwnCode):
        return "own code"  # whose program counts
    if isinstance(value, Mapping):
        return {name: essence(one) for name, one in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return type(value).__qualname__  # custom code, whose program counts


@known_settings()
@jax.default_matmul_precision(None)  # it decides bits and not what is computed
def custom_programs(
    recipe: Recipe, steps_per_epoch: int, variables: Any, spec: DataSpec
) -> Program | None:
    """Returns what the custom code of a recipe computes; None without such code."""
    ours, code = {Recipe, *PHASES.values()}, recipe.code()
    programs = []
    is_ours = {type(one) for one in (recipe, *recipe.phases)} <= ours
    if not is_ours or "optimizer" in code:
        own = code.get("optimizer")
        with naming("optimizer", own) if own else contextlib.nullcontext():
            programs += _of_optimizer(recipe, steps_per_epoch, variables["params"])
    if "loss" in code:
        programs += _of_loss(recipe, spec)
    if "augment" in code:
        programs += _of_augmentation(recipe, spec)
    if "average" in code:
        programs += _of_average(recipe, steps_per_epoch, variables)
    return digest_programs(programs, "the recipe") if programs else None


def _of_optimizer(recipe: Recipe, steps_per_epoch: int, params: Any) -> list[Any]:
    schedule, tx = _optimizer(recipe, steps_per_epoch)
    rates = jax.make_jaxpr(schedule)(jnp.int32(0))
    init, state = jax.make_jaxpr(tx.init, return_shape=True)(params)
    value = jax.ShapeDtypeStruct((), jnp.float32)
    update = jax.make_jaxpr(optax.with_extra_args_support(tx).update)
    updated = update(params, state, params, value=value)
    program = updated.jaxpr
    used = [program.outvars, *(equation.invars for equation in program.eqns)]
    if not any(program.invars[-1] in one for one in used):
        # It does not use the loss, which older versions did not give it.
        updated = jax.make_jaxpr(tx.update)(params, state, params)
    return [rates, init, updated]


def _optimizer(
    recipe: Recipe, steps_per_epoch: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    schedule = recipe.schedule(steps_per_epoch)
    stages = () if recipe.has_own_optimizer else (recipe.stages(steps_per_epoch),)
    return schedule, recipe.make_optimizer(schedule, *stages)


def _images(recipe: Recipe, spec: DataSpec, size: int | None) -> Any:
    height, width, channels = spec.image_shape
    shape = (recipe.batch_size, size or height, size or width, channels)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _of_loss(recipe: Recipe, spec: DataSpec) -> list[Any]:
    count = recipe.batch_size
    logits = jax.ShapeDtypeStruct((count, spec.num_classes), jnp.float32)
    labels: Any = jax.ShapeDtypeStruct((count,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    stages = recipe.stages(spec.train_size // count)

    def gradients(logits: jax.Array, batch: Batch) -> Any:
        def total(logits: jax.Array) -> Any:
            each = loss_function(recipe.loss)(logits, batch, **recipe.loss_args)
            must = f"one number for each image, float32 [{count}]"
            check_code(each, must, logits[:, 0])
            return each.astype(jnp.float32).sum(), each

        return jax.grad(total, has_aux=True)(logits)

    with naming("loss", recipe.loss):
        return [
            jax.make_jaxpr(gradients)(
                logits, Batch(_images(recipe, spec, size), labels, labels, key)
            )
            for size in dict.fromkeys(stage.image_size for stage in stages)
        ]


def _of_augmentation(recipe: Recipe, spec: DataSpec) -> list[Any]:
    images = _images(recipe, spec, None)
    labels = jax.ShapeDtypeStruct((recipe.batch_size,), jnp.int32)
    function: Any = recipe.augmentation.augment

    def varied(key: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        found = function(key, images, labels)
        check_code(found, f"images, float32 {list(images.shape)}", images)
        return found

    with naming("augmentation", function):
        key = jax.eval_shape(lambda: jax.random.key(0))
        return [jax.make_jaxpr(varied)(key, images, labels)]


def _of_average(recipe: Recipe, steps_per_epoch: int, variables: Any) -> list[Any]:
    _, tx = _optimizer(recipe, steps_per_epoch)
    state = jax.eval_shape(tx.init, variables["params"])
    step = jax.ShapeDtypeStruct((), jnp.int32)

    def average(before: Any, now: Any, state: Any, step: jax.Array) -> Any:
        assert recipe.own_average is not None
        found = recipe.own_average(before, now, state, step)
        check_code(found, "the variables in the form in which it gets them", now)
        return found

    with naming("average", recipe.average):
        return [jax.make_jaxpr(average)(variables, variables, state, step)]


def check_code(found: Any, must: str, wanted: Any) -> None:
    """Raises a TypeError unless own code gives arrays as wanted, of any float type."""

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (jnp.shape(leaf), _kind(leaf)), tree)

    if shapes(found) != shapes(wanted):
        leaves = jax.tree.leaves(found)
        given = f"{len(leaves)} arrays"
        if len(leaves) == 1:
            given = f"{jnp.result_type(leaves[0])} {list(jnp.shape(leaves[0]))}"
        raise TypeError(f"it gives {given}; it must give {must}")


def _kind(leaf: Any) -> Any:
    kind = jnp.result_type(leaf)
    return "float" if jnp.issubdtype(kind, jnp.floating) else kind


@contextlib.contextmanager
def naming(what: str, code: Any) -> Iterator[None]:
    """Turns errors of own code into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the code may raise anything
        text = f"{type(error).__name__}: {one_line(error)}"
        if isinstance(error, jax.errors.TracerArrayConversionError):
            text = "it calls NumPy, which cannot be compiled; use jax.numpy instead"
        name = label_of_code(code)
        raise UserError(f"the {what} {name} cannot be used: {text}") from error
