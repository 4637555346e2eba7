"""Settings of JAX that a user has chosen."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax
from cifar_flax.jax_settings import known_settings

for _ in range(2):
    with known_settings(), known_settings():
        print(jax.config.jax_disable_jit, jax.config.jax_debug_nans)
print(jax.config.jax_disable_jit, jax.config.jax_debug_nans)
"""


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], []),
        (["jax_disable_jit"], ["call it outside of a run"]),
        (["jax_debug_nans", "jax_debug_infs"], ["becomes NaN", "becomes infinite"]),
    ],
)
def test_what_is_turned_off_is_named_once(names, words):
    variables = {name.upper(): "1" for name in names}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    *inside, after = done.stdout.splitlines()
    assert inside == ["False False"] * 2
    assert after == f"{'jax_disable_jit' in names} {'jax_debug_nans' in names}"
    lines = done.stderr.splitlines()
    assert len(lines) == len(names)
    for line, name, why in zip(lines, names, words, strict=True):
        assert line.startswith(f"{name} has no effect in cifar_flax: ")
        assert why in line
