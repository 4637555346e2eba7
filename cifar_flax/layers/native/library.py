"""Builds the kernels for this processor, caches the result and loads it."""

import collections
import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import itertools
import logging
import os
import pathlib
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import uuid

import jax

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import open_plain, private_folder

FOLDER = pathlib.Path(__file__).parent
SOURCES = sorted([*FOLDER.glob("*.c"), *FOLDER.glob("*.h")])

# Handlers in the source for XLA's foreign function interface.
HANDLERS = (
    *("conv_forward", "conv_input_gradient", "conv_kernel_gradient"),
    *("channel_sums", "products", "pixelwise", "tile", "untile"),
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
        options = list(itertools.dropwhile(lambda w: not w.startswith("-"), compiler))
        command = [*compiler, *_flags(), *options]  # of two options the last one counts
        macros = _run([*command, "-dM", "-E", "-x", "c", os.devnull])
        instructions = _instructions(compiler, macros)
        functions = _functions(command, macros)
        for name in HANDLERS:
            capsule = jax.ffi.pycapsule(getattr(functions, name))
            jax.ffi.register_ffi_target(target(name), capsule, platform="cpu")
    except (BuildError, OSError, AttributeError) as error:
        logger.warning(
            "no native kernels for this CPU: %s; convolutions use matrix products, "
            "which take about twice as long",
            one_line(error),
        )
        return BuildError(one_line(error))
    found = [line for line in macros.splitlines() if " __VERSION__ " in line]
    version = found[0].split('"')[1] if found else "of unknown version"
    name = shlex.join([pathlib.Path(compiler[0]).name, *compiler[1:]])
    return Library(functions, f"{name} {version}, {instructions}")


# What gives a compiler, by the name of the system.
_INSTALL = collections.defaultdict(
    lambda: "install gcc or clang",
    Linux="install one with `apt install gcc` (Debian, Ubuntu) or `dnf install gcc` "
    "(Fedora)",
    Darwin="install one with `xcode-select --install`",
    Windows="the kernels need Linux or macOS, such as the Windows Subsystem for Linux",
)


def _find_compiler() -> list[str]:
    """Returns the command of a C compiler: ``CC``, else one of the usual names."""
    if given := shlex.split(os.environ.get("CC", "")):
        if shutil.which(given[0]):
            return given
        raise BuildError(f"CC={given[0]} is not found")
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise BuildError(
        f"no C compiler is found (CC, cc, gcc, clang); {_INSTALL[platform.system()]}"
    )


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


# Vector instructions by the macros of the compiler and the flags of the processor.
_VECTORS = {
    "AVX-512": ({"__AVX512F__"}, {"avx512f"}),
    "AVX2": ({"__AVX2__", "__FMA__"}, {"avx2", "fma"}),
    "Neon": ({"__aarch64__"}, set()),
}


def _instructions(compiler: list[str], macros: str) -> str:
    """Returns the name of the vector instructions that the compiler uses."""
    names = {line.split()[1] for line in macros.splitlines() if " " in line}
    processor = _processor()
    for name, (needed, flags) in _VECTORS.items():
        if needed <= names:
            if processor and not flags <= processor:
                raise BuildError(
                    f"CC={shlex.join(compiler)} uses {name}, which the processor lacks"
                )
            return name
    if processor and not processor >= {"avx2", "fma"}:
        raise BuildError("the processor has neither AVX2 nor Neon")
    raise BuildError(
        f"the C compiler {shlex.join(compiler)} uses neither AVX2 nor Neon here; set "
        "CC to gcc or clang, without an option that forbids them"
    )


def _processor() -> set[str]:
    """Returns the flags of an x86 processor in Linux's words; empty if not known."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


def _functions(command: list[str], macros: str) -> ctypes.CDLL:
    """Returns the kernels from the user's cache, or builds and keeps them.

    The name of a kept file is a hash of all that determines its content: source, XLA's
    interface, compiler, flags and processor (from the compiler's macros), and a
    checksum, because loading a truncated file would kill the process. What cannot be
    loaded is not kept.
    """
    header = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    parts = [path.read_bytes() for path in (*SOURCES, header)]
    parts += [macros.encode(), shlex.join(command).encode()]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    key = hashlib.sha256(digests).hexdigest()[:24]
    cache = private_folder("kernels")
    for kept in cache.glob(f"{key}-*.so") if cache else ():
        with contextlib.suppress(OSError, AttributeError, UserError):
            with open_plain(kept) as file:
                name = _name(key, file.read())
            if name == kept.name:
                return _loaded(kept)
    with tempfile.TemporaryDirectory(prefix="cifar_flax-") as folder:
        built = _build(command, pathlib.Path(folder, "kernels.so"))
        content = built.read_bytes()
        if cache is None:
            return _loaded(built)
        # Not in /tmp, which may forbid to run programs.
        trial = cache / f".{key}-{uuid.uuid4().hex}.so"
        try:
            trial.write_bytes(content)
            functions = _loaded(trial)
            for other in cache.glob(f"{key}-*.so"):
                other.unlink(missing_ok=True)
            trial.rename(cache / _name(key, content))
            return functions
        except OSError:  # such as a full disk: each process builds its own
            return _loaded(built)
        finally:
            trial.unlink(missing_ok=True)


def _name(key: str, content: bytes) -> str:
    return f"{key}-{hashlib.sha256(content).hexdigest()[:32]}.so"


def _build(command: list[str], path: pathlib.Path) -> pathlib.Path:
    _run([*command, str(FOLDER / "kernels.c"), "-o", str(path)])
    return path


def _loaded(path: pathlib.Path) -> ctypes.CDLL:
    """Loads the kernels; raises an OSError or AttributeError if a function lacks."""
    functions = ctypes.CDLL(str(path))
    for name in SIZES:
        getattr(functions, name).restype = ctypes.c_int64
        getattr(functions, name).argtypes = [ctypes.c_void_p]
    for name in HANDLERS:
        getattr(functions, name)
    return functions
