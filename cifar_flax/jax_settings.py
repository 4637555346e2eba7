"""JAX's own settings, as the numbers of a run need them."""

import contextlib
import os
from collections.abc import Iterator

import jax

from cifar_flax.errors import UserError, one_line


@contextlib.contextmanager
def known_settings() -> Iterator[None]:
    """The settings of JAX that this library is written for, whatever the caller's are.

    The same seed then gives the same numbers where a caller, or a variable such as
    ``JAX_ENABLE_X64``, has chosen another way to draw random numbers, numbers of 64
    bits, no compilation, or an error at each NaN: divergence is found by the run
    itself. Also a decorator of functions.

    Raises:
      UserError: JAX has no device, as where ``JAX_PLATFORMS`` names one that is absent.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device: JAX_PLATFORMS={platforms}; unset it, or name a "
            f"platform that is here, as cpu ({one_line(error) or 'it says no more'})"
        ) from error
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
