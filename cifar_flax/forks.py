"""Remembers whether this process was forked from one that had used JAX.

A fork lacks JAX's threads, so that a computation in it may wait forever.
"""

import os
import sys

from cifar_flax.errors import UserError

_forked_after_jax = False


def check_not_forked() -> None:
    """Raises a UserError if JAX was used before this process was forked."""
    if _forked_after_jax:
        raise UserError(
            "this process was forked after JAX was used, and JAX would wait forever in "
            'it; start processes with multiprocessing.get_context("spawn"), or fork '
            "before the first use of JAX"
        )


def _remember() -> None:
    global _forked_after_jax
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is not None and bridge.backends_are_initialized():
        _forked_after_jax = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember)
