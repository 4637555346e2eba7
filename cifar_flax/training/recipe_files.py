"""Converts recipes to plain values, and reads them from TOML files.

A file has the fields of ``Recipe``. Fields that it leaves out have their defaults:

    optimizer = "adamw"
    weight_decay = 0.01
    decay = "kernels"

    [[phases]]
    kind = "onecycle"
    learning_rate = 3e-3
    epochs = 10

    [[groups]]
    pattern = "^stem/"
    rate = 0.1

    [augmentation]
    padding = 2
"""

import dataclasses
import pathlib
import tomllib
from typing import Any

import tomli_w

from cifar_flax.data.augment import Augmentation
from cifar_flax.definitions import as_plain, hyperparameters
from cifar_flax.errors import UserError, in_words, one_line
from cifar_flax.files import expand_user, open_plain
from cifar_flax.identity import OF_RECIPE
from cifar_flax.own_code import code_in_words, is_own, whole_name
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import PHASES, Constant
from cifar_flax.training.recipes import Recipe

MAX_BYTES = 2**16  # far more than any recipe needs


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """Converts a recipe to numbers, strings, lists and dictionaries."""
    names = [field.name for field in dataclasses.fields(recipe)]
    known, fields = hyperparameters(Recipe), {}
    for name in names:
        value = getattr(recipe, name, None)
        fields[name] = value if name in known else as_plain(value)
        if name in known and known[name].about.own:
            choices = known[name].about.choices
            fields[name] = code_in_words(value, choices() if choices else ())
    if recipe.optimizer != "sgd":  # only SGD has these
        for name in ("momentum", "nesterov", "restart_momentum"):
            del fields[name]
    weights = recipe.class_weights
    return fields | {
        "phases": [_phase_to_plain(phase) for phase in recipe.phases],
        "optimizer": recipe.optimizer_in_words
        if recipe.has_own_optimizer
        else fields["optimizer"],
        "options": dict(recipe.options),
        "loss_args": dict(recipe.loss_args),
        "class_weights": list(weights) if isinstance(weights, tuple) else weights,
        "groups": [dataclasses.asdict(group) for group in recipe.groups],
        "augmentation": {
            field.name: code_in_words(getattr(recipe.augmentation, field.name))
            for field in dataclasses.fields(recipe.augmentation)
        },
    }


def from_plain(plain: Any, where: str) -> Recipe:
    """Makes a recipe from plain values.

    Args:
      plain: values as from ``to_plain``; missing ones have their defaults.
      where: the source of the values, for error messages.

    Raises:
      UserError: a value is not valid; the message names it.
    """
    values = dict(_table(plain, where))
    phases = _tables(values.pop("phases", None), f"{where}: phases")
    groups = _tables(values.pop("groups", []), f"{where}: groups")
    augmentation = values.pop("augmentation", {})
    try:
        return _make(
            Recipe,
            {
                **values,
                "phases": tuple(_phase_from_plain(phase) for phase in phases),
                "groups": tuple(_make(Group, group, "a group") for group in groups),
                "augmentation": _make(Augmentation, augmentation, "augmentation"),
            },
            "a recipe",
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def completed(plain: dict[str, Any]) -> dict[str, Any]:
    """Adds the fields that an older version did not write to a recorded recipe.

    No recipe can be made from one with custom code; its missing fields get their
    defaults.
    """
    try:
        return to_plain(from_plain(plain, "the recorded recipe"))
    except UserError:
        usual = to_plain(Recipe((Constant(0.0, 1),)))
        inner = {**usual["augmentation"], **plain.get("augmentation", {})}
        return {**usual, **plain, "augmentation": inner}


def read_recipe(path: str | pathlib.Path) -> Recipe:
    """Reads a recipe from a TOML file.

    Raises:
      UserError: the file cannot be read, or it is not a valid recipe.
    """
    path = expand_user(path)
    plain = read_toml(path, f"the recipe {path}", MAX_BYTES)
    return from_plain(_placed(plain, path.parent), str(path))


def read_toml(path: pathlib.Path, what: str, most: int) -> dict[str, Any]:
    """Reads a TOML file.

    Args:
      path: of the file.
      what: describes the file in error messages.
      most: largest size of the file in bytes.

    Raises:
      UserError: the file cannot be read, is larger, or is not TOML.
    """
    try:
        with open_plain(path) as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"cannot read {what}: {error.strerror}") from error
    if len(content) > most:
        raise UserError(f"{what} has more than {most} bytes")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML, or too deep
        raise UserError(f"{what} is not a TOML file: {one_line(error)}") from error


def _placed(plain: dict[str, Any], folder: pathlib.Path) -> dict[str, Any]:
    """Returns the values of a file, with its own code beside the file."""
    placed = dict(plain)
    for name, value in plain.items():
        if name == "augmentation" and isinstance(value, dict):
            placed[name] = _placed(value, folder)
        elif name in OF_RECIPE and isinstance(value, str) and is_own(value):
            placed[name] = whole_name(value, folder)
    return placed


def to_toml(recipe: Recipe) -> str:
    """Returns the text of a file from which ``read_recipe`` reads the same recipe.

    Raises:
      UserError: a phase or the optimizer is custom code, which a file cannot hold.
    """
    plain = to_plain(recipe)
    unknown = [p["kind"] for p in plain["phases"] if p["kind"] not in PHASES]
    code = map(code_in_words, recipe.code().values())
    unknown += [name for name in code if not is_own(name)]
    unknown += [plain["optimizer"]] if recipe.has_own_optimizer else []
    if unknown:
        raise UserError(
            f"the recipe has {unknown[0]}, custom code that a file cannot hold"
        )
    plain["augmentation"] = _given(plain["augmentation"])
    return tomli_w.dumps(_given(plain))


def _given(table: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in table.items() if one not in (None, {}, [])}


def _phase_to_plain(phase: Any) -> dict[str, Any]:
    names: list[str] = []
    if dataclasses.is_dataclass(phase) and not isinstance(phase, type):
        names = [field.name for field in dataclasses.fields(phase)]
    values = {name: getattr(phase, name, None) for name in names}
    for name in ("freeze", "image_size"):  # most phases have none of the two
        if values.get(name) is None:
            values.pop(name, None)
    kind = type(phase).__name__.lower()
    if PHASES.get(kind) is type(phase):
        return {"kind": kind, **values}
    plain = {name: as_plain(value) for name, value in values.items()}
    for name, value in plain.items():
        if isinstance(value, list | dict):
            plain[name] = in_words(values[name])
    kind = f"own {kind}" if kind in PHASES else kind
    return {"kind": kind, "epochs": as_plain(phase.epochs)} | {
        name: value for name, value in plain.items() if name not in ("kind", "epochs")
    }


def _phase_from_plain(plain: dict[str, Any]) -> Any:
    values = dict(plain)
    kind = values.pop("kind", None)
    if kind not in PHASES:
        raise UserError(
            f"kind of a phase is {kind!r}; it must be one of {', '.join(PHASES)}"
        )
    return _make(PHASES[kind], values, f"a phase of kind {kind}")


def _make(kind: type, values: Any, what: str) -> Any:
    """Makes an object of a dataclass; raises a UserError if a field is wrong."""
    values = _table(values, what)
    known = {field.name: field for field in dataclasses.fields(kind)}
    if wrong := [name for name in values if name not in known]:
        raise UserError(f"{what} has no {wrong[0]!r}; it may have {', '.join(known)}")
    missing = [
        name
        for name, field in known.items()
        if field.default is field.default_factory is dataclasses.MISSING
        and name not in values
    ]
    if missing:
        raise UserError(f"{what} needs {missing[0]!r}")
    return kind(**values)


def _table(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} is {value!r}; it must be a table of names and values")
    return value


def _tables(value: Any, what: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise UserError(f"{what} is {value!r}; it must be one or more tables")
    return [_table(one, what) for one in value]
