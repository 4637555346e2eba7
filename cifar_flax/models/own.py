"""Users' own models, named by their code's place: ``FILE.py:NAME``, ``MODULE:NAME``.

Loading such a model runs its code. This happens only if a user names the model, never
because a record names it.
"""

import ast
import contextlib
import dataclasses
import hashlib
import importlib
import inspect
import os
import pathlib
import sys
import time
import types
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn

from cifar_flax.errors import UserError, one_line
from cifar_flax.models.nnx_model import NnxModel

MAX_BYTES = 2**20  # largest file whose text is recorded

_STARTED = time.time()

# The modules that were loaded here, by name, with the checksums of their files.
_LOADED: dict[str, tuple[dict[pathlib.Path, str], types.ModuleType]] = {}


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
      helpers: the modules of its own folder that it imports, directly or not.
    """

    path: str | None
    sha256: str | None = None
    text: str | None = None
    helpers: tuple["Source", ...] = ()


def source_of(name: str) -> Source:
    """Runs the code of a model, if it is new, and returns its source.

    Raises:
      UserError: the code does not exist, or it fails.
    """
    path = getattr(_load(name), "__file__", None)
    if path is None:
        return Source(None)
    first, *helpers = (_source(one) for one in _files_of(pathlib.Path(path)))
    return dataclasses.replace(first, helpers=tuple(helpers))


def _source(path: pathlib.Path) -> Source:
    content = path.read_bytes()
    text = None
    if len(content) <= MAX_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            text = content.decode()
    return Source(str(path), hashlib.sha256(content).hexdigest(), text)


def _files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """Returns a module's file and the files of its folder that it imports."""
    found, waiting = [path], [path]
    while waiting:
        one = waiting.pop()
        for imported in _imports_of(one, path.parent):
            if imported not in found:
                found.append(imported)
                waiting.append(imported)
    return [path, *sorted(found[1:])]


def _imports_of(path: pathlib.Path, folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the files in a folder that a file imports itself."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # A compiled extension, or code that cannot run.
        return
    for node in ast.walk(tree):
        names: list[str] = []
        places = [folder, folder.parent]  # as a script's folder, or as a package
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = node.module or ""
            names = [stem, *(f"{stem}.{alias.name}" for alias in node.names)]
            if node.level:
                places = [path.parents[min(node.level, len(path.parents)) - 1]]
        for name in names:
            words = [word for word in name.split(".") if word]
            for place in places:
                at = place.joinpath(*words)
                for file in (at.with_suffix(".py"), at / "__init__.py"):
                    if words and file.is_file() and folder in file.parents:
                        yield file


def make_own(name: str, args: Mapping[str, Any] | None, num_classes: int) -> nn.Module:
    """Runs the code of a model and makes the model.

    Args:
      name: see the module; NAME is the class of a linen module or of an nnx module, or
        a function that makes one. What takes ``rngs`` makes an nnx module.
      args: keyword arguments; ``num_classes`` is added if NAME takes it.
      num_classes: number of logits.

    Raises:
      UserError: the code does not exist, it fails, or it makes something else.
    """
    what = label_of(name)
    make: Any = getattr(_load(name), what, None)
    if not callable(make):
        raise UserError(f"--model={name}: there is no callable {what}")
    given = dict(args or {})
    try:
        # The class of a class of nnx hides the arguments of its __init__.
        is_class = inspect.isclass(make)
        parameters = inspect.signature(make.__init__ if is_class else make).parameters
        if "num_classes" in parameters:
            given.setdefault("num_classes", num_classes)
        if "rngs" in parameters:  # a network of nnx, or a function that makes one
            model: Any = NnxModel(make, given)
            model.check()
        else:
            model = make(**given)
    except (Exception, SystemExit) as error:  # the code may raise anything
        raise UserError(
            f"--model={name} cannot be made with {given}: "
            f"{type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--model={name} makes a {type(model).__name__}; it must be a module of "
            "flax.linen or of flax.nnx, whose class or function takes rngs"
        )
    return model


def _load(name: str) -> types.ModuleType:
    """Returns the module of a model's code, loaded anew if its files have changed."""
    place = name.rpartition(":")[0]
    try:
        if place.endswith(".py"):
            path = pathlib.Path(place).absolute()
            if not path.is_file():
                raise UserError(f"--model={name}: there is no file {path}")
            return _load_file(path)
        return _load_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the code may raise anything
        raise UserError(
            f"--model={name} cannot be loaded: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def _load_file(path: pathlib.Path) -> types.ModuleType:
    # A unique name, since two files of the same name are two modules.
    key = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    title = f"cifar_flax_own_{path.stem}_{key}"
    files = _checksums(path)
    if title in _LOADED and _LOADED[title][0] == files:
        return _LOADED[title][1]
    module = types.ModuleType(title)
    module.__file__ = str(path)
    # Python would look for compiled code by time and size, which may not change.
    code = compile(path.read_bytes(), str(path), "exec")
    with _importing_from(path.parent, files):
        sys.modules[title] = module  # dataclasses look up their module there
        try:
            exec(code, module.__dict__)
        except BaseException:
            del sys.modules[title]
            raise
    _LOADED[title] = files, module
    return module


def _load_module(place: str) -> types.ModuleType:
    is_new = place not in sys.modules
    try:
        module = importlib.import_module(place)
    except ModuleNotFoundError as error:
        # Only ``python -m`` looks in the current folder.
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        with _importing_from(pathlib.Path.cwd(), {}):
            module = importlib.import_module(place)
    path = getattr(module, "__file__", None)
    if path is None:
        return module
    files = _checksums(pathlib.Path(path))
    known = _LOADED.get(place)
    changed = known is not None and known[0] != files
    # The user's program may have imported it before its file was edited.
    edited = any(one.stat().st_mtime > _STARTED for one in files)
    if changed or (known is None and edited and not is_new):
        with _importing_from(None, files):
            module = importlib.import_module(place)
    _LOADED[place] = files, module
    return module


def _checksums(path: pathlib.Path) -> dict[pathlib.Path, str]:
    files = _files_of(path)
    return {one: hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


@contextlib.contextmanager
def _importing_from(
    folder: pathlib.Path | None, files: Mapping[pathlib.Path, str]
) -> Iterator[None]:
    """Forgets the modules of some files, and imports them from a folder first."""
    stems = {path.stem for path in files} - {"__init__"}
    for title, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        ours = file is not None and pathlib.Path(file) in files
        # A module of the same name from another folder would be taken instead.
        same = folder is not None and title in stems - sys.stdlib_module_names
        if (ours or same) and title.partition(".")[0] not in ("__main__", "cifar_flax"):
            del sys.modules[title]
    importlib.invalidate_caches()
    path, writes = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    if folder is not None:
        sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes
