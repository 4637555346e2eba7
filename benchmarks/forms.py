"""Measures ``cf.fast_convolutions`` in JAX programs without this project's trainer.

    python -m benchmarks.forms
    python -m benchmarks.forms --forms=nnx --forms=lax --batch_size=64 --rounds=3

A ConvMixer in ``flax.linen``, in ``flax.nnx`` and in plain ``jax.lax`` takes steps of
gradient descent: each step a call of a jitted function by XLA's convolutions and by the
kernels, and many steps in one ``lax.scan`` by the kernels. (XLA's gradients of grouped
convolutions take minutes inside a loop.) They take turns, and times are medians. The
data are random, and compilation does not count.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from jax import lax

import cifar_flax as cf
from benchmarks.strangers import FORMS
from cifar_flax.commands import cli
from cifar_flax.runs.tables import make_table
from cifar_flax.show.console import make_console

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        table = make_table("model", "XLA", "kernels", "kernels, scan", "ratio")
        for form in FLAGS.forms:
            table.add_row(form, *measure(form))
        screen = make_console()
        screen.print(table)
        screen.print(
            f"\nMilliseconds a step, batch {FLAGS.batch_size}, medians of "
            f"{FLAGS.rounds} turns; the ratio is that of kernels to XLA, jitted."
        )
    return 0


def measure(form: str) -> list[str]:
    """Returns the cells of a form."""
    state, step = FORMS[form](jax.random.key(0))
    images = jax.random.normal(jax.random.key(1), (FLAGS.batch_size, 32, 32, 3))
    labels = jax.random.randint(jax.random.key(2), (FLAGS.batch_size,), 0, 10)

    def steps(state: Any) -> Any:
        return lax.scan(
            lambda state, _: step(state, images, labels), state, length=FLAGS.steps
        )

    ways: dict[str, tuple[bool, Callable[[Any], Any], int]] = {
        "xla": (False, jax.jit(lambda state: step(state, images, labels)), 1),
        "kernels": (True, jax.jit(lambda state: step(state, images, labels)), 1),
        "scan": (True, jax.jit(steps), FLAGS.steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(FLAGS.rounds + 1):
        for name, (fast, program, count) in ways.items():
            with cf.fast_convolutions(fast):
                begun = time.perf_counter()
                jax.block_until_ready(program(state))
            if turn:  # the first one compiles
                seconds[name].append((time.perf_counter() - begun) / count)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = zip(seconds["kernels"], seconds["xla"], strict=True)
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    return [*(f"{1e3 * value:.1f}" for value in median.values()), f"{ratio:.2f}"]


if __name__ == "__main__":
    flags.DEFINE_multi_enum("forms", list(FORMS), list(FORMS), "Forms to measure.")
    flags.DEFINE_integer("batch_size", 256, "Images in a step.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Turns of each.", lower_bound=1)
    flags.DEFINE_integer("steps", 4, "Steps of a scan.", lower_bound=1)
    sys.exit(main())
