"""The space of a search: what may be chosen of each setting, read from a TOML file.

lr = {log_uniform = [0.003, 0.3]}
label_smoothing = {uniform = [0, 0.2]}
batch_size = {log_integers = [32, 512]}
padding = {integers = [0, 6]}
optimizer = {choices = ["sgd", "adamw"]}
optimizer_args.b1 = {uniform = [0.8, 0.95]}
"""

import collections.abc
import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from cifar_flax.definitions import MAX_FLOAT, is_number, is_whole, without_none
from cifar_flax.errors import UserError, one_line
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.setting_values import check_value
from cifar_flax.runs.settings import OF_DATA, OF_EVALUATION
from cifar_flax.training.recipe_files import read_toml

RANGES = ("log_uniform", "uniform", "log_integers", "integers")
CHOICES = "choices"

MAX_BYTES = 2**20
MAX_TRIALS = 1_000

# A trial that repeats another one is drawn again this many times.
_TRIES = 1_000

# What a search compares, and what all trials must share for their validation accuracies
# to be comparable.
_FIXED = ("model", "seeds", "seeds_vary", "continue_from", *OF_DATA, *OF_EVALUATION)

Values = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """What may be chosen of one setting.

    Attributes:
      name: of the setting, or ``optimizer_args.b1`` for an item of a table.
      kind: one of ``RANGES``, or ``choices``.
      values: lowest and highest value of a range, which are both possible; otherwise
        the choices.
    """

    name: str
    kind: str
    values: tuple[Any, ...]

    @property
    def is_log(self) -> bool:
        """Whether the logarithm is uniform."""
        return self.kind.startswith("log_")

    @property
    def is_integer(self) -> bool:
        """Whether the values are whole numbers."""
        return self.kind.endswith("integers")

    def at(self, share: float) -> Any:
        """Returns the value below which a share in [0, 1] of the draws lies.

        Numbers have three digits, so that tables and names show what was trained.
        """
        if self.kind == CHOICES:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = self.values
        if self.is_integer:  # each one has a bin of its own: [n, n + 1)
            high += 1
        if self.is_log:
            value = math.exp((1 - share) * math.log(low) + share * math.log(high))
        else:
            value = low + share * (high - low)
        return self.settled(value)

    def holds(self, value: Any) -> bool:
        """Returns whether a value is possible."""
        if self.kind == CHOICES:
            return value in self.values
        valid = is_whole if self.is_integer else is_number
        return valid(value) and self.values[0] <= value <= self.values[1]

    def settled(self, value: float) -> Any:
        """Returns a number with three digits, or a whole one, within the range."""
        low, high = self.values
        if self.is_integer:
            return min(max(math.floor(value), low), high)
        size = min(abs(value), high - low) or high - low
        rounded = round(value, 2 - math.floor(math.log10(size)))
        return min(max(rounded, low), high)


@dataclasses.dataclass(frozen=True)
class Space:
    """The dimensions of a space.

    Attributes:
      dimensions: by the names of their settings.
      plain: the content of the file.
      where: the file, for messages.
    """

    dimensions: tuple[Dimension, ...]
    plain: dict[str, Any]
    where: str

    @property
    def settings(self) -> set[str]:
        """The settings of which it chooses something."""
        return {one.name.partition(".")[0] for one in self.dimensions}

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Returns whether a point, such as of a record, is in the space."""
        return list(values) == [one.name for one in self.dimensions] and all(
            one.holds(values[one.name]) for one in self.dimensions
        )

    def draws(self, seed: int) -> Iterator[Values]:
        """Yields different random points of the space, the same for each seed.

        Each value depends only on the seed, the number of the trial and the name of its
        setting. More trials, and further settings, therefore leave the others as they
        are.

        Raises:
          UserError: the space has no further point.
        """
        seen: set[str] = set()
        for number in range(1, MAX_TRIALS + 1):
            yield self.another(seed, number, seen)

    def another(self, seed: int, number: int, seen: set[str]) -> Values:
        """Draws a point that is not among those seen, and adds it to them."""
        for attempt in range(_TRIES):
            values = {
                one.name: one.at(_share(f"{seed} {number} {attempt} {one.name}"))
                for one in self.dimensions
            }
            if (key := key_of(values)) not in seen:
                seen.add(key)
                return values
        raise UserError(
            f"--space={self.where}: trial {number} repeats an earlier one, because the "
            f"space has only about {len(seen)} different points; lower --trials, or "
            "widen the space"
        )

    def corners(self) -> Iterator[tuple[str, Values]]:
        """Yields points that reach each end and each choice, and what each is for."""
        middle = {
            one.name: one.values[0] if one.kind == CHOICES else one.at(0.5)
            for one in self.dimensions
        }
        for one in self.dimensions:
            for value in one.values:
                yield f"{one.name} = {value}", {**middle, one.name: value}


def _share(text: str) -> float:
    """Returns a number in [0, 1) that is uniform over texts, on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def key_of(values: Values) -> str:
    """Returns a text that is equal for equal points."""
    return json.dumps(values, sort_keys=True)


def in_words(values: Values) -> str:
    """Returns a point as text, such as ``lr=0.0123, momentum=0.9``."""
    return ", ".join(f"{name}={value}" for name, value in values.items())


def with_values(given: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Returns settings with the values of a point."""
    settings = dict(given)
    for name, value in values.items():
        table, dot, item = name.partition(".")
        if dot:
            value = {**(settings.get(table) or {}), item: value}
        settings[table] = check_value(SETTINGS[table], value)
    return settings


def read_space(path: str | pathlib.Path) -> Space:
    """Reads a space from a TOML file.

    Raises:
      UserError: the file cannot be read, or holds something other than a space; the
        message names the setting.
    """
    plain = read_toml(pathlib.Path(path), f"--space={path}", MAX_BYTES)
    return make_space(plain, str(path))


def make_space(plain: dict[str, Any], where: str) -> Space:
    """Makes a space from the content of its file; see ``read_space``."""
    if not plain:
        raise UserError(f"--space={where} is empty; give {_EXAMPLE}")
    dimensions: list[Dimension] = []
    for name, content in plain.items():
        _check_name(name, where)
        origin = typing.get_origin(without_none(SETTINGS[name].kind))
        is_table = origin in (dict, collections.abc.Mapping)
        if is_table and isinstance(content, dict) and not _is_dimension(content):
            items = {f"{name}.{item}": one for item, one in content.items()}
        else:
            items = {name: content}
        dimensions += [_dimension(n, one, where) for n, one in items.items()]
    if not dimensions:
        raise UserError(f"--space={where} names nothing to choose; give {_EXAMPLE}")
    return Space(tuple(dimensions), plain, where)


_EXAMPLE = "lr = {log_uniform = [0.003, 0.3]}"


def _is_dimension(content: dict[str, Any]) -> bool:
    return set(content) <= {*RANGES, CHOICES} and len(content) == 1


def _check_name(name: str, where: str) -> None:
    if name in _FIXED:
        why = "is fixed in a search; give it as a flag"
        if name in ("model", "seeds"):
            why = f"is not searched; give --{name}"
        raise UserError(f"--space={where}: {name} {why}")
    if name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UserError(
            f"--space={where}: {one_line(name, 60)} is not a setting of a run{hint}"
        )


def _dimension(name: str, content: Any, where: str) -> Dimension:
    """Makes a dimension from a table of one kind and its values."""
    at = f"--space={where}: {one_line(name, 60)}"
    if not isinstance(content, dict) or not _is_dimension(content):
        shown = one_line(repr(content), 80)
        kinds = ", ".join((*RANGES, CHOICES))
        raise UserError(
            f"{at} is {shown}; give one of {kinds} with its values, such as {_EXAMPLE}"
        )
    ((kind, values),) = content.items()
    shown = f"{kind} = {one_line(repr(values), 80)}"
    if not isinstance(values, list) or not values:
        raise UserError(f"{at}: {shown}; give a list")
    if kind == CHOICES:
        if len({key_of({"": one}) for one in map(_plain, values)}) < len(values):
            raise UserError(f"{at}: {shown} has a value twice")
        made = Dimension(name, kind, tuple(map(_plain, values)))
    else:
        made = Dimension(name, kind, _range(kind, values, f"{at}: {shown}"))
    for value in made.values:
        try:
            with_values({}, {name: value})
        except UserError as error:
            raise UserError(f"{at}: {error}") from error
    return made


def _range(kind: str, values: list[Any], at: str) -> tuple[Any, Any]:
    """Checks the two ends of a range."""
    whole = kind.endswith("integers")
    valid = is_whole if whole else is_number
    most = 2**53 if whole else MAX_FLOAT
    if len(values) != 2 or not all(valid(v) and -most <= v <= most for v in values):
        raise UserError(f"{at}; give two {'whole ' if whole else ''}numbers")
    low, high = values
    if not low < high:
        raise UserError(f"{at}; the first number must be below the second")
    if kind.startswith("log_") and low <= 0:
        raise UserError(f"{at}; its numbers must be above 0 for a logarithm")
    return (low, high) if whole else (float(low), float(high))


def _plain(value: Any) -> Any:
    """Returns a choice; dates of TOML become text, which no setting takes."""
    return (
        value
        if isinstance(value, bool | int | float | str | list | dict)
        else str(value)
    )
