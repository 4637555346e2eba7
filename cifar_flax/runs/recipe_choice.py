"""Makes the recipe that the settings of a run describe."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Optional

from cifar_flax import records
from cifar_flax.data.augment import Augmentation
from cifar_flax.definitions import (
    MAX_FLOAT,
    MIN_FLOAT,
    Definition,
    Hyper,
    Hyperparameter,
    hyperparameters,
)
from cifar_flax.errors import UserError
from cifar_flax.models import MODELS
from cifar_flax.own_code import label_of
from cifar_flax.runs.flag_text import as_text
from cifar_flax.training.named_recipes import NAMES, models_of, own_name, recipe_for
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant, Phase, Sgdr
from cifar_flax.training.recipe_files import from_plain, to_plain
from cifar_flax.training.recipes import Recipe

# The value of --lr that stands for the rate of a range test.
AUTO = "auto"

# The recipe of a model that has none, before the settings are applied.
_ANY = Recipe((Constant(0.0, 1),))

Given = Mapping[str, Any]  # settings by name, without those that are not given


def flags_of(definition: Any) -> dict[str, Hyperparameter]:
    """Returns the hyperparameters of a definition that have a flag, by its name."""
    every = hyperparameters(definition).values()
    return {one.flag: one for one in every if one.flag is not None}


# The settings in groups.
OF_CYCLES = tuple(name for name in flags_of(Sgdr) if name.startswith("cycle"))
OF_AUGMENTATION = tuple(flags_of(Augmentation))
OF_SCHEDULE = ("phases", "lr", "epochs", *OF_CYCLES)
OF_RECIPE = ("recipe", *OF_SCHEDULE, *flags_of(Recipe), *OF_AUGMENTATION, "freeze")


def settings_of(definition: type[Definition], names: Iterable[str], unset: str) -> Any:
    """Makes a dataclass of settings, each of which may replace a hyperparameter.

    Args:
      definition: defines the hyperparameters.
      names: of the flags.
      unset: what a setting is if it is not given, for its help; empty: the default of
        the hyperparameter, if it has one.
    """
    fields: list[Any] = []
    for name in names:
        one = flags_of(definition)[name]
        text, words = one.about.help, unset or one.default
        if words is not dataclasses.MISSING:
            text = f"{text.removesuffix('.')} (default: {words})."
        about = Hyper(text, choices=one.about.choices, own=one.about.own)
        given = str if one.about.own else one.kind  # a record holds no function
        optional: Any = Optional[given]  # noqa: UP045 (a type that is not known here)
        kind: Any = Annotated[optional, about]
        fields.append((name, kind, dataclasses.field(default=None)))
    title = f"{definition.__name__}Settings"
    return dataclasses.make_dataclass(title, fields, frozen=True)


def choose_recipe(
    given: Given,
    model: str,
    file: Recipe | None,
    found_lr: float | None = None,
    of_ours: bool = True,
) -> Recipe:
    """Returns the named recipe with the values that the settings replace.

    Args:
      given: the settings.
      model: name of the model.
      file: the recipe of the file that the settings name; None if they name none.
      found_lr: the rate for ``--lr=auto``. While it is not known, the recipe has its
        own rates. The range test does not use them; it uses batch size, momentum and
        regularisation.
      of_ours: False if a program gives another model.
    """
    origin = given.get("continue_from")
    if origin is not None and given.get("lr") == AUTO:
        raise UserError(
            "--lr=auto finds a rate for the start of training; give a number with "
            "--continue_from"
        )
    recipe = file or _named(given.get("recipe"), model if of_ours else "")
    count = given.get("phases")
    if count is not None and not 1 <= count <= len(recipe.phases):
        raise UserError(
            f"--phases={count}: the recipe of {model} has {len(recipe.phases)} phases"
        )
    augmentation = _of_definition(given, Augmentation)
    fields = {
        **_of_definition(given, Recipe),
        **_given_optimizer(given, recipe),
        **_given_freeze(given, recipe),
        "augmentation": dataclasses.replace(recipe.augmentation, **augmentation),
        "phases": _make_phases(given, recipe.phases[:count], found_lr),
    }
    recipe = dataclasses.replace(recipe, **fields)
    if "epochs" in given and "lr" not in given:
        recipe = recipe.stretched(given["epochs"])
    if origin is not None:
        recipe = _continued(recipe, origin, label_of(model))
    return recipe


def _named(name: str | None, model: str) -> Recipe:
    """Returns the recipe of a name, or the model's default."""
    name = name or own_name(model)
    recipe = recipe_for(name, model)
    if recipe is not None:
        return recipe
    if name != "lesson" or model == "airbench":
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


def _given(given: Given, names: Iterable[str]) -> dict[str, Any]:
    """Returns those of the named settings that are given."""
    return {name: given[name] for name in names if name in given}


def _of_definition(given: Given, definition: type[Definition]) -> dict[str, Any]:
    """Returns the fields of a definition for which settings are given."""
    found = flags_of(definition).items()
    return {one.name: given[flag] for flag, one in found if flag in given}


def _given_freeze(given: Given, recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of a recipe for what the settings freeze."""
    fields: dict[str, Any] = {}
    if "freeze" in given:
        fields["groups"] = (Group(given["freeze"], frozen=True), *recipe.groups)
    if given.get("bn_freeze") is False:
        fields["freeze_norms"] = False
    return fields


def _given_optimizer(given: Given, recipe: Recipe) -> dict[str, Any]:
    """Returns the fields of a recipe for the optimizer and its options."""
    name = given.get("optimizer", recipe.optimizer)
    of_sgd = _given(given, ("momentum", "nesterov"))
    if name != "sgd" and of_sgd:
        first = next(iter(of_sgd))
        raise UserError(
            f"--{first}={as_text(of_sgd[first])} is an option of sgd and the optimizer "
            f"is {name}; give the options of {name} with --optimizer_args"
        )
    options = given.get("optimizer_args", {})
    if name == recipe.optimizer:
        return {"options": {**recipe.options, **options}}
    unused = {"momentum": 0.9, "nesterov": False} if name != "sgd" else {}
    return {"optimizer": name, "options": options, **unused}


def _make_phases(
    given: Given, phases: tuple[Any, ...], found_lr: float | None
) -> tuple[Phase, ...]:
    cycles, lr = list(_given(given, OF_CYCLES)), given.get("lr")
    if cycles and "epochs" in given:
        raise UserError(
            f"--epochs is for the recipe or a constant rate and --{cycles[0]} for "
            "SGDR cycles; give one of them"
        )
    if cycles and lr is None:
        raise UserError(f"--{cycles[0]} needs --lr, the rate to train with")
    if cycles and "cycles" not in given:
        raise UserError(f"--{cycles[0]} needs --cycles, the number of SGDR cycles")
    if lr is None:
        return phases
    highest = max(phase.learning_rate for phase in phases)
    lr = found_lr or highest if isinstance(lr, str) else lr
    if lr != 0 and not MIN_FLOAT <= lr <= MAX_FLOAT:
        raise UserError(
            f"--lr={lr}: it must be {AUTO}, 0, or from {MIN_FLOAT:g} to {MAX_FLOAT:g}"
        )
    if "epochs" in given:
        return (Constant(lr, given["epochs"]),)
    if cycles:
        return (Sgdr(lr, **_given(given, cycles)),)
    scale = lr / highest
    return tuple(
        dataclasses.replace(phase, learning_rate=phase.learning_rate * scale)
        for phase in phases
    )
