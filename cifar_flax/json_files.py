"""JSON files with a type: written whole, and read with errors that name the field."""

import json
import pathlib
import re
import reprlib
import stat
from typing import Any, TypeVar

import msgspec

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import replacing

# A bound on what is read of a text; none of ours comes near it.
MAX_TEXT = 64 * 2**20

Kind = TypeVar("Kind")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a struct or a dictionary; NumPy's arrays and numbers will do in it."""
    text = msgspec.json.format(encode(value), indent=2).decode()
    # A list of numbers, of which some are long, is one line.
    text = re.sub(
        r"\[\s+([-+.\deE,\snul]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text
    )
    replace(path, (text + "\n").encode())


def read_json(path: pathlib.Path, kind: type[Kind]) -> Kind:
    """Reads a file of one record; UserError where there is none or it is damaged.

    Args:
      path: of the file.
      kind: the struct that it holds.
    """
    return decode(read_bytes(path, MAX_TEXT), kind, str(path))


def decode(content: bytes, kind: type[Kind], where: str) -> Kind:
    """A record; the UserError names the file and the field."""
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.ValidationError as error:
        raise UserError(f"{where}: {_in_words(content, str(error))}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no valid JSON: {one_line(error)}") from error


short_repr = reprlib.Repr()
short_repr.maxlevel = 2


def _in_words(content: bytes, message: str) -> str:
    """What is wrong with a record, with the field and its value.

    msgspec tells the field by its path, as in ``Expected `int`, got `str` - at
    `$.seeds[0]` ``, and not its value.
    """
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    missing = re.fullmatch(r"Object missing required field `(.*)`", what)
    if missing:
        return f"{path or 'it'} lacks {missing[1]!r}; no run of this version"
    if not path:
        return one_line(what)
    try:
        value = json.loads(content)
        for word in re.findall(r"\w+", path):
            value = value[int(word) if isinstance(value, list) else word]
        return f"{path} is {one_line(short_repr.repr(value))}: {one_line(what)}"
    except (KeyError, IndexError, TypeError, ValueError, RecursionError):
        return f"{path}: {one_line(what)}"  # somewhere below a field of any name


def read_bytes(path: pathlib.Path, limit: int) -> bytes:
    """A whole file; UserError where it cannot be read or is no file of a run."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            raise UserError(f"{path} is not a plain file; no run writes such")
        if about.st_size > limit:
            raise UserError(f"{path} has {about.st_size} bytes, over {limit}; refused")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no run: no {path.name} in it") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def encode(value: Any) -> bytes:
    """A record as JSON; NaN and infinite numbers become null."""
    return msgspec.json.encode(value, enc_hook=lambda array: array.tolist())


def replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a whole file; UserError where it cannot be written."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
