"""Measures the speed of training and evaluation, ours and PyTorch's side by side.

    python -m experiments.benchmark --models=all
    python -m experiments.benchmark --models=convbn,airbench --peer=torch --figure=a.png
    python -m experiments.benchmark --models=convbn --lowerings=auto,product,xla
    python -m experiments.benchmark --models=families --peer=torch
    python -m experiments.benchmark --models=strangers --peer=torch

Each contender has its own process, because their thread pools would disturb each other.
The contenders take turns of about a second, so that other load on the machine affects
all of them. Times are medians over the turns. A ratio is the median over the rounds,
with the smallest and the largest. A step includes augmentation, forward and backward
pass, and update. The data are random.

``--models=strangers`` measures networks of flax's own layers: ``benchmarks.strangers``.
Your own model is named as for experiments.run, and has no peer.
"""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import util
from typing import Any

import numpy as np
from absl import flags
from rich.table import Table

from benchmarks.strangers import STRANGERS
from benchmarks.turns import Worker, WorkerEnded, worker
from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import check_models
from cifar_flax.errors import UserError
from cifar_flax.json_files import write_json
from cifar_flax.own_code import is_own
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.setting_values import choices_of
from cifar_flax.runs.tables import make_table
from cifar_flax.show.console import make_console
from cifar_flax.show.figures import FORMATS, new_figure, save_figure

FLAGS = flags.FLAGS

LOWERINGS = choices_of(SETTINGS["lowering"])
PEERS = {
    "torch eager": "eager",
    "torch channels_last": "channels_last",
    "torch.compile": "compile",
}


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        models = chosen_models(FLAGS.models)
        if not FLAGS.lowerings or set(FLAGS.lowerings) - set(LOWERINGS):
            raise flags.ValidationError(
                f"--lowerings={','.join(FLAGS.lowerings)}: give one or more of "
                + ", ".join(LOWERINGS)
            )
        if FLAGS.batch_size > FLAGS.train_images:
            raise flags.ValidationError(
                f"--batch_size={FLAGS.batch_size}: a step cannot have more images than "
                f"--train_images={FLAGS.train_images}"
            )
        check_peer()
        if FLAGS.figure:
            cli.check_ending("figure", FORMATS)
        for name in ("json", "figure"):  # check now; they are written minutes later
            if value := getattr(FLAGS, name):
                check_writable(name, pathlib.Path(value))
        screen = make_console()
        rows = []
        for model in models:
            rows += measure(model)
            screen.print(f"{model} measured")
            if FLAGS.json:  # keep the result if a later model is interrupted
                write_json(pathlib.Path(FLAGS.json), {"rows": rows})
        screen.print(speed_table(rows))
        if len({row["contender"] for row in rows}) > 1:
            screen.print()
            screen.print(ratio_table(rows))
        screen.print(
            f"\n{rows[0]['device']}; batch {FLAGS.batch_size}, {FLAGS.rounds} rounds; "
            f"evaluation of {FLAGS.eval_images:,} images. Peak of a matrix product: "
            f"{rows[0]['peak_gflops']:.0f} GFLOP/s."
        )
        if FLAGS.figure:
            draw_ratios(rows, pathlib.Path(FLAGS.figure))
    return 0


def chosen_models(names: list[str]) -> list[str]:
    """Returns the models of ``--models``; ``strangers`` stands for all of these."""
    groups = [STRANGERS if name == "strangers" else [name] for name in names]
    known = [*STRANGERS, "strangers"]
    return check_models([name for group in groups for name in group], known)


def contenders(
    lowerings: Sequence[str], python: str | None, *sizes: int
) -> dict[str, list[str]]:
    """Returns the commands of all contenders without the model, ours first.

    Args:
      lowerings: of our convolutions.
      python: the interpreter that has PyTorch; None: no peer.
      *sizes: images of a step, to train on, and to evaluate.
    """
    words = list(map(str, sizes))
    our_turns = [sys.executable, "-m", "benchmarks.our_turns"]
    ours = {
        f"cifar_flax {lowering}": [*our_turns, lowering, *words]
        for lowering in lowerings
    }
    if python is None:
        return ours
    peer = [python, "-m", "benchmarks.torch_peer"]
    return ours | {name: [*peer, how, *words] for name, how in PEERS.items()}


def check_peer() -> None:
    """Raises a UserError if PyTorch is needed and missing."""
    if FLAGS.peer_python and FLAGS.peer != "torch":
        raise UserError(f"--peer_python={FLAGS.peer_python} needs --peer=torch")
    if FLAGS.peer_python:
        if not shutil.which(FLAGS.peer_python):
            raise UserError(
                f"--peer_python={FLAGS.peer_python} is not a program; give the path of "
                "a Python interpreter"
            )
        command = [FLAGS.peer_python, "-c", "import torch"]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            raise UserError(
                f"--peer_python={FLAGS.peer_python} cannot import torch; install it"
            )
    elif FLAGS.peer == "torch" and util.find_spec("torch") is None:
        raise UserError("--peer=torch needs PyTorch: pip install -e '.[bench]'")


def check_writable(flag: str, path: pathlib.Path) -> None:
    """Raises a UserError if a file cannot be written; it leaves no new file."""
    new = not os.path.lexists(path)
    if os.path.exists(path) and not path.is_file():  # it would be replaced
        raise UserError(f"cannot write --{flag}={path}: it exists and is not a file")
    try:
        with open(path, "ab"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise UserError(f"cannot write --{flag}={path}: {error.strerror}") from error


def measure(model: str) -> list[dict[str, Any]]:
    """Measures all contenders; returns a row for each."""
    has_peer = FLAGS.peer == "torch" and not is_own(model)
    python = (FLAGS.peer_python or sys.executable) if has_peer else None
    sizes = (FLAGS.batch_size, FLAGS.train_images, FLAGS.eval_images)
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(worker(*command, model))
            for name, command in contenders(FLAGS.lowerings, python, *sizes).items()
        }
        # One after the other, so that compilations do not disturb each other.
        ready = {name: call(one, "ready") for name, one in workers.items()}
        return take_turns(model, workers, ready, FLAGS.rounds, FLAGS.batch_size)


def take_turns(
    model: str,
    workers: Mapping[str, Worker],
    ready: Mapping[str, Any],
    rounds: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Measures contenders that are ready; returns a row for each.

    Args:
      model: its name.
      workers: the contenders, ours first.
      ready: what each has answered when it was ready.
      rounds: number of turns of each.
      batch_size: images of a step.
    """
    train: dict[str, list[float]] = {name: [] for name in workers}
    evaluate: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds):
        order = list(workers)
        order = order[number % len(order) :] + order[: number % len(order)]
        for name in order:
            train[name].append(call(workers[name], "train"))
        for name in order:
            evaluate[name].append(call(workers[name], "evaluate"))
    memory = {name: call(one, "memory") for name, one in workers.items()}
    ours = next(iter(workers))
    flops = 3 * ready[ours]["flops_per_image"] * batch_size
    rows = []
    for name in workers:
        step = float(np.median(train[name]))
        rows.append(
            {
                "model": model,
                "contender": name,
                "lowering": ready[name].get("lowering"),
                "version": ready[name].get("version"),
                "step_seconds": step,
                "images_per_second": batch_size / step,
                "gflops": flops / step / 1e9,
                "share_of_peak": flops / step / 1e9 / ready[ours]["peak_gflops"],
                "eval_seconds": float(np.median(evaluate[name])),
                "compile_seconds": ready[name]["compile_seconds"],
                "peak_memory_bytes": memory[name],
                "step_ratio": ratio(train[ours], train[name]),
                "eval_ratio": ratio(evaluate[ours], evaluate[name]),
                "rounds": {"step": train[name], "evaluation": evaluate[name]},
                "peak_gflops": ready[ours]["peak_gflops"],
                "device": ready[ours]["device"],
            }
        )
    return rows


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Returns the ratio of two contenders' times over the rounds."""
    ratios = np.array(ours) / np.array(theirs)
    return {
        "median": float(np.median(ratios)),
        "min": float(ratios.min()),
        "max": float(ratios.max()),
    }


def call(one: Worker, request: str) -> Any:
    """Sends a request to a worker; returns the answer."""
    try:
        return one.call(request)
    except WorkerEnded as error:
        raise UserError(
            f"a worker ended in {request!r}; see the error above"
        ) from error


def speed_table(rows: list[dict[str, Any]]) -> Table:
    """Makes a table of the times of each contender."""
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
    last = None
    for row in rows:
        table.add_row(
            row["model"] if row["model"] != last else "",
            row["contender"],
            f"{1e3 * row['step_seconds']:.1f} ms",
            f"{row['images_per_second']:,.0f}",
            f"{row['gflops']:.1f}",
            f"{100 * row['share_of_peak']:.0f} %",
            f"{row['eval_seconds']:.2f} s",
            f"{row['compile_seconds']:.1f} s",
            f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        )
        last = row["model"]
    return table


def ratio_table(rows: list[dict[str, Any]]) -> Table:
    """Makes a table of the ratios of the first contender's time to the others'."""
    ours = rows[0]["contender"]
    title = f"time of {ours} over theirs: median (least - most)"
    table = make_table("model", "", "step", "evaluation", title=title)
    last = None
    for row in rows:
        if row["contender"] != ours:
            ratios = [
                "{median:.2f} ({min:.2f} - {max:.2f})".format(**row[key])
                for key in ("step_ratio", "eval_ratio")
            ]
            model = row["model"] if row["model"] != last else ""
            table.add_row(model, row["contender"], *ratios)
            last = row["model"]
    return table


def draw_ratios(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws the ratios to the last contender to a file."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    ours, name = rows[0]["contender"], rows[-1]["contender"]
    last = {row["model"]: row for row in rows if row["contender"] == name}
    figure = new_figure(8, 1.2 + 0.55 * len(models))
    axis = figure.subplots()
    for k, (key, label) in enumerate(
        (("step_ratio", "training step"), ("eval_ratio", "evaluation"))
    ):
        found = [last[model][key] for model in models]
        medians = np.array([ratio["median"] for ratio in found])
        spread = np.abs([[r["min"], r["max"]] for r in found] - medians[:, None])
        places = np.arange(len(models)) + 0.4 * k
        bars = axis.barh(places, medians, 0.36, xerr=spread.T, label=label)
        axis.bar_label(bars, fmt="%.2f", padding=6)
    axis.axvline(1, color="black", linewidth=1)
    axis.set_yticks(np.arange(len(models)) + 0.2, models)
    axis.invert_yaxis()
    axis.set_xlabel(f"time of {ours} / time of {name}; below 1 is faster")
    axis.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    axis.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path, f"--figure={path}")


if __name__ == "__main__":
    flags.DEFINE_list(
        "models",
        ["all"],
        "Architectures; all: those of the lesson; families: those that came after; "
        f"strangers: nets of flax's own layers, {', '.join(STRANGERS)}.",
    )
    flags.DEFINE_list(
        "lowerings",
        ["auto"],
        "Implementations of our convolutions; the first is compared with the others.",
    )
    flags.DEFINE_enum("peer", "none", ["none", "torch"], "Library to compare with.")
    flags.DEFINE_integer("rounds", 7, "Number of turns of each contender.", 1, 1_000)
    flags.DEFINE_integer("batch_size", 256, "Images in a step.", 1)
    flags.DEFINE_integer(
        "train_images", 50_000, "Random images to train on.", 1, 1_000_000
    )
    flags.DEFINE_integer(
        "eval_images", 10_000, "Random images to evaluate.", 1, 1_000_000
    )
    cli.define_path("peer_python", None, "Python interpreter that has the library.")
    cli.define_path("json", None, "File for all measurements.")
    cli.define_path(
        "figure", None, f"File for a chart of ratios: {', '.join(FORMATS)}."
    )
    sys.exit(main())
