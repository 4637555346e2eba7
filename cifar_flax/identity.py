"""What makes two runs the same: the report, sweeps, resumed and loaded runs ask here.

A run is what it trained: model, recipe, data and starting point, each by its content,
and its seeds. The same run gives the same bits on the same kind of machine with the
same versions. Runs that differ only in seeds are one configuration.

Older records have no ``Identity``. They are told apart by all that they hold, and are
the same as a newer record if a command made both and nothing that both hold differs.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from cifar_flax.records import Config

# The versions that decide what JAX traces from the same code.
TRACERS = ("jax", "flax", "cifar-flax")

# Own code whose programs are part of the recipe's checksum.
OF_RECIPE = ("optimizer", "loss", "augment", "average")

_SIZES = ("train_size", "val_size", "test_size")


def configuration_of(config: Config, run: str) -> str:
    """Returns a text that is equal for the runs of one configuration.

    Args:
      config: the record of a run.
      run: names the run, which is its own configuration if it cannot be compared.
    """
    own = config.identity
    if own is None:
        return recorded_of(config)
    vary, unknown = config.settings.get("seeds_vary"), run if own.unknown else None
    parts = [own.model, own.recipe, own.start, unknown]
    return digest([config.model, _data_of(config), vary, *parts])


def recorded_of(config: Config) -> str:
    """Returns a text that is equal if all is equal that records of any version hold."""
    recipe = _flat(config.recipe or {})
    vary: Any = config.settings.get("seeds_vary") or []
    if "rate" in vary:  # the rates are part of what the seeds vary
        recipe = {n: v for n, v in recipe.items() if not n.endswith("_rate")}
    given = {n: v for n, v in config.deciding_settings.items() if v is not None}
    return digest([given, recipe, _trained_codes(config), _data_of(config)])


def _trained_codes(config: Config) -> dict[str, str]:
    """Returns the checksums of own code except metrics, which train nothing."""
    return {n: one for n, one in config.codes.items() if not n.startswith("metrics.")}


def _data_of(config: Config) -> list[Any]:
    data = config.dataset
    return [data.fingerprint, *(getattr(data, name) for name in _SIZES)]


def run_of(config: Config) -> str | None:
    """Returns the checksum that binds other files to a run; None for an older record.

    It does not depend on the name of the folder, on versions and on the machine.
    """
    if config.identity is None:
        return None
    return digest([configuration_of(config, ""), config.settings["seeds"]])


def bits_of(config: Config) -> dict[str, str]:
    """Returns what decides the bits of a configuration: versions and machine."""
    return config.versions


def bits_that_differ(now: Config, before: Config) -> list[str]:
    """Returns the names of the versions, or of the machine, in which runs differ."""
    ours, theirs = bits_of(now), bits_of(before)
    return [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]


def digest(parts: Any) -> str:
    """Returns the SHA-256 of plain values, in hex."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Model(NamedTuple):
    """What is known of a model.

    Attributes:
      program: SHA-256 of what it computes; None if it was not recorded.
      fields: its fields in words; None if its settings tell them.
      code: SHA-256 of its source text; None without a source.
      versions: of the packages that decide what is traced from the same code.
    """

    program: str | None
    fields: Any
    code: str | None
    versions: Mapping[str, str]


def model_of(config: Config) -> Model:
    """Returns what a record tells of the model."""
    own = config.identity
    return Model(
        program=None if own is None else own.model,
        fields=config.settings.get("model_fields"),
        code=config.codes.get("model"),
        versions=config.versions,
    )


def model_differs(now: Model, before: Model) -> str | None:
    """Returns how a model differs from that of a record, or None.

    The programs of two models are compared if the same versions traced them, otherwise
    their fields and source texts.
    """
    same = _same_tracers(now.versions, before.versions)
    if same and None not in (now.program, before.program):
        return None if now.program == before.program else "it computes something else"
    if None not in (now.fields, before.fields) and now.fields != before.fields:
        return f"its fields were {before.fields} and are {now.fields}"
    if None not in (now.code, before.code) and now.code != before.code:
        return "its code differs"
    return None


def _same_tracers(now: Mapping[str, str], before: Mapping[str, str]) -> bool:
    return all(now.get(n) == before.get(n) for n in TRACERS)


def code_differs(now: Config, before: Config) -> str | None:
    """Returns what differs in the own code of two runs besides the model, or None.

    The programs of two recipes are compared if the same versions traced them, otherwise
    the source texts of their code.
    """
    ours, theirs = (one.identity and one.identity.recipe for one in (now, before))
    known = ours is not None and theirs is not None
    if known and _same_tracers(now.versions, before.versions):
        if ours != theirs:
            return "the code of the recipe has changed"
        compared = now.codes.keys() - {"model", *OF_RECIPE}
    else:
        compared = now.codes.keys() - {"model"}
    changed = [n for n in compared if before.codes.get(n, now.codes[n]) != now.codes[n]]
    return f"the code of {min(changed)} has changed" if changed else None


def custom_model_of(config: Config) -> str | None:
    """Returns the checksum of a model that is not ours, or None."""
    is_named = ":" in str(config.settings["model"])
    if not is_named and "model_fields" not in config.settings:
        return None
    model = model_of(config)
    return model.program or model.code


def differing_parts(now: Config, before: Config) -> list[str]:
    """Returns the dotted names of what two configurations differ in."""
    ours, theirs = parts_of(now), parts_of(before)
    names = [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]
    # Checksums tell something only where nothing else does.
    recipe = {*_flat(now.recipe or {}), *_flat(before.recipe or {})}
    recipe |= {f"{name}_code" for name in OF_RECIPE}
    needless = {"recipe_code"} if recipe & set(names) else set()
    needless |= (
        {"model_program"} if {"model_code", "model_fields"} & set(names) else set()
    )
    return [name for name in names if name not in needless]


def parts_of(config: Config) -> dict[str, Any]:
    """Returns what tells configurations of equal settings apart, by dotted names."""
    own = config.identity

    def short(checksum: str | None) -> str | None:
        return checksum and checksum[:8]

    return {
        **_flat(config.recipe or {}),
        "model_fields": config.settings.get("model_fields"),
        **{
            f"{name}_code": short(sha256)
            for name, sha256 in _trained_codes(config).items()
        },
        "model_program": short(own.model) if own else None,
        "recipe_code": short(own.recipe) if own else None,
        "start": short(own.start) if own else None,
        "cannot_be_compared": own.unknown if own else None,
        **bits_of(config),
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested values by dotted names, such as ``augmentation.padding``."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list) and value:
        items = {str(number): one for number, one in enumerate(value)}.items()
    else:
        return {prefix.rstrip("."): value}
    found: dict[str, Any] = {}
    for name, one in items:
        found |= _flat(one, f"{prefix}{name}.")
    return found
