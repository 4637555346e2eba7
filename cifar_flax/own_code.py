"""A user's own code, named by its place: ``FILE.py:NAME`` or ``MODULE:NAME``.

Own code is a model, or a function that training calls. Loading it runs its file. This
happens only if a user names the code, never because a record names it.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import pathlib
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cifar_flax.errors import UserError, in_words, one_line

MAX_BYTES = 2**20  # largest file whose text is recorded

_STARTED = time.time()

# The modules that were loaded here, by name, with the checksums of their files.
_LOADED: dict[str, tuple[dict[pathlib.Path, str], types.ModuleType]] = {}


def is_own(name: str) -> bool:
    """Returns whether a name says where its code is."""
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
    # If the home folder is unknown, the file is missing, which loading reports.
    return f"{os.path.abspath(os.path.expanduser(place))}:{what}"


@dataclasses.dataclass(frozen=True)
class Source:
    """Place and content of own code.

    Attributes:
      path: path of the file; None if there is no file, as for a cell of a notebook.
      sha256: sha256 of the file or of the cell, in hex.
      text: its text, for the record; None if it is too large or not UTF-8.
      helpers: the modules of its own folder that it imports, directly or not.
    """

    path: str | None
    sha256: str | None = None
    text: str | None = None
    helpers: tuple["Source", ...] = ()


@dataclasses.dataclass(frozen=True)
class OwnCode:
    """A user's function with its source; it is called as the function is.

    Two are equal if their names and sources are.

    Attributes:
      name: the place that a user named, or the name of a function that a program gave.
      function: the function.
      source: its code.
    """

    name: str
    function: Callable[..., Any] = dataclasses.field(compare=False)
    source: Source

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)


def load_code(given: str | Callable[..., Any], flag: str) -> OwnCode:
    """Returns a function with its source.

    Args:
      given: the place of the function, whose code this runs if it is new, or the
        function.
      flag: name of the setting that names it, for errors.

    Raises:
      UserError: the code does not exist, it fails, or it is not callable.
    """
    if isinstance(given, OwnCode):
        return given
    if isinstance(given, str):
        return OwnCode(given, load(given, flag), source_of(given, flag))
    return OwnCode(_name_of(given), given, _source_of_function(given))


def load(name: str, flag: str) -> Callable[..., Any]:
    """Returns what a place names; this runs its code, if it is new.

    Args:
      name: the place.
      flag: name of the setting that names it, for errors.

    Raises:
      UserError: the code does not exist, it fails, or it is not callable.
    """
    what = label_of(name)
    found: Any = getattr(_load(name, flag), what, None)
    if not callable(found):
        raise UserError(f"--{flag}={name}: there is no callable {what}")
    return found


def source_of(name: str, flag: str = "model") -> Source:
    """Runs the code of a place, if it is new, and returns its source.

    Raises:
      UserError: the code does not exist, or it fails.
    """
    path = getattr(_load(name, flag), "__file__", None)
    return Source(None) if path is None else _source_with_helpers(pathlib.Path(path))


def _source_with_helpers(path: pathlib.Path) -> Source:
    first, *helpers = (_source(one) for one in _files_of(path))
    return dataclasses.replace(first, helpers=tuple(helpers))


def _source_of_function(function: Callable[..., Any]) -> Source:
    """Returns the source of a function that a program gave, if it can be known."""
    inner: Any = _innermost(function)
    try:
        path = pathlib.Path(inspect.getsourcefile(inner) or "")
        if not path.is_file():  # a cell of a notebook
            text = inspect.getsource(inner)
            return Source(None, hashlib.sha256(text.encode()).hexdigest(), text)
        if any(one.stat().st_mtime > _STARTED for one in _files_of(path)):
            return Source(None)  # the file may not be what Python has imported
        return _source_with_helpers(path)
    except (OSError, TypeError):  # a function written in C, or typed in a terminal
        return Source(None)


def _innermost(function: Any) -> Any:
    """Returns what holds the code of a function that may be wrapped."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    is_plain = inspect.isroutine(function) or inspect.isclass(function)
    return function if is_plain else type(function)


def _name_of(function: Any) -> str:
    inner = _innermost(function)
    return in_words(getattr(inner, "__name__", type(inner).__name__))


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


def _load(name: str, flag: str) -> types.ModuleType:
    """Returns the module of a place, loaded anew if its files have changed."""
    place = name.rpartition(":")[0]
    try:
        if place.endswith(".py"):
            path = pathlib.Path(place).absolute()
            if not path.is_file():
                raise UserError(f"--{flag}={name}: there is no file {path}")
            return _load_file(path)
        return _load_module(place)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the code may raise anything
        raise UserError(
            f"--{flag}={name} cannot be loaded: {type(error).__name__}: "
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
