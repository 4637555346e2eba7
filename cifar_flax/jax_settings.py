"""The settings of JAX that reproducible results need."""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator

import jax

from cifar_flax.errors import UserError, one_line
from cifar_flax.forks import check_not_forked

# Settings for debugging that this library turns off, and why.
TURNED_OFF = {
    "jax_debug_nans": "a run ends a seed whose loss becomes NaN, and names the step",
    "jax_debug_infs": "a run ends a seed whose loss becomes infinite, and names the "
    "step",
    "jax_disable_jit": "its programs are compiled before they are called; to debug a "
    "model, call it outside of a run",
}

# Environment variables that choose the devices of JAX.
CHOOSE_DEVICES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "JAX_NUM_CPU_DEVICES")

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def known_settings() -> Iterator[None]:
    """Applies the settings of JAX that this library needs, within a block.

    A seed then gives the same results even if the caller, or a variable such as
    ``JAX_ENABLE_X64``, has chosen another random number generator, 64-bit numbers, no
    compilation, or an error at each NaN. A warning names a setting for debugging that
    is turned off, once in a process. It can also decorate functions.

    Raises:
      UserError: JAX has no device, for example because ``JAX_PLATFORMS`` names a
        missing one, or this process was forked after JAX was used.
    """
    check_not_forked()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        given = [f"{n}={os.environ[n]}" for n in CHOOSE_DEVICES if n in os.environ]
        raise UserError(
            f"JAX finds no device: {' '.join(given) or 'JAX_PLATFORMS='}; unset it, or "
            "name an available platform such as cpu "
            f"({one_line(error) or 'no details'})"
        ) from error
    for name in TURNED_OFF:
        if getattr(jax.config, name):
            _warn_of(name)
    with (
        jax.enable_x64(False),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.disable_jit(False),
        jax.debug_nans(False),
        jax.debug_infs(False),
    ):
        yield


@functools.cache
def _warn_of(name: str) -> None:
    logger.warning("%s has no effect in cifar_flax: %s", name, TURNED_OFF[name])
