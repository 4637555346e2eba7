"""Writes the files of a report, and replaces no file that is not of a report."""

import contextlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from cifar_flax.errors import UserError
from cifar_flax.files import open_plain, replacing

# What the beginning of each file shows, also in reports of earlier versions.
_SIGNS = {
    "report.md": rb"# Report\s.*(; cifar_flax |Results made elsewhere)",
    "report.html": rb"<!doctype html>.*<title>cifar_flax report</title>",
    "results.csv": rb"dataset,configuration,",
    "ranking.tex": rb"% .*: test accuracy in per cent",
}
_BEGINNING = 20_000  # bytes; the list of studies' sources may be long


def check_replaceable(
    folder: pathlib.Path, tables: Sequence[pathlib.Path] = ()
) -> None:
    """Raises a UserError if a file in a folder is in the way of a report.

    The user's own files may have the same names, and a link leads elsewhere.

    Args:
      folder: of the report.
      tables: files that the report reads, which it must not replace.
    """
    for name, sign in _SIGNS.items():
        _check(folder / name, sign, tables, "--output")


def check_table(path: pathlib.Path, tables: Sequence[pathlib.Path]) -> None:
    """Raises a UserError if a file is in the way of a copy of ``results.csv``."""
    _check(path, _SIGNS["results.csv"], tables, "--export")


def _check(
    path: pathlib.Path, sign: bytes, tables: Sequence[pathlib.Path], flag: str
) -> None:
    if any(os.path.realpath(table) == os.path.realpath(path) for table in tables):
        raise UserError(f"{path} is one of --results and is kept; give another {flag}")
    if path.is_symlink() or (os.path.exists(path) and not path.is_file()):
        raise UserError(
            f"{path} is not a plain file; remove it, or give another {flag}"
        )
    try:
        with open_plain(path) as file:
            begin = file.read(_BEGINNING)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give another {flag}"
        ) from error
    if begin and not re.match(sign, begin, re.DOTALL):
        raise UserError(
            f"{path} is not of a report and is kept; rename it, or give another {flag}"
        )


def write_together(folder: pathlib.Path, texts: Mapping[str, str]) -> None:
    """Writes all files, or none if one of them cannot be written.

    Raises:
      OSError: a file cannot be written; all old files are kept.
    """
    with contextlib.ExitStack() as stack:
        for name, text in texts.items():
            file = stack.enter_context(replacing(folder / name))
            file.write(text.encode())
            file.flush()  # a full disk ends the block before a file is replaced
