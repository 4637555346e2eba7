"""Settings of JAX that a user has chosen."""

import os
import pathlib
import subprocess
import sys

import pytest

import cifar_flax

ROOT = pathlib.Path(__file__).parents[1]

CODE = """
import jax
from cifar_flax.jax_settings import known_settings

for _ in range(2):
    with known_settings(), known_settings():
        print(jax.config.jax_disable_jit, jax.config.jax_debug_nans)
print(jax.config.jax_disable_jit, jax.config.jax_debug_nans)
"""


FORK = """
import multiprocessing, os, sys, warnings
import cifar_flax as cf

warnings.simplefilter("ignore")
if "before" in sys.argv:
    import jax.numpy as jnp
else:
    jnp = None

def act(queue):
    try:
        net = cf.create_model("simplenet")
        import jax
        from cifar_flax.jax_settings import known_settings
        with known_settings():
            queue.put(str(jax.numpy.ones(3).sum()))
    except cf.UserError as error:
        queue.put(str(error))

if jnp is not None:
    jnp.ones(3).sum().block_until_ready()
context = multiprocessing.get_context("fork")
queue = context.Queue()
process = context.Process(target=act, args=(queue,))
process.start()
print(queue.get(timeout=60))
process.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("before", 'get_context("spawn")'),
        pytest.param("after", "3.0", marks=pytest.mark.slow),
    ],
)
def test_a_fork_after_jax_was_used_is_refused(order, words):
    """JAX could wait forever in it; a fork before that is as good as any process."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, order],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert words in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("names", "words"),
    [
        pytest.param([], [], marks=pytest.mark.slow),
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


def started(*words, **variables):
    """A command with environment variables, from the first line of Python on."""
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JAX_ENABLE_X64", "maybe"),
        ("JAX_NUM_CPU_DEVICES", "two"),
        ("JAX_SERIALIZATION_VERSION", "new"),
        ("JAX_PLATFORM_NAME", "abacus"),
    ],
)
def test_a_variable_that_jax_refuses_is_named_in_one_line(name, value):
    variables = {"JAX_PLATFORMS": "", name: value}
    words = ["--model=simplenet", "--dataset=shapes", "--lr=0.1"]
    done = started("experiments.run", *words, **variables)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"{name}={value}" in line
    assert "unset" in line
    done = started("experiments.run", *words, "--debug", **variables)
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_a_backend_of_matplotlib_that_does_not_exist_is_not_needed(tmp_path):
    done = started("experiments.report", f"--runs={tmp_path}", MPLBACKEND="abacus")
    assert done.stderr.startswith(f"error: {tmp_path} holds no finished run")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", ".run"])
def test_a_command_tells_its_version(name):
    done = started(f"experiments{name}", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"cifar_flax {cifar_flax.__version__}\n"
