"""The settings of JAX that reproducible results need."""

import contextlib
import os
from collections.abc import Iterator

import jax

from cifar_flax.errors import UserError, one_line


@contextlib.contextmanager
def known_settings() -> Iterator[None]:
    """Applies the settings of JAX that this library needs, within a block.

    A seed then gives the same results even if the caller, or a variable such as
    ``JAX_ENABLE_X64``, has chosen another random number generator, 64-bit numbers, no
    compilation, or an error at each NaN. (A run detects divergence itself.) It can also
    decorate functions.

    Raises:
      UserError: JAX has no device, for example because ``JAX_PLATFORMS`` names a
        missing one.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise UserError(
            f"JAX finds no device: JAX_PLATFORMS={platforms}; unset it, or name an "
            f"available platform such as cpu ({one_line(error) or 'no details'})"
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
