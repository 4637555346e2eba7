"""Users' own models, named by their code's place: ``FILE.py:NAME``, ``MODULE:NAME``.

Loading such a model runs its code. This happens only if a user names the model, never
because a record names it.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
import types
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from cifar_flax.errors import UserError, one_line

MAX_BYTES = 2**20  # largest file whose text is recorded


def is_own(name: str) -> bool:
    """Returns whether the name of a model says where its code is."""
    place, _, what = name.rpartition(":")
    return bool(place) and what.isidentifier()


def label_of(name: str) -> str:
    """Returns the name without the place of the code, for display."""
    return name.rpartition(":")[2] if is_own(name) else name


def whole_name(name: str) -> str:
    """Returns the name with the absolute path of its file, valid in any folder."""
    place, _, what = name.rpartition(":")
    if not is_own(name) or not place.endswith(".py"):
        return name
    # If the home folder is unknown, the file is missing, which ``_load`` reports.
    return f"{os.path.abspath(os.path.expanduser(place))}:{what}"


@dataclasses.dataclass(frozen=True)
class Source:
    """Place and content of a model's code.

    Attributes:
      path: path of the file; None if there is no file.
      sha256: sha256 of the file, in hex.
      text: text of the file, for the record; None if it is too large or not UTF-8.
    """

    path: str | None
    sha256: str | None = None
    text: str | None = None


def source_of(name: str) -> Source:
    """Runs the code of a model and returns its source.

    Raises:
      UserError: the code does not exist, or it fails.
    """
    path = getattr(_load(name), "__file__", None)
    if path is None:
        return Source(None)
    content = pathlib.Path(path).read_bytes()
    text = None
    if len(content) <= MAX_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode()
    return Source(path, hashlib.sha256(content).hexdigest(), text)


def make_own(name: str, args: Mapping[str, Any] | None, num_classes: int) -> nn.Module:
    """Runs the code of a model and makes the model.

    Args:
      name: see the module; NAME is a linen module class, or a function that makes a
        linen module.
      args: keyword arguments; ``num_classes`` is added if NAME takes it.
      num_classes: number of logits.

    Raises:
      UserError: the code does not exist, it fails, or it makes something else.
    """
    what = label_of(name)
    make = getattr(_load(name), what, None)
    if not callable(make):
        raise UserError(f"--model={name}: there is no callable {what}")
    given = dict(args or {})
    try:
        parameters = inspect.signature(make).parameters
        if "num_classes" in parameters:
            given.setdefault("num_classes", num_classes)
        model = make(**given)
    except Exception as error:  # the code may raise anything
        raise UserError(
            f"--model={name} cannot be made with {given}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model={name} makes a {type(model).__name__}; it must be a flax.linen "
            "module (flax.nnx.bridge.ToLinen makes one from an nnx module)"
        )
    return model


def _load(name: str) -> types.ModuleType:
    place = name.rpartition(":")[0]
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = pathlib.Path(place).absolute()
        if not path.is_file():
            raise UserError(f"--model={name}: there is no file {path}")
        # A unique name, since two files of the same name are two modules.
        key = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        title = f"cifar_flax_own_{path.stem}_{key}"
        if title in sys.modules:
            return sys.modules[title]
        spec = importlib.util.spec_from_file_location(title, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[title] = module  # dataclasses look up their module there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[title]
            raise
        return module
    except UserError:
        raise
    except Exception as error:  # the code may raise anything
        raise UserError(
            f"--model={name} cannot be loaded: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error
