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
    text = msgspec.json.format(encode(value), indent=2).decode()
    # Put a list of numbers, which may be long, on one line.
    text = re.sub(
        r"\[\s+([-+.\deE,\snul]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text
    )
    replace(path, (text + "\n").encode())


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
    return msgspec.json.encode(value, enc_hook=lambda array: array.tolist())


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file atomically; raises a UserError if it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
