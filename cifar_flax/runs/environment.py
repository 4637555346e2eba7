"""What a run ran with: code, libraries, device."""

import contextlib
import functools
import hashlib
import os
import pathlib
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax

from cifar_flax.files import cache_folder
from cifar_flax.layers.conv import Lowering, describe
from cifar_flax.training.placement import Placement

PACKAGES = ("cifar-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(
    lowering: Lowering, placement: Placement, *, any_cores: bool
) -> dict[str, Any]:
    """Versions, device and revision, as ``config.json`` holds them.

    Args:
      lowering: of the convolutions, which decides the last bits of a number as the
        versions do.
      placement: of the replicas. How the seeds are spread changes no number; how a
        batch is divided changes the order of its sums.
      any_cores: whether the number of a CPU's cores changes no number.
    """
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = "cpu" if any_cores else _cpu()
    if placement.columns > 1:
        kind += f", each batch over {placement.columns}"
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    versions = {name: metadata.version(name) for name in PACKAGES} | {
        "convolutions": describe(lowering),
        "computing device": kind,
        "JAX_DEFAULT_MATMUL_PRECISION": precision or "",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }
    return {
        "versions": versions,
        "python": platform.python_version(),
        "device": device_name(placement),
        "git_revision": git_revision(),
    }


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder for the next command.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, or none where it is empty. The
    default one is of this processor and this jaxlib: a program for another processor
    may end with an illegal instruction where a home folder is shared. Where it cannot
    be written, and on other systems than Linux, there is no cache.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or sys.platform != "linux":
        return
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = ("model name", "flags", "CPU part", "Features")
    processor = sorted({line for line in lines if line.startswith(names)})
    key = "\n".join([metadata.version("jaxlib"), *processor])
    folder = cache_folder()
    if folder is None:
        return
    folder = folder / "programs" / hashlib.sha256(key.encode()).hexdigest()[:12]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        warnings.showwarning = functools.partial(
            _show_warning, folder, warnings.showwarning
        )


def _show_warning(
    folder: pathlib.Path, show: Callable[..., None], message: Warning | str, *args: Any
) -> None:
    """Shows a warning; that of a damaged program in the cache removes it instead.

    JAX compiles such a program again, but puts it into the cache only where there is
    none of its name.
    """
    name = re.match(r"Error reading persistent .* entry for '([\w.]+)'", str(message))
    if name is None:
        show(message, *args)
        return
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{name[1]}-*-cache"):
            path.unlink(missing_ok=True)


def device_name(placement: Placement | None = None) -> str:
    """What computes: the accelerators, or the CPU with the cores it may use.

    Args:
      placement: of the replicas; None for one device.
    """
    placement = placement or Placement(1)
    on_cpu = jax.default_backend() == "cpu"
    count, words = placement.devices, str(placement)
    name = _cpu() if on_cpu else f"{count} x {jax.devices()[0].device_kind}"
    if on_cpu and count > 1:
        name += f" as {count} devices"
    return f"{name}: {words}" if words else name


def _cpu() -> str:
    return f"cpu, {_usable_cores()} cores"


def _usable_cores() -> int:
    """Cores that this process may use, where the system tells; else all there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_revision() -> str | None:
    """The commit of this code, with a + where it was changed since; None without."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        revision, changes = (
            subprocess.run(
                [*git, *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changes else "")
