"""Makes the recipe that the settings of a run describe."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.models import MODELS
from cifar_flax.runs.flag_text import as_text
from cifar_flax.training.checks import MAX_FLOAT, MIN_FLOAT
from cifar_flax.training.named_recipes import NAMES, models_of, own_name, recipe_for
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant, Phase, Sgdr
from cifar_flax.training.recipe_files import from_plain, read_recipe, to_plain
from cifar_flax.training.recipes import Recipe

if TYPE_CHECKING:
    from cifar_flax.runs.settings import Settings

# The value of --lr that stands for the rate of a range test.
AUTO = "auto"

# The recipe of a model that has none, before the settings are applied.
_ANY = Recipe((Constant(0.0, 1),))

# The settings in groups.
OF_CYCLES = ("cycles", "cycle_len", "cycle_mult")
_OF_OPTIMIZER = (
    *("batch_size", "momentum", "nesterov", "weight_decay", "decay", "clip_norm"),
    *("accumulate", "ema", "lookahead", "label_smoothing", "tta"),
)
OF_AUGMENTATION = (
    *("padding", "padding_mode", "flip", "alternate", "cutout", "brightness"),
    *("contrast", "mixup", "cutmix"),
)
OF_SCHEDULE = ("phases", "lr", "epochs", *OF_CYCLES)
OF_RECIPE = (
    *("recipe", *OF_SCHEDULE, "optimizer", "optimizer_args"),
    *(*_OF_OPTIMIZER, *OF_AUGMENTATION, "freeze"),
)


def choose_recipe(
    settings: "Settings", found_lr: float | None = None, of_ours: bool = True
) -> Recipe:
    """Returns the named recipe with the values that the settings replace.

    Args:
      settings: of the run.
      found_lr: the rate for ``--lr=auto``. While it is not known, the recipe has its
        own rates. The range test does not use them; it uses batch size, momentum and
        regularisation.
      of_ours: False if a program gives another model.
    """
    if settings.continue_from is not None and settings.lr == AUTO:
        raise UserError(
            "--lr=auto finds a rate for the start of training; give a number with "
            "--continue_from"
        )
    recipe = _named(settings, settings.model if of_ours else "")
    if settings.phases is not None and not 1 <= settings.phases <= len(recipe.phases):
        raise UserError(
            f"--phases={settings.phases}: the recipe of {settings.model} has "
            f"{len(recipe.phases)} phases"
        )
    recipe = dataclasses.replace(
        recipe,
        augmentation=dataclasses.replace(
            recipe.augmentation, **_given(settings, OF_AUGMENTATION)
        ),
        phases=_make_phases(settings, recipe.phases[: settings.phases], found_lr),
        **_given(settings, _OF_OPTIMIZER),
        **_given_optimizer(settings, recipe),
        **_given_freeze(settings, recipe),
    )
    if settings.epochs is not None and settings.lr is None:
        recipe = recipe.stretched(settings.epochs)
    if settings.continue_from is not None:
        recipe = _continued(recipe, settings.continue_from, settings.model_label)
    return recipe


def _named(settings: "Settings", model: str) -> Recipe:
    """Returns the recipe that the settings name, or the model's default."""
    name = settings.recipe or own_name(model)
    if name not in NAMES:
        return read_recipe(name)
    recipe = recipe_for(name, model)
    if recipe is not None:
        return recipe
    if name != "lesson" or model in MODELS:
        others = ", ".join(n for n in NAMES if recipe_for(n, model) is not None)
        raise UserError(
            f"--recipe={name} is for {', '.join(models_of(name))}; for "
            f"{model or 'a model of your own'} give {others} or a file"
        )
    return _ANY


def _continued(recipe: Recipe, folder: str, model: str) -> Recipe:
    """Returns the recipe of a finished run, followed by the phases of another.

    Raises:
      UserError: there is no such run, or the recipes differ in more than their phases.
    """
    config = records.read_config(pathlib.Path(folder))
    where = f"--continue_from={folder}"
    # A program may have given another model than that of its settings.
    if config.model in MODELS and config.model != model:
        raise UserError(
            f"{where}: that run has trained {config.model}, and this one trains {model}"
        )
    if config.recipe is None:
        raise UserError(f"{where}: it has no recipe that a run could continue")
    first = from_plain(config.recipe, where)
    whole = dataclasses.replace(recipe, phases=(*first.phases, *recipe.phases))
    before, now = to_plain(first), to_plain(whole)
    for name, value in now.items():
        if name not in ("phases", "tta") and before.get(name) != value:
            raise UserError(
                f"{where}: {name} was {before.get(name)} and is {value}; only the "
                "phases may change; --init_from starts anew with another recipe"
            )
    return whole


def _given(settings: "Settings", names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the values of those settings that are given."""
    values = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _given_freeze(settings: "Settings", recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of a recipe for what the settings freeze."""
    given: dict[str, Any] = {}
    if settings.freeze is not None:
        given["groups"] = (Group(settings.freeze, frozen=True), *recipe.groups)
    if settings.bn_freeze is False:
        given["freeze_norms"] = False
    return given


def _given_optimizer(settings: "Settings", recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of a recipe for the optimizer and its options."""
    name = settings.optimizer or recipe.optimizer
    of_sgd = _given(settings, ("momentum", "nesterov"))
    if name != "sgd" and of_sgd:
        given = next(iter(of_sgd))
        raise UserError(
            f"--{given}={as_text(of_sgd[given])} is an option of sgd and the optimizer "
            f"is {name}; give the options of {name} with --optimizer_args"
        )
    if name == recipe.optimizer:
        return {"options": {**recipe.options, **(settings.optimizer_args or {})}}
    plain = {"momentum": 0.9, "nesterov": False} if name != "sgd" else {}
    return {"optimizer": name, "options": settings.optimizer_args or {}, **plain}


def _make_phases(
    settings: "Settings", phases: tuple[Any, ...], found_lr: float | None
) -> tuple[Phase, ...]:
    cycles = list(_given(settings, OF_CYCLES))
    if cycles and settings.epochs is not None:
        raise UserError(
            f"--epochs is for the recipe or a constant rate and --{cycles[0]} for "
            "SGDR cycles; give one of them"
        )
    if cycles and settings.lr is None:
        raise UserError(f"--{cycles[0]} needs --lr, the rate to train with")
    if cycles and settings.cycles is None:
        raise UserError(f"--{cycles[0]} needs --cycles, the number of SGDR cycles")
    if settings.lr is None:
        return phases
    highest = max(phase.learning_rate for phase in phases)
    lr = found_lr or highest if isinstance(settings.lr, str) else settings.lr
    if lr != 0 and not MIN_FLOAT <= lr <= MAX_FLOAT:
        raise UserError(
            f"--lr={lr}: it must be {AUTO}, 0, or from {MIN_FLOAT:g} to {MAX_FLOAT:g}"
        )
    if settings.epochs is not None:
        return (Constant(lr, settings.epochs),)
    if settings.cycles is not None:
        given = _given(settings, ("cycle_len", "cycle_mult"))
        return (Sgdr(lr, settings.cycles, **given),)
    scale = lr / highest
    return tuple(
        dataclasses.replace(phase, learning_rate=phase.learning_rate * scale)
        for phase in phases
    )
