"""Disturbs runs at random moments, continues them, and compares the results.

    python -m tests.kill --kills=100

Every second disturbance comes at a random time: SIGKILL, or a request to stop, which
is SIGTERM, SIGHUP, or a closed output. The others come
before a random operation on a random file in the run's folder, so that short
moments, such as that before ``result.json`` is renamed, are hit as well as long ones:
SIGKILL, or a failed operation as on a full disk. Every finished run is compared with
an undisturbed one: parameters, statistics, optimizer state, metrics, logits and
result must be equal, bit for bit.
"""

import argparse
import collections
import dataclasses
import errno
import json
import os
import pathlib
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import msgspec
import numpy as np

from cifar_flax import records

ROOT = pathlib.Path(__file__).parents[1]

FLAGS = ["--model=convbn", "--lr=0.01", "--cycles=3", "--seeds=3,5"]

# Disturbances at a random time, and disturbances before an operation.
AT_A_TIME = ("SIGKILL", "SIGTERM", "SIGHUP", "SIGPIPE")
AT_AN_OPERATION = ("SIGKILL", "ENOSPC")

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")

# Fields that may differ between runs.
TIMES = ("seconds", "train_seconds", "compile_seconds", "images_per_second")


def run_counting(folder: str, kill_before: str, how: str, argv: list[str]) -> None:
    """Runs in the child process, with a disturbance before an operation on the folder.

    It writes a line with the target of each operation to a file beside the folder.

    Args:
      folder: of the run.
      kill_before: ``NAME:N``, the n-th operation on that file or folder of the run's.
      how: one of ``AT_AN_OPERATION``.
      argv: flags.
    """
    operations: list[str] = []

    def hook(event: str, args: tuple) -> None:
        if event in OPERATIONS and str(args[0]).startswith(f"{folder}/"):
            name = str(args[0])[len(folder) + 1 :].partition("/")[0]
            name = re.sub(r"^\.|\.cifar_flax-\w+\.partial$", "", name)
            operations.append(name)
            if f"{name}:{operations.count(name)}" == kill_before:
                if how == "SIGKILL":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))

    sys.addaudithook(hook)
    sys.argv[1:] = argv
    try:
        runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
    finally:
        pathlib.Path(f"{folder}.operations").write_text("\n".join(operations))


def start(
    folder: pathlib.Path,
    flags: list[str],
    kill_before: str = "",
    how: str = "SIGKILL",
) -> subprocess.Popen:
    """Starts a run, or continues an existing one."""
    begun = (folder / records.CONFIG).exists()
    code = "import sys; from tests.kill import run_counting as run; "
    code += f"run({str(folder)!r}, {kill_before!r}, {how!r}, sys.argv[1:])"
    argv = ["--resume"] if begun else flags
    return subprocess.Popen(
        [sys.executable, "-c", code, f"--workdir={folder}", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(
    process: subprocess.Popen, after: float | None = None, how: str = "SIGKILL"
) -> bool:
    """Waits for a run, or disturbs it after some seconds; returns whether it finished.

    Args:
      process: of the run.
      after: seconds; None: it is left alone, or disturbs itself.
      how: a signal, ENOSPC, or SIGPIPE for that nobody reads its output.
    """
    try:
        _, stderr = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        if how == "SIGPIPE":
            process.stdout.close()
            process.stdout = None
        else:
            process.send_signal(signal.Signals[how])
        _, stderr = process.communicate()
    asked = how not in ("SIGKILL", "ENOSPC")
    expected = 1 if how == "ENOSPC" else 128 * asked + abs(signal.Signals[how])
    # Before Python has set its handlers, a signal ends the process without a message.
    ends = (0, expected, *([-signal.Signals[how]] if how != "ENOSPC" else []))
    assert process.returncode in ends, (process.returncode, stderr)
    assert "Traceback" not in stderr, stderr
    return process.returncode == 0


def stage(folder: pathlib.Path, epochs: int) -> str:
    """Returns the stage of a killed run, judged by its folder."""
    if not (folder / records.CONFIG).exists():
        return "start"
    if (folder / records.RESULT).exists():
        return "finished"
    if (folder / records.PREDICTIONS).exists() or list(folder.glob(".predictions*")):
        return "results"
    for path in (folder / records.CHECKPOINTS).glob("[0-9]*"):
        if "damaged" not in path.name and not (path / "manifest.json").exists():
            return "checkpoint"
    lines = records.read_metrics(folder)
    if not lines:
        return "compilation and first epoch"
    return "evaluation" if lines[-1].epoch == epochs else "training"


@dataclasses.dataclass
class Undisturbed:
    """The result of an undisturbed run.

    Attributes:
      folder: of that run.
      seconds: that it took.
      operations: on files in its folder, what each was on.
    """

    folder: pathlib.Path
    seconds: float
    operations: list[str]

    @classmethod
    def run(cls, folder: pathlib.Path, flags: list[str]) -> "Undisturbed":
        """Runs without a disturbance."""
        begin = time.monotonic()
        assert finish(start(folder, flags))
        seconds = time.monotonic() - begin
        operations = pathlib.Path(f"{folder}.operations").read_text().split("\n")
        return cls(folder, seconds, operations)

    @property
    def epochs(self) -> int:
        """Of the run."""
        return len(records.read_metrics(self.folder))

    def compare(self, folder: pathlib.Path, but: tuple[str, ...] = ()) -> None:
        """Asserts that another run has the same result, except for some fields."""
        ours, theirs = (everything_but_times(f, but) for f in (folder, self.folder))
        assert ours == theirs
        ours, theirs = map(records.read_predictions, (folder, self.folder))
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array)
        ours, theirs = map(records.read_steps, (folder, self.folder))
        np.testing.assert_array_equal(ours.losses, theirs.losses)
        np.testing.assert_array_equal(ours.rates, theirs.rates)
        for one, other in zip(last_state(folder), last_state(self.folder), strict=True):
            np.testing.assert_array_equal(one, other)


def everything_but_times(folder: pathlib.Path, but: tuple[str, ...] = ()) -> list[dict]:
    """Returns the metrics and the result without some of their fields."""
    result = records.read_result(folder)
    assert result is not None
    lines = map(msgspec.to_builtins, [*records.read_metrics(folder), result])
    without = {*TIMES, *but}
    return [{k: v for k, v in line.items() if k not in without} for line in lines]


def last_state(folder: pathlib.Path) -> list[np.ndarray]:
    """Returns all arrays of the latest checkpoint."""
    import jax

    from cifar_flax.runs.checkpoint import open_checkpoints
    from cifar_flax.runs.settings import Settings
    from cifar_flax.runs.subject import Subject

    settings = Settings.from_record(records.read_config(folder), str(folder))
    trainer = Subject.prepare(settings).make_trainer()
    with open_checkpoints(folder / records.CHECKPOINTS, owner=False) as checkpoints:
        assert checkpoints.latest_step == trainer.total_steps
        state, _ = checkpoints.restore(trainer.init())
    words = state.replace(key=jax.random.key_data(state.key))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(words)]


def disturb(
    undisturbed: Undisturbed, flags: list[str], kills: int, rng: random.Random
) -> tuple[collections.Counter, int]:
    """Disturbs runs a number of times, and compares each finished run.

    Returns:
      The number of disturbances of each kind and stage, and of finished runs.
    """
    stages: collections.Counter = collections.Counter()
    ended = 0
    folder = undisturbed.folder.with_name("disturbed")
    while True:
        again, number = stages.total() < kills, stages.total()
        before, after, how = "", None, "SIGKILL"
        if again and number % 2:
            on = rng.choice(sorted(set(undisturbed.operations)))
            before = f"{on}:{rng.randint(1, undisturbed.operations.count(on))}"
            how = rng.choice(AT_AN_OPERATION)
        elif again:
            after = rng.uniform(0, undisturbed.seconds)
            how = rng.choice(AT_A_TIME)
        if not finish(start(folder, flags, before, how), after, how):
            stages[f"{how}, {stage(folder, undisturbed.epochs)}"] += 1
            continue
        if how == "ENOSPC":
            stages["ENOSPC, and it came to its end"] += 1
        undisturbed.compare(folder)
        ended += 1
        shutil.rmtree(folder)
        if not again:
            return stages, ended


def main() -> None:
    """Disturbs runs of a tiny data set."""
    from tests import archives

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        flags = [*FLAGS, *archives.tiny_data(pathlib.Path(name))]
        undisturbed = Undisturbed.run(pathlib.Path(name) / "undisturbed", flags)
        print(
            f"undisturbed: {undisturbed.seconds:.1f} s, "
            f"{len(undisturbed.operations)} operations on files: "
            f"{json.dumps(collections.Counter(undisturbed.operations))}"
        )
        rng = random.Random(options.seed)
        stages, ended = disturb(undisturbed, flags, options.kills, rng)
    print(f"{stages.total()} disturbances in {ended} runs:")
    for name, count in sorted(stages.items()):
        print(f"{count:5} {name}")
    print("all of them came to the same end, bit for bit")


if __name__ == "__main__":
    main()
