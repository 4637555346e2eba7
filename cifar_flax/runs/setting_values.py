"""Reads and checks the value of a setting: one parser for flags, lists and Python."""

import collections.abc
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from cifar_flax.definitions import PLACE, Hyperparameter, is_optional, without_none
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import PRINTABLE, check_text
from cifar_flax.json_files import short_repr
from cifar_flax.own_code import is_own, whole_name

_TABLES = (dict, collections.abc.Mapping)

# JSON does not allow numbers such as .1 and +1.
_LOOSE_NUMBER = re.compile(r"[+-]?(\.[0-9]+|[0-9]+\.[0-9]*)(e[+-]?[0-9]+)?", re.I)


def parse_value(setting: Hyperparameter, text: str) -> Any:
    """Reads the value of a setting from the text of a flag or of a list.

    Raises:
      ValueError: the text is not valid; the message says what to give.
    """
    try:
        kind = without_none(setting.kind)
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind == dict[str, str] and not text.startswith("{"):
            return _named(text)
        if origin in _TABLES:
            return msgspec.json.decode(text, type=kind)
        if origin is tuple:
            return msgspec.convert(text.split(","), kind, strict=False)
        tuples = [one for one in args if typing.get_origin(one) is tuple]
        if tuples and text not in _literals(args):
            return msgspec.convert(text.split(","), tuples[0], strict=False)
        if float in (kind, *typing.get_args(kind)) and _LOOSE_NUMBER.fullmatch(text):
            text = msgspec.json.encode(float(text)).decode()  # null if it is infinite
        # msgspec also takes 3.0 as a whole number.
        if kind is int and not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError(text)
        return _check_choice(setting, msgspec.convert(text, kind, strict=False))
    except (ValueError, RecursionError) as error:  # the latter for deep tables
        raise ValueError(f"give {what_to_give(setting)}") from error


def _named(text: str) -> dict[str, str]:
    """Reads NAME=VALUE,NAME=VALUE; a value may have commas that no name follows."""
    parts = re.split(r",(?=[\w-]+=)", text)
    pairs = [part.split("=", 1) for part in parts]
    if len(dict(pairs)) < len(pairs):  # dict raises a ValueError for a part without =
        raise ValueError(text)
    return {name: check_text(value) for name, value in pairs}


def check_value(setting: Hyperparameter, value: Any) -> Any:
    """Converts the value of a setting, from Python or JSON, to its type.

    Raises:
      UserError: the value has another type, or is out of range.
    """
    if setting.about.own and callable(value):
        raise UserError(
            f"{setting.name} is a function; settings take its place, FILE.py:NAME, and "
            "a Recipe (recipe=) takes functions"
        )
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, range | list):
        value = tuple(value)
    try:
        if isinstance(value, collections.abc.Mapping):
            value = _as_json(value)
        value = _check_choice(setting, msgspec.convert(value, setting.kind))
    except (ValueError, TypeError, RecursionError) as error:
        shown = short_repr.repr if isinstance(value, Mapping) else repr
        given = one_line(shown(value), 60)
        raise UserError(
            f"--{setting.name}={given}: give {what_to_give(setting)}"
        ) from error
    valid = setting.about.valid
    if value is not None and valid is not None and not valid.test(value):
        raise UserError(f"--{setting.name}={value}: it must be {valid.words}")
    return value


def _as_json(value: Any) -> Any:
    """Returns a value as a record holds it; raises a ValueError if none can."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _as_json(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [*map(_as_json, value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is NaN or infinite")
    if isinstance(value, str):
        value.encode()  # raises an error for what is not Unicode
    if not isinstance(value, bool | int | float | str | None):
        raise ValueError(f"a {type(value).__name__} is not JSON")
    return value


def _check_choice(setting: Hyperparameter, value: Any) -> Any:
    """Raises a ValueError unless a value is a valid choice and printable text."""
    if value is None:
        if not is_optional(setting.kind):
            raise ValueError(value)
        return value
    choices = choices_of(setting)
    if (choices or setting.about.own) and value not in choices:
        if not (setting.about.own and is_own(value)):
            raise ValueError(value)
        value = whole_name(value)
    if not isinstance(value, str):
        return value
    if setting.about.valid is not None and not setting.about.valid.test(value):
        raise ValueError(value)
    return check_text(value)


def choices_of(setting: Hyperparameter) -> tuple[str, ...]:
    """Returns the possible values of a setting; empty if they cannot be listed."""
    kind = without_none(setting.kind)
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return setting.about.choices() if setting.about.choices else ()


def _literals(kinds: Sequence[Any]) -> list[Any]:
    named = [one for one in kinds if typing.get_origin(one) is Literal]
    return [text for one in named for text in typing.get_args(one)]


def what_to_give(setting: Hyperparameter) -> str:
    """Returns a description of the valid values of a setting."""
    kind = without_none(setting.kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind == dict[str, str]:
        return "NAME=VALUE, with different names, such as a=npz:PATH,b=folder:PATH"
    if origin in _TABLES:
        return """names and values as JSON, such as {"name": 0.95}"""
    if origin is tuple and args[0] is int:
        return "whole numbers, such as 0,1,2"
    if origin is tuple and args[0] is str:
        return "one or more names, such as a,b"
    if origin is tuple:
        names = typing.get_args(args[0])
        return f"{', '.join(names)}, or {','.join(names)}"
    choices = [*choices_of(setting), *([PLACE] if setting.about.own else [])]
    if choices:
        return f"one of {', '.join(choices)}" if choices[1:] else choices[0]
    if kind is str and setting.about.valid is not None:
        return setting.about.valid.words
    if origin in (typing.Union, types.UnionType):
        several = any(typing.get_origin(one) is tuple for one in args)
        first = "numbers such as 1,2,0.5" if several else "a number"
        return ", or ".join([first, *_literals(args)])
    words: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
    }
    return words.get(kind, PRINTABLE)
