"""Measures on one GPU how fast training, evaluation and start are, beside PyTorch.

    python -m benchmarks.gpu_check --json=gpu.json --data_archive=ARCHIVE
    python -m benchmarks.gpu_check --json=dry.json --dry_run

Each part is a process of its own with a share of ``--minutes``; a part that ends early
leaves its time to the next. The file is written after each figure, so that figures stay
when a later part fails or the time is over.

``steps``           a step and the evaluation of each net, beside PyTorch
``accuracy``        the recipes of airbench: seconds and accuracy of ten seeds, one at a
                    time and side by side, in bfloat16
``torch_accuracy``  airbench94 in PyTorch as published, in half precision and compiled
``dtypes``          bfloat16 beside float32: accuracy, paired over ten seeds
``seeds``           a step for 1, 2, 5 and 10 seeds side by side
``peak``            the share of the speed of a large matrix product, and the time of
                    each kind of kernel
``start``           the start of a run with an empty and a filled cache of programs

``--dry_run`` tries all parts with tiny sizes, as on a CPU.
"""

import contextlib
import datetime
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags
from rich.table import Table

from benchmarks.benchmark import check_writable, ratio_table
from benchmarks.turns import ROOT
from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import define_settings
from cifar_flax.json_files import write_json
from cifar_flax.runs.environment import git_revision
from cifar_flax.runs.tables import make_table
from cifar_flax.show.console import make_console

FLAGS = flags.FLAGS

# The parts, and the share of the time of each.
SHARES = {
    "machine": 0.03,
    "steps": 0.27,
    "accuracy": 0.2,
    "torch_accuracy": 0.13,
    "dtypes": 0.1,
    "seeds": 0.11,
    "peak": 0.09,
    "start": 0.07,
}
NEED_DATA = ("accuracy", "torch_accuracy", "dtypes")
DATA_FLAGS = ("data_dir", "data_archive", "archive_sha256")

Part = dict[str, Any]


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        path = pathlib.Path(FLAGS.json)
        check_writable("json", path)
        if not FLAGS.parts or set(FLAGS.parts) - set(SHARES):
            raise flags.ValidationError(
                f"--parts={','.join(FLAGS.parts)}: give some of {', '.join(SHARES)}"
            )
        data = {n: FLAGS[n].value for n in DATA_FLAGS if FLAGS[n].value is not None}
        options = json.dumps({"dry_run": FLAGS.dry_run, "data": data})
        screen, parts = make_console(), dict[str, Part]()
        about = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "revision": git_revision(),
            "dry_run": FLAGS.dry_run,
        }
        end = time.monotonic()
        for name in [name for name in SHARES if name in FLAGS.parts]:
            end += 60 * FLAGS.minutes * SHARES[name]
            part = parts[name] = {"status": "running", "rows": []}

            def keep(parts: dict[str, Part] = parts) -> None:
                write_json(path, {**about, "parts": parts})

            if name in NEED_DATA and not (data or FLAGS.dry_run):
                part["status"] = "left out: give --data_dir or --data_archive"
            else:
                measure(name, options, end - time.monotonic(), part, keep)
            keep()
            screen.print(f"{name}: {part['status']}, {len(part['rows'])} rows")
        for table in tables(parts):
            screen.print(table)
        screen.print(f"all figures: {path}")
        ended = [re.match("done$|left out", part["status"]) for part in parts.values()]
    return 0 if all(ended) else 1


def measure(
    name: str, options: str, limit: float, part: Part, keep: Callable[[], None]
) -> None:
    """Runs a part within a time limit.

    Args:
      name: of the part.
      options: see ``gpu_parts``.
      limit: seconds, after which the processes of the part are killed.
      part: gets the rows, the status and the seconds.
      keep: called after each row.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name, options]
    begun, late = time.monotonic(), threading.Event()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=ROOT,
            env=environment(),
            start_new_session=True,  # its group holds its own workers, too
        )

        def stop() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(1.0, limit), stop)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                part["rows"].append(json.loads(line))
                keep()
            status = process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                stop()
                process.wait()
        errors.seek(0)
        lines = [line.rstrip() for line in errors if line.strip()]
    part["seconds"] = time.monotonic() - begun
    part["status"] = "done"
    if late.is_set():
        part["status"] = f"out of time after {part['seconds']:.0f} s"
    elif status:
        part["status"] = f"failed: {lines[-1] if lines else f'status {status}'}"
    elif failed := [row for row in part["rows"] if "error" in row]:
        part["status"] = f"done, except {len(failed)} that failed"
    if part["status"] != "done":
        part["errors"] = lines[-30:]


def environment() -> dict[str, str]:
    """Returns the environment of a part; a dry run spends less on compilation."""
    found = dict(os.environ)
    if FLAGS.dry_run:
        given = found.get("XLA_FLAGS", "")
        found["XLA_FLAGS"] = f"{given} --xla_backend_optimization_level=0"
    return found


def tables(parts: dict[str, Part]) -> list[Table]:
    """Makes tables of the ratios to PyTorch, and of the times to an accuracy."""
    found = []
    rows = [row for row in rows_of(parts, "steps") if "step_ratio" in row]
    if len({row["contender"] for row in rows}) > 1:
        found.append(ratio_table(rows))
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for row in [r for name in NEED_DATA for r in rows_of(parts, name) if "recipe" in r]:
        key = row["library"], row["recipe"], row["dtype"], len(row["seeds"])
        groups.setdefault(key, []).append(row)
    if groups:
        columns = ("", "recipe", "dtype", "seeds side by side", "seconds a seed")
        table = make_table(*columns, "with compilation", "accuracy", "seeds")
        for (library, recipe, dtype, count), some in groups.items():
            right = [one for row in some for one in row["accuracies"]]
            table.add_row(
                *(library, recipe, dtype, str(count)),
                f"{np.median([row['seconds'] for row in some]) / count:.2f}",
                f"{some[0]['wall_seconds'] / count:.1f}",
                f"{100 * np.mean(right):.2f} %",
                str(len(right)),
            )
        found.append(table)
    return found


def rows_of(parts: dict[str, Part], name: str) -> list[Any]:
    """Returns the rows of a part; none if it was not run."""
    return parts[name]["rows"] if name in parts else []


if __name__ == "__main__":
    define_settings(*DATA_FLAGS)
    cli.define_path("json", "gpu_check.json", "File for all figures.")
    flags.DEFINE_list("parts", list(SHARES), f"Parts: {', '.join(SHARES)}.")
    flags.DEFINE_float("minutes", 7.5, "Time for all parts.", 0.01, 600)
    flags.DEFINE_bool("dry_run", False, "Try all parts with tiny sizes.")
    sys.exit(main())
