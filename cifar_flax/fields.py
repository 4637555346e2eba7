"""Checks what was read from a record: a file may hold anything.

A shape looks like what it describes. ``{name: shape}`` is an object with these fields
and any others, which have the shape under ``...`` where there is one; ``[shape]`` is a
list of one or more, ``[shape, shape]`` a list of two; a ``Kind`` is a single value.
"""

import dataclasses
import re
import reprlib
from collections.abc import Callable
from typing import Any

from cifar_flax.errors import UserError

Shape = Any  # it would be recursive: dict | list | Kind


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*values: Any) -> Kind:
    """One of these, by type, too: 1 is not True."""
    pairs = [(type(value), value) for value in values]
    words = f"one of {', '.join(map(str, values))}"
    return Kind(words, lambda value: (type(value), value) in pairs)


def either(*kinds: Kind) -> Kind:
    """Of any of these kinds."""
    words = " or ".join(kind.words for kind in kinds)
    return Kind(words, lambda value: any(kind.holds(value) for kind in kinds))


def list_of(kind: Kind) -> Kind:
    """A list, empty or not, of values of that kind."""
    return Kind(
        f"a list, each of them {kind.words}",
        lambda value: isinstance(value, list) and all(map(kind.holds, value)),
    )


def whole(low: int, high: int) -> Kind:
    """A whole number in a range."""
    return Kind(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: float, high: float, words: str) -> Kind:
    """A number in a range; NaN is in none."""
    return Kind(
        words, lambda value: type(value) in (int, float) and low <= value <= high
    )


def _is_text(value: Any) -> bool:
    # JSON can name half a character, which no file and no figure can hold.
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


_HUGE = 1e39  # beyond any float32

NULL = Kind("null", lambda value: value is None)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", _is_text)
NAME = Kind(
    "a name", lambda value: _is_text(value) and bool(re.fullmatch(r"\w[\w.-]*", value))
)
INTEGER = whole(-(2**63), 2**63 - 1)
COUNT = whole(0, 2**53)
SIZE = whole(1, 2**53)
NUMBER = number(-_HUGE, _HUGE, "a number")
NOT_NEGATIVE = number(0, _HUGE, "a number, 0 or more")
POSITIVE = number(1e-39, _HUGE, "a number above 0")
SHARE = number(0, 1, "a number from 0 to 1")
_PLAIN = Kind(
    "text, a number, true, false or null",
    lambda value: value is None or type(value) in (bool, int, float) or _is_text(value),
)
SETTING = either(_PLAIN, list_of(_PLAIN))


def check(value: Any, shape: Shape, where: str) -> None:
    """Checks that a value has a shape.

    Args:
      value: read from JSON.
      shape: see the module.
      where: the file, for the message.

    Raises:
      UserError: it has another one; the message names file and field.
    """
    _check(value, shape, where, "it")


def _check(value: Any, shape: Shape, where: str, field: str) -> None:
    if isinstance(shape, Kind):
        if not shape.holds(value):
            raise _wrong(value, shape.words, where, field)
    elif isinstance(shape, dict):
        _check_object(value, shape, where, field)
    elif not isinstance(value, list) or not value:
        raise _wrong(value, "a list of one or more", where, field)
    elif len(shape) not in (1, len(value)):
        raise _wrong(value, f"a list of {len(shape)}", where, field)
    else:
        for i, item in enumerate(value):
            _check(item, shape[i % len(shape)], where, f"{field}[{i}]")


def _check_object(value: Any, shape: dict, where: str, field: str) -> None:
    if not isinstance(value, dict):
        raise _wrong(value, "an object", where, field)
    prefix = "" if field == "it" else f"{field}."
    for name, inner in shape.items():
        if name is ...:
            for other in value.keys() - shape.keys():
                _check(other, TEXT, where, f"a field of {field}")
                _check(value[other], inner, where, f"{prefix}{other}")
        elif name not in value:
            raise UserError(f"{where}: {field} lacks {name!r}; no run of this version")
        else:
            _check(value[name], inner, where, f"{prefix}{name}")


_short = reprlib.Repr()
_short.maxlevel = 2


def _wrong(value: Any, words: str, where: str, field: str) -> UserError:
    return UserError(f"{where}: {field} is {_short.repr(value)}; it must be {words}")
