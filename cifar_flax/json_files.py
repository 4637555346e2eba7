"""Typed JSON files: written atomically, and read with errors that name the field."""

import json
import os
import pathlib
import re
import reprlib
from typing import Any, TypeVar

import msgspec

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import open_plain, replacing

# Largest text file that is read; far more than any of ours has.
MAX_TEXT = 64 * 2**20

Kind = TypeVar("Kind")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a struct or a dictionary, which may contain NumPy arrays and numbers."""
    replace(path, to_json(value))


def to_json(value: Any) -> bytes:
    """Returns the content of the file that ``write_json`` writes."""
    text = msgspec.json.format(encode(value), indent=2).decode()
    # Put a list of numbers, which may be long, on one line. No text has line breaks.
    text = re.sub(
        r"\[\n\s*([-+.\deE,\snul]+?)\n\s*\]",
        lambda m: f"[{' '.join(m[1].split())}]",
        text,
    )
    return (text + "\n").encode()


def check_survives(value: Any, where: str) -> None:
    """Writes and reads a record in memory.

    Args:
      value: the record, a struct.
      where: its file, for the message.

    Raises:
      UserError: what is read is not what was written; the message names the value.
    """
    try:
        content = to_json(value)
    except (TypeError, ValueError, RecursionError) as error:
        name, wrong = _unwritable(value)
        raise UserError(
            f"{where}: {name} is {one_line(short_repr.repr(wrong))}, which cannot be "
            f"written: {one_line(error)}"
        ) from error
    if len(content) > MAX_TEXT:
        raise UserError(
            f"{where} takes {len(content)} bytes, more than the limit of {MAX_TEXT}"
        )
    read = plain_of(decode(content, type(value), where))
    if difference := _difference(plain_of(value), read):
        name, wrong, found = difference
        raise UserError(
            f"{where}: {name} is {one_line(short_repr.repr(wrong))}, which a record "
            f"cannot hold; it would be read as {one_line(short_repr.repr(found))}"
        )


def plain_of(value: Any) -> Any:
    """Returns a record as lists, tables, texts and numbers.

    Raises:
      TypeError: a value is not one of these, nor an array.
    """
    plain = msgspec.to_builtins(value, enc_hook=_from_array, str_keys=True)
    return _without_tuples(plain)


def _without_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_tuples(one) for name, one in value.items()}
    return [*map(_without_tuples, value)] if isinstance(value, list | tuple) else value


def _items(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, msgspec.Struct):
        value = msgspec.structs.asdict(value)
    if isinstance(value, dict):
        return [(str(name), one) for name, one in value.items()]
    if isinstance(value, list | tuple):
        return [(str(number), one) for number, one in enumerate(value)]
    return []


def _unwritable(value: Any) -> tuple[str, Any]:
    """Returns the dotted name of what cannot be written in a record, and its value."""
    names: list[str] = []
    while True:
        for name, one in _items(value):
            try:
                encode({name: one})
            except (TypeError, ValueError, RecursionError):
                names.append(name)
                value = one
                break
        else:
            return ".".join(names) or "it", value


def _difference(wrote: Any, read: Any) -> tuple[str, Any, Any] | None:
    """Returns the dotted name of the first difference, and its two values."""
    ours, theirs = _items(wrote), dict(_items(read))
    if type(wrote) is not type(read) or not ours or len(ours) != len(theirs):
        same = wrote == read and isinstance(wrote, bool) == isinstance(read, bool)
        return None if same else ("", wrote, read)
    for name, one in ours:
        if found := _difference(one, theirs.get(name)):
            inner, *values = found
            return (f"{name}.{inner}".rstrip("."), *values)
    return None


def read_json(path: pathlib.Path, kind: type[Kind]) -> Kind:
    """Reads a file of one record; raises a UserError if it is missing or damaged.

    Args:
      path: of the file.
      kind: the struct in the file.
    """
    return decode(read_bytes(path, MAX_TEXT), kind, str(path))


def decode(content: bytes, kind: type[Kind], where: str) -> Kind:
    """Decodes a record; a UserError names the file and the field."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_in_words(content, str(error))}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {one_line(error)}") from error


short_repr = reprlib.Repr()
short_repr.maxlevel = 2


def _in_words(content: bytes, message: str) -> str:
    """Describes an error in a record with the field and its value.

    msgspec names the path of the field, as in ``Expected `int`, got `str` - at
    `$.seeds[0]` ``, but not its value.
    """
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        where = f"{path} has" if path else "it has"
        return f"{where} no {missing[1]!r}; it is not a run of this version"
    if not path:
        return one_line(what)
    try:
        value = json.loads(content)
        for word in re.findall(r"\w+", path):
            value = value[int(word) if isinstance(value, list) else word]
        return f"{path} is {one_line(short_repr.repr(value))}: {one_line(what)}"
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return f"{path}: {one_line(what)}"  # the path has a field with an unusual name


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
    """Reads a whole file; raises a UserError if it cannot be a file of a run."""
    try:
        with open_plain(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise UserError(
                    f"{path} has {size} bytes, more than the limit of {limit}"
                )
            return file.read()
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no run: it has no {path.name}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def encode(value: Any) -> bytes:
    """Encodes a record as JSON; NaN and infinite numbers become null."""
    return msgspec.json.encode(value, enc_hook=_from_array)


def _from_array(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError(f"a {type(value).__name__} is not a number, text or table")
    return value.tolist()


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically; raises a UserError if it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
