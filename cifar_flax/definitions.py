"""How a hyperparameter is defined: once, with type, valid values, help and default.

    @dataclasses.dataclass(frozen=True)
    class Augmentation(Definition):
        padding: Annotated[int, Hyper("Pixels of border.", whole(0, 32, "pixels"))] = 4

Everything else is derived from the fields: checks and their one-line errors, flags and
their help, the lists of a sweep, TOML, the record and the identity of a run. A new
hyperparameter is a field, and the line that uses it.
"""

import dataclasses
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from cifar_flax.errors import UserError, in_words

# Rates and penalties are float32 in the compiled program, steps int32. Below the
# smallest normal number a rate would silently be 0.
MIN_FLOAT, MAX_FLOAT = 1.2e-38, 3.4e38
MAX_STEPS = 2**31 - 1
MAX_SHARE = 1 - 2**-24  # float32 rounds any number closer to 1 to 1
MAX_SIDE = 4096  # of an image, in pixels


@dataclasses.dataclass(frozen=True)
class Valid:
    """The valid values of a hyperparameter.

    Attributes:
      test: returns whether a value is valid; a ValueError says why it is not.
      words: what a value must be, for the error.
      settle: returns a valid value in its usual form, such as 2 for 2.0 epochs.
    """

    test: Callable[[Any], bool]
    words: str
    settle: Callable[[Any], Any] = lambda value: value

    def check(self, value: Any, name: str) -> Any:
        """Returns a value in its usual form; raises a UserError if it is not valid."""
        try:
            require(self.test(value), name, value, self.words)
        except ValueError as error:
            raise UserError(
                f"{name} is {value!r}, which is not {self.words}: {error}"
            ) from error
        return self.settle(value)


def require(condition: bool, name: str, value: Any, must: str) -> None:
    """Raises a UserError unless a condition holds."""
    if not condition:
        raise UserError(f"{name} is {value!r}; it must be {must}")


def is_number(value: Any) -> bool:
    """Returns whether a value is a real number and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Returns whether a value is an integer and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def plain(number: Any) -> Any:
    """Returns a number as an int if it is whole."""
    return int(number) if number == int(number) else number


def as_plain(value: Any, depth: int = 20) -> Any:
    """Returns a user's value as finite numbers, texts, lists and tables.

    Everything else becomes text, so that a record can hold it, and so does what is
    nested deeper than ``depth``.
    """
    if hasattr(value, "dtype") and hasattr(value, "item") and np.shape(value) == ():
        value = value.item()
    if isinstance(value, bool | int | None):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, tuple | list) and depth:
        return [as_plain(one, depth - 1) for one in value]
    is_table = isinstance(value, Mapping) and all(isinstance(n, str) for n in value)
    if is_table and depth:
        return {in_words(n): as_plain(one, depth - 1) for n, one in value.items()}
    return in_words(value)


def whole(least: int = 1, most: int = MAX_STEPS, unit: str = "") -> Valid:
    """Returns the whole numbers from ``least`` to ``most``."""
    words = f"from {least} to {most}"
    words = f"{words} {unit}" if unit else f"a whole number {words}"
    return Valid(lambda value: is_whole(value) and least <= value <= most, words)


def between(least: float, most: float) -> Valid:
    """Returns the numbers from ``least`` to ``most``."""
    words = f"from {least:g} to {most:g}"
    return Valid(lambda value: is_number(value) and least <= value <= most, words)


def float32(least: float = 0.0) -> Valid:
    """Returns the numbers that float32 can hold, from ``least``."""

    def test(value: Any) -> bool:
        normal = is_number(value) and (value == 0 or MIN_FLOAT <= value <= MAX_FLOAT)
        return normal and value >= least

    words = f"from {MIN_FLOAT:g} to {MAX_FLOAT:g}"
    return Valid(test, f"0, or {words}" if least == 0 else words)


def one_of(*choices: Any) -> Valid:
    """Returns some values."""
    kind, names = type(choices[0]), [*map(str, choices)]
    words = " or ".join(names) if len(names) == 2 else f"one of {', '.join(names)}"
    return Valid(lambda value: type(value) is kind and value in choices, words)


def _is_length(value: Any) -> bool:
    return is_number(value) and math.isfinite(value) and 0 < value <= MAX_STEPS


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ValueError(error) from error
    return True


SHARE = Valid(lambda value: is_number(value) and 0 <= value <= MAX_SHARE, "in [0, 1)")
LENGTH = Valid(_is_length, f"a number above 0, to {MAX_STEPS}", plain)  # in epochs
PATTERN = Valid(_is_pattern, "a regular expression")
SWITCH = Valid(lambda value: isinstance(value, bool), "true or false")


@dataclasses.dataclass(frozen=True)
class Hyper:
    """What a field says of itself besides its name, type and default.

    Attributes:
      help: one or two sentences, for --help and for the documentation.
      valid: the valid values; None: those of the type.
      flag: whether it has a flag of its name; a text: of this name.
      label: its name in an error; None: that of the field.
      more: further sentences for the documentation, such as the source.
      choices: returns the valid texts, if they are not those of the type.
    """

    help: str
    valid: Valid | None = None
    flag: bool | str = True
    label: str | None = None
    more: str = ""
    choices: Callable[[], tuple[str, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """A field of a definition.

    Attributes:
      name: of the field.
      kind: its type, without annotation.
      default: its default; ``dataclasses.MISSING`` if it has none.
      about: what the field says of itself.
      flag: name of its flag; None: it has no flag.
      valid: the valid values; None: any.
    """

    name: str
    kind: Any
    default: Any
    about: Hyper
    flag: str | None
    valid: Valid | None

    def check(self, value: Any) -> Any:
        """Returns a value in its usual form; raises a UserError if it is not valid."""
        if hasattr(value, "dtype") and hasattr(value, "item") and not value.shape:
            value = value.item()  # a number of NumPy or JAX; JSON has no such thing
        if self.valid is None or (value is None and is_optional(self.kind)):
            return value
        return self.valid.check(value, self.about.label or self.name)


def is_optional(kind: Any) -> bool:
    """Returns whether a type includes None."""
    return types.NoneType in typing.get_args(kind)


def without_none(kind: Any) -> Any:
    """Returns a type without None."""
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    kinds = [one for one in typing.get_args(kind) if one is not types.NoneType]
    return typing.Union[tuple(kinds)]  # noqa: UP007 (of a list)


@functools.cache
def hyperparameters(definition: Any) -> dict[str, Hyperparameter]:
    """Returns the declared fields of a dataclass by name."""
    hints = typing.get_type_hints(definition, include_extras=True)
    found = {}
    for field in dataclasses.fields(definition):
        kind, *extras = typing.get_args(hints[field.name]) or (hints[field.name],)
        about = next((one for one in extras if isinstance(one, Hyper)), None)
        if typing.get_origin(hints[field.name]) is not typing.Annotated or not about:
            continue  # a field of a user's subclass
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        flag = about.flag if isinstance(about.flag, str) else field.name
        valid = about.valid or _valid_of(without_none(kind))
        found[field.name] = Hyperparameter(
            *(field.name, kind, default, about, flag if about.flag else None, valid)
        )
    return found


def _valid_of(kind: Any) -> Valid | None:
    if kind is bool:
        return SWITCH
    return (
        one_of(*typing.get_args(kind)) if typing.get_origin(kind) is Literal else None
    )


def with_fields(
    doc: str | None, fields: Mapping[str, Hyper], kinds: Mapping[str, Any] | None = None
) -> str | None:
    """Returns a docstring followed by a description of fields, with their types."""
    if not fields:
        return doc
    names = {n: n for n in fields}
    for n, kind in (kinds or {}).items():
        text = kind.__name__ if isinstance(kind, type) else str(kind)
        names[n] += f" ({text.replace('typing.', '')})"
    lines = [
        f"      {names[n]}: {one.help} {one.more}".rstrip() for n, one in fields.items()
    ]
    return "\n".join([(doc or "").rstrip(), "", "    Attributes:", *lines])


class Definition:
    """Base of the dataclasses that define hyperparameters; it checks their values.

    Raises:
      UserError: a value is not valid.
    """

    def __init_subclass__(cls) -> None:
        """Adds the fields to the docstring, also those of its bases."""
        every: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            every |= inspect.get_annotations(base)
        hints = [(n, typing.get_args(h)) for n, h in every.items()]
        abouts = {n: one for n, args in hints for one in args if type(one) is Hyper}
        cls.__doc__ = with_fields(cls.__doc__, abouts)

    def __post_init__(self) -> None:
        """Checks every declared field, and stores it in its usual form."""
        definition: Any = type(self)
        for name, one in hyperparameters(definition).items():
            object.__setattr__(self, name, one.check(getattr(self, name)))
