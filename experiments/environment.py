"""What a run ran with: code, libraries, device."""

import os
import pathlib
import platform
import subprocess
from importlib import metadata
from typing import Any

import jax

PACKAGES = ("cifar-flax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_environment() -> dict[str, Any]:
    """Versions, device and revision, as ``config.json`` holds them."""
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "device": device_name(),
        "git_revision": git_revision(),
    }


def device_name() -> str:
    """What computes: the accelerators, or the CPU with the cores it may use."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return f"cpu, {len(os.sched_getaffinity(0))} cores"
    return f"{len(devices)} x {devices[0].device_kind}"


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
