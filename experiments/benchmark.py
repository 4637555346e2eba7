"""Measures the speed of training and evaluation, ours and PyTorch's side by side.

    python -m experiments.benchmark --models=all
    python -m experiments.benchmark --models=convbn --peer=torch --json=speed.json

Each contender lives in a process of its own, since their thread pools disturb each
other in one, and works in turns of about a second while the others wait; turns
alternate, so that what else the machine does hits all alike. Times are medians over
the turns; a ratio is the median over the rounds, with its smallest and largest. A step
is augmentation, forward, backward and update; the data are random.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import resource
import sys
import time
from collections.abc import Iterator
from importlib import util
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from cifar_flax.errors import UserError
from cifar_flax.json_files import write_json
from cifar_flax.runs.console import make_console, make_table
from experiments import cli
from experiments.setting_flags import check_models

FLAGS = flags.FLAGS

OURS = "cifar_flax"
PEERS = ("eager", "channels_last", "compile")
TRAIN_IMAGES = 50_000
EVAL_IMAGES = 10_000


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        models = check_models(FLAGS.models)
        if FLAGS.peer == "torch" and util.find_spec("torch") is None:
            raise UserError("--peer=torch needs PyTorch: pip install -e '.[bench]'")
        if FLAGS.json:  # minutes before it is written
            check_writable(pathlib.Path(FLAGS.json))
        contenders = [OURS] + [name for name in PEERS if FLAGS.peer == "torch"]
        screen = make_console()
        rows = []
        for model in models:
            rows += measure(model, contenders, screen)
        screen.print(speed_table(rows))
        if len(contenders) > 1:
            screen.print()
            screen.print(ratio_table(rows))
        screen.print(
            f"\n{rows[0]['device']}; batch {FLAGS.batch_size}, {FLAGS.rounds} rounds; "
            f"evaluation of {EVAL_IMAGES:,} images. Peak of a matrix product: "
            f"{rows[0]['peak_gflops']:.0f} GFLOP/s."
        )
        if FLAGS.json:
            write_json(pathlib.Path(FLAGS.json), {"rows": rows})
    return 0


def check_writable(path: pathlib.Path) -> None:
    """Raises a UserError where a file cannot be written, and leaves no new one."""
    new = not os.path.lexists(path)
    if os.path.exists(path) and not path.is_file():  # it would be replaced
        raise UserError(f"cannot write --json={path}: it is there and no file")
    try:
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write --json={path}: {error.strerror}") from error


def measure(model: str, contenders: list[str], screen: Console) -> list[dict[str, Any]]:
    """A row for each contender."""
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(name, model)) for name in contenders
        }
        # One after the other: a compilation must not disturb another's.
        ready = {name: call(pipe, "ready") for name, pipe in workers.items()}
        train: dict[str, list[float]] = {name: [] for name in workers}
        evaluate: dict[str, list[float]] = {name: [] for name in workers}
        for number in range(FLAGS.rounds):
            order = list(workers)
            order = order[number % len(order) :] + order[: number % len(order)]
            for name in order:
                train[name].append(call(workers[name], "train"))
            for name in order:
                evaluate[name].append(call(workers[name], "evaluate"))
        memory = {name: call(pipe, "memory") for name, pipe in workers.items()}
    screen.print(f"{model} measured")
    flops = 3 * ready[OURS]["flops_per_image"] * FLAGS.batch_size
    rows = []
    for name in workers:
        step = float(np.median(train[name]))
        rows.append(
            {
                "model": model,
                "contender": name,
                "step_seconds": step,
                "images_per_second": FLAGS.batch_size / step,
                "gflops": flops / step / 1e9,
                "share_of_peak": flops / step / 1e9 / ready[OURS]["peak_gflops"],
                "eval_seconds": float(np.median(evaluate[name])),
                "compile_seconds": ready[name]["compile_seconds"],
                "peak_memory_bytes": memory[name],
                "step_ratio": ratio(train[OURS], train[name]),
                "eval_ratio": ratio(evaluate[OURS], evaluate[name]),
                "rounds": {"step": train[name], "evaluation": evaluate[name]},
                "peak_gflops": ready[OURS]["peak_gflops"],
                "device": ready[OURS]["device"],
            }
        )
    return rows


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """The ratio of two contenders' times, round by round."""
    ratios = np.array(ours) / np.array(theirs)
    return {
        "median": float(np.median(ratios)),
        "min": float(ratios.min()),
        "max": float(ratios.max()),
    }


@contextlib.contextmanager
def worker(contender: str, model: str) -> Iterator[Connection]:
    """A process that measures a contender when it is told to."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=serve, args=(theirs, contender, model, FLAGS.batch_size), daemon=True
    )
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(timeout=10)
        process.kill()


def call(pipe: Connection, request: str) -> Any:
    """Sends a request to a worker and waits for its answer."""
    try:
        pipe.send(request)
        return pipe.recv()
    except (EOFError, OSError) as error:
        raise UserError(f"a worker ended in {request!r}; see above for why") from error


def serve(pipe: Connection, contender: str, model: str, batch_size: int) -> None:
    """Answers requests until the other end closes; runs in a process of its own."""
    if contender == OURS:
        subject: Ours | Theirs = Ours(model, batch_size)
    else:
        subject = Theirs(model, contender, batch_size)
    answers = {
        "ready": subject.ready,
        "train": subject.train,
        "evaluate": subject.evaluate,
        "memory": peak_memory,
    }
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(answers[pipe.recv()]())


def peak_memory() -> int:
    """Peak memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Ours:
    """The trainer as ``experiments.run`` has it."""

    def __init__(self, model: str, batch_size: int):
        """Makes it, with random data."""
        from cifar_flax.data import Split, Splits
        from cifar_flax.models import create_model
        from cifar_flax.training.recipes import LESSON, Constant
        from cifar_flax.training.trainer import Trainer

        rng = np.random.default_rng(0)

        def split(count: int) -> Split:
            images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
            return Split(images, rng.integers(0, 10, count).astype(np.int32))

        self.splits = Splits(
            split(TRAIN_IMAGES), None, split(EVAL_IMAGES), 10, (0.5,) * 3, (0.25,) * 3
        )
        recipe = dataclasses.replace(
            LESSON[model], phases=(Constant(0.01, 1_000),), batch_size=batch_size
        )
        self.trainer = Trainer(create_model(model), recipe, self.splits.spec)

    def ready(self) -> dict[str, Any]:
        """Compiles, and measures what the device can do."""
        from cifar_flax.runs.environment import device_name
        from cifar_flax.runs.estimates import peak_gflops

        state = self.trainer.init()
        self.progress = self.trainer.run(state, self.splits.train)
        for _ in range(4):  # until a turn takes its second
            self.train()
        self.evaluate()
        return {
            "compile_seconds": self.trainer.compile_seconds,
            "flops_per_image": sum(row.flops for row in self.trainer.layers),
            "peak_gflops": peak_gflops(),
            "device": device_name(),
        }

    def train(self) -> float:
        """Seconds a step, over about a second."""
        done = next(self.progress)
        self.state = done.state
        return done.seconds * self.trainer.recipe.batch_size / done.images

    def evaluate(self) -> float:
        """Seconds for the logits of the test images."""
        start = time.perf_counter()
        self.trainer.evaluate(self.state, self.splits.test)
        return time.perf_counter() - start


class Theirs:
    """PyTorch."""

    def __init__(self, model: str, variant: str, batch_size: int):
        """Makes it, with random data."""
        import torch

        from experiments.torch_peer import PeerTrainer

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.trainer = PeerTrainer(model, variant, batch_size, device)

    def ready(self) -> dict[str, Any]:
        """Compiles, and learns how many steps a second takes."""
        start = time.perf_counter()
        self.trainer.train(2)
        self.evaluate()
        compiled = time.perf_counter() - start
        again = time.perf_counter()
        self.steps = max(1, round(1 / self.trainer.train(4)))
        warm = time.perf_counter() - again
        return {"compile_seconds": max(0.0, compiled - warm)}

    def train(self) -> float:
        """Seconds a step, over about a second."""
        return self.trainer.train(self.steps)

    def evaluate(self) -> float:
        """Seconds for the logits of as many images."""
        return self.trainer.evaluate(EVAL_IMAGES)


def speed_table(rows: list[dict[str, Any]]) -> Table:
    """Figures of each contender."""
    table = make_table(
        "model",
        "",
        "step",
        "images/s",
        "GFLOP/s",
        "of peak",
        "evaluation",
        "compilation",
        "memory",
    )
    for row in rows:
        table.add_row(
            row["model"] if row["contender"] == OURS else "",
            row["contender"],
            f"{1e3 * row['step_seconds']:.1f} ms",
            f"{row['images_per_second']:,.0f}",
            f"{row['gflops']:.1f}",
            f"{100 * row['share_of_peak']:.0f} %",
            f"{row['eval_seconds']:.2f} s",
            f"{row['compile_seconds']:.1f} s",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        )
    return table


def ratio_table(rows: list[dict[str, Any]]) -> Table:
    """Our time over each of theirs."""
    columns = [f"{what}\n{peer}" for what in ("step", "evaluation") for peer in PEERS]
    title = "our time over theirs: median (least - most)"
    table = make_table("model", *columns, title=title)
    for model in dict.fromkeys(row["model"] for row in rows):
        by_name = {row["contender"]: row for row in rows if row["model"] == model}
        table.add_row(
            model,
            *(
                "{median:.2f} ({min:.2f} - {max:.2f})".format(**by_name[peer][key])
                for key in ("step_ratio", "eval_ratio")
                for peer in PEERS
            ),
        )
    return table


if __name__ == "__main__":
    flags.DEFINE_list("models", ["all"], "Architectures, or all of them.")
    flags.DEFINE_enum("peer", "none", ["none", "torch"], "Library to measure against.")
    flags.DEFINE_integer("rounds", 7, "Turns of each contender.", 1, 1_000)
    flags.DEFINE_integer("batch_size", 256, "Images in a step.", 1, TRAIN_IMAGES)
    cli.define_text("json", None, "File for all figures.")
    sys.exit(main())
