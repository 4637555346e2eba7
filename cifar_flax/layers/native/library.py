"""Builds the kernels for this processor, caches the result and loads it."""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator

import jax

from cifar_flax.errors import one_line
from cifar_flax.files import cache_folder, replacing

FOLDER = pathlib.Path(__file__).parent
SOURCES = sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")])

# Handlers in the source for XLA's foreign function interface.
HANDLERS = (
    *("conv_forward", "conv_input_gradient", "conv_kernel_gradient"),
    *("channel_sums", "tile", "untile"),
)

# Functions in the source that return the size of a workspace.
SIZES = ("forward_size", "input_gradient_size", "kernel_gradient_size")

# In seconds. A build takes about one; a compiler that hangs must not hang a run.
_TIMEOUT = 120

logger = logging.getLogger(__name__)
_lock = threading.Lock()


class BuildError(Exception):
    """The kernels are not available; the message says why in a few words."""


@dataclasses.dataclass(frozen=True)
class Library:
    """The loaded kernels.

    Attributes:
      functions: the functions of the source, for ctypes.
      description: compiler and vector instructions.
    """

    functions: ctypes.CDLL
    description: str


def load() -> Library:
    """Returns the kernels; the first call finds or builds them and registers them.

    Raises:
      BuildError: the kernels are not available.
    """
    with _lock:
        found = _load()
    if isinstance(found, BuildError):
        raise found
    return found


def available() -> bool:
    """Returns whether the kernels are available; see ``load``."""
    try:
        load()
    except BuildError:
        return False
    return True


def target(handler: str) -> str:
    """Returns the name by which XLA knows a handler."""
    return f"cifar_flax_{handler}"


@functools.cache
def _load() -> Library | BuildError:
    try:
        compiler = _find_compiler()
        command = [*compiler, *_flags()]
        macros = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
        instructions = _instructions(macros)
        with _built(command, macros) as path:
            functions = ctypes.CDLL(str(path))
        for name in SIZES:
            getattr(functions, name).restype = ctypes.c_int64
            getattr(functions, name).argtypes = [ctypes.c_int64] * 8
        for name in HANDLERS:
            capsule = jax.ffi.pycapsule(getattr(functions, name))
            jax.ffi.register_ffi_target(target(name), capsule, platform="cpu")
    except (BuildError, OSError, AttributeError) as error:
        logger.warning(
            "no native kernels for this CPU: %s; convolutions use matrix products, "
            "which are slower",
            one_line(error),
        )
        return BuildError(one_line(error))
    found = [line for line in macros.splitlines() if " __VERSION__ " in line]
    version = found[0].split('"')[1] if found else "of unknown version"
    name = pathlib.Path(compiler[0]).name
    return Library(functions, f"{name} {version}, {instructions}")


def _find_compiler() -> list[str]:
    """Returns the command of a C compiler: ``CC``, else one of the usual names."""
    if given := shlex.split(os.environ.get("CC", "")):
        if shutil.which(given[0]):
            return given
        raise BuildError(f"CC={given[0]} is not found")
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError("no C compiler is found (CC, cc, gcc, clang)")


def _flags() -> list[str]:
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return [
        *("-std=gnu11", "-O3", "-mcpu=native" if arm else "-march=native"),
        *("-fPIC", "-shared", f"-I{jax.ffi.include_dir()}"),
    ]


def _run(command: list[str]) -> str:
    """Returns what a command prints, or raises BuildError if it fails."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildError(
            f"the C compiler {command[0]} did not finish within {_TIMEOUT} s"
        ) from error
    except (OSError, UnicodeError) as error:
        raise BuildError(f"the C compiler {command[0]} fails: {error}") from error
    if done.returncode:
        lines = done.stderr.splitlines() or ["it printed no message"]
        said = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"the C compiler {command[0]} fails: {said}")
    return done.stdout


def _instructions(macros: str) -> str:
    """Returns the name of the vector instructions that the compiler may use."""
    names = {line.split()[1] for line in macros.splitlines() if " " in line}
    if "__AVX512F__" in names:
        return "AVX-512"
    if {"__AVX2__", "__FMA__"} <= names:
        return "AVX2"
    if "__aarch64__" in names:
        return "Neon"
    raise BuildError("the processor has neither AVX2 nor Neon")


@contextlib.contextmanager
def _built(command: list[str], macros: str) -> Iterator[pathlib.Path]:
    """Yields the file to load, from the user's cache or newly built.

    Its name is a hash of all that determines its content: source, XLA's interface,
    compiler, flags and processor (from the compiler's macros). It ends with a checksum,
    because loading a truncated file would kill the process; the loader ignores it.
    """
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    parts = [path.read_bytes() for path in (*SOURCES, header)]
    parts += [macros.encode(), shlex.join(command).encode()]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    key = hashlib.sha256(digests).hexdigest()[:24]
    caches = cache_folder()
    kept = caches and caches / "kernels" / f"{key}.so"
    if kept and _is_sound(kept):
        yield kept
        return
    with tempfile.TemporaryDirectory(prefix="cifar_flax-") as folder:
        built = _build(command, pathlib.Path(folder, "kernels.so"))
        content = built.read_bytes()
        with contextlib.suppress(OSError):  # on failure each process builds its own
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with replacing(kept) as file:
                    file.write(content + hashlib.sha256(content).digest())
        yield kept if kept and _is_sound(kept) else built


def _build(command: list[str], path: pathlib.Path) -> pathlib.Path:
    _run([*command, str(FOLDER / "kernels.c"), "-o", str(path)])
    return path


def _is_sound(path: pathlib.Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-32]).digest() == content[-32:]
