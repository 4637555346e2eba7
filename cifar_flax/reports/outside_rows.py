"""Reads the rows of a table of results: a CSV file."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import open_plain

MAX_ROWS = 100_000
MAX_BYTES = 64 * 2**20

TEXT, SEED, SHARE, NUMBER, SIZE, FLAG = (
    "text",
    "seed",
    "share",
    "number",
    "size",
    "flag",
)

# What a column holds. An empty cell says that the value is not known.
COLUMNS = {
    "model": TEXT,
    "seed": SEED,
    "test_accuracy": SHARE,
    "val_accuracy": SHARE,
    "train_seconds": NUMBER,
    "flops_per_image": NUMBER,
    "train_flops": NUMBER,
    "parameters": SIZE,
    "epochs": NUMBER,
    "predictions": TEXT,
    "dataset": TEXT,
    "test_size": SIZE,
    "diverged_at": SIZE,
    "test_loss": NUMBER,
    "device": TEXT,
    "configuration": TEXT,
    "ranked": FLAG,
    "folder": TEXT,
    "largest_class": SHARE,
}
NEEDED = ("model", "seed", "test_accuracy")

# Other names of columns.
ALIASES = {
    "validation_accuracy": "val_accuracy",
    "seconds": "train_seconds",
    "flops": "train_flops",
}

_GIVE = {
    TEXT: "some text",
    SEED: "a whole number, such as 0",
    SHARE: "a share between 0 and 1, such as 0.931 for 93.1 %",
    NUMBER: "a number of 0 or more",
    SIZE: "a whole number of 0 or more",
    FLAG: "True or False",
}

SETTING = "setting."  # begins the columns of settings that a report writes

# Begins the cells that a spreadsheet would compute; an apostrophe protects them.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
      path: of the table.
      line: its number.
      cells: the known columns that are not empty.
      others: the further columns that are not empty.
    """

    path: pathlib.Path
    line: int
    cells: dict[str, Any]
    others: dict[str, Any]

    def error(self, text: str) -> UserError:
        """Returns an error that names this line."""
        return UserError(f"{self.path}, line {self.line}: {text}")


def read_rows(path: pathlib.Path) -> Iterator[Row]:
    """Reads the rows; raises a UserError that names the line that is not valid."""
    if not path.exists():
        raise UserError(f"there is no table {path}; give a CSV file as --results")
    try:
        with open_plain(path) as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error.reason}") from error
    if len(content) > MAX_BYTES:
        raise UserError(f"{path} has more than {MAX_BYTES:,} bytes")
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        names = _header(path, next(lines, []))
        for count, cells in enumerate(lines):
            if count >= MAX_ROWS:
                raise UserError(f"{path} has more than {MAX_ROWS:,} rows")
            if not any(cell.strip() for cell in cells):
                continue  # an empty line
            if len(cells) != len(names):
                raise UserError(
                    f"{path}, line {lines.line_num}: it has {len(cells)} cells and the "
                    f"header has {len(names)}"
                )
            yield _row(path, lines.line_num, dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}, line {lines.line_num}: {error}") from error


def _header(path: pathlib.Path, cells: list[str]) -> list[str]:
    plain = [cell.strip() for cell in cells]
    names = [ALIASES.get(name.lower(), name) for name in plain]
    names = [name.lower() if name.lower() in COLUMNS else name for name in names]
    missing = [name for name in NEEDED if name not in names]
    if missing:
        raise UserError(
            f"{path}, line 1: the header has no column {missing[0]}; it needs "
            f"{', '.join(NEEDED)}, separated by commas, and has "
            f"{one_line(', '.join(names), 200) or 'nothing'}"
        )
    for name in names:
        if not name or names.count(name) > 1:
            what = f"the column {one_line(name, 100)} twice" if name else "no name"
            raise UserError(f"{path}, line 1: a column of the header has {what}")
    return names


def _row(path: pathlib.Path, line: int, texts: dict[str, str]) -> Row:
    row = Row(path, line, {}, {})
    for name, text in texts.items():
        text = text.strip()
        if text[:1] == "'" and text[1:2] in FORMULA:
            text = text[1:]
        if not text:
            continue
        if name not in COLUMNS:
            row.others[name] = number_or_text(text)
            continue
        value = _parse(COLUMNS[name], text)
        if value is None:
            raise row.error(
                f"{name} is {one_line(repr(text), 100)}; give {_GIVE[COLUMNS[name]]}"
            )
        row.cells[name] = value
    for name in ("model", "seed"):
        if name not in row.cells:
            raise row.error(f"{name} is empty; give {_GIVE[COLUMNS[name]]}")
    known = row.cells.keys() & {"test_accuracy", "diverged_at", "predictions"}
    if not known:
        raise row.error(
            "test_accuracy is empty; give it, or predictions, or the step diverged_at"
        )
    return row


def number_or_text(text: str) -> Any:
    """Returns a number as a number, and anything else as text."""
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if abs(value) < 1e39 else text
    return text


def _parse(kind: str, text: str) -> Any:
    """Returns the value of a cell; None if it is not valid."""
    if kind == TEXT:
        return text if len(text) <= 1000 else None
    if kind == FLAG:
        return {"true": True, "false": False}.get(text.lower())
    value = number_or_text(text)
    if isinstance(value, str) or not math.isfinite(value):
        return None
    if kind in (SEED, SIZE):
        if value != int(value):
            return None
        least, most = (-(2**31), 2**31 - 1) if kind == SEED else (0, 2**53)
        return int(value) if least <= value <= most else None
    return value if 0 <= value <= (1 if kind == SHARE else 1e39) else None
