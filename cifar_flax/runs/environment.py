"""Describes what a run runs with: code, libraries and device."""

import contextlib
import dataclasses
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
import msgspec

from cifar_flax import records
from cifar_flax.files import private_folder
from cifar_flax.layers.conv import Lowering, describe
from cifar_flax.own_code import Source
from cifar_flax.training.placement import Placement

PACKAGES = ("cifar-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment(
    lowering: Lowering, placement: Placement, *, any_cores: bool
) -> dict[str, Any]:
    """Returns versions, device and revision for ``config.json``.

    Args:
      lowering: of the convolutions. Like the versions, it affects the last bits of the
        results.
      placement: of the replicas. Spreading the seeds does not change results; dividing
        a batch changes the order of its sums.
      any_cores: whether the results do not depend on the number of CPU cores.
    """
    kind = jax.devices()[0].device_kind
    if jax.default_backend() == "cpu":
        kind = "cpu" if any_cores else _cpu()
    if placement.columns > 1:
        kind += f", each batch over {placement.columns}"
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    versions = package_versions() | {
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


def describe_source(source: Source) -> records.ModelSource:
    """Returns the source of own code for ``config.json``."""
    return msgspec.convert(dataclasses.asdict(source), records.ModelSource)


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that affect the results."""
    return {name: metadata.version(name) for name in PACKAGES}


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder for the next command.

    ``JAX_COMPILATION_CACHE_DIR`` names another folder, or turns the cache off if it is
    empty. The default folder depends on the processor and on the version of jaxlib,
    because a home folder may be shared by machines, and a program for another processor
    may fail with an illegal instruction. There is no cache if the folder cannot be
    written or belongs to another user, or on systems other than Linux.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or sys.platform != "linux":
        return
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = ("model name", "flags", "CPU part", "Features")
    processor = sorted({line for line in lines if line.startswith(names)})
    key = "\n".join([metadata.version("jaxlib"), *processor])
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = private_folder("programs", digest)
    if folder is not None and os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        warnings.showwarning = functools.partial(
            _show_warning, folder, warnings.showwarning
        )


def _show_warning(
    folder: pathlib.Path, show: Callable[..., None], message: Warning | str, *args: Any
) -> None:
    """Shows a warning, or removes the damaged program that it is about.

    JAX compiles a damaged program again, but does not replace it in the cache.
    """
    name = re.match(r"Error reading persistent .* entry for '([\w.]+)'", str(message))
    if name is None:
        show(message, *args)
        return
    with contextlib.suppress(OSError):
        for path in folder.glob(f"{name[1]}-*-cache"):
            path.unlink(missing_ok=True)


def device_name(placement: Placement | None = None) -> str:
    """Returns the name of the accelerators, or of the CPU with its usable cores.

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
    """Returns the number of cores that this process may use, if the system tells it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_revision() -> str | None:
    """Returns the commit of this code, with a + if the code was changed since.

    None if no repository has this file, as after an installation into the environment
    of another project, whose repository surrounds it.
    """
    here = pathlib.Path(__file__)
    git = ["git", "-C", str(here.parents[1])]
    # Variables such as GIT_DIR name another repository, and are set in a hook of git.
    own = {n: value for n, value in os.environ.items() if not n.startswith("GIT_")}
    commands = (
        ["ls-files", "--error-unmatch", str(here)],
        ["rev-parse", "HEAD"],
        ["status", "--porcelain", "-uno", "--", "."],
    )
    try:
        _, revision, changes = (
            subprocess.run(
                [*git, *command],
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=True,
                timeout=10,
                env=own,
            ).stdout.strip()
            for command in commands
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changes else "")
