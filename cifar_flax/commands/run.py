"""Trains, evaluates, records and checkpoints a model: the main command.

python -m experiments.run --model=convbn
python -m experiments.run --model=resnet --seeds=0,1,2 --workdir=runs/resnet
python -m experiments.run --workdir=runs/resnet --resume
python -m experiments.run --replicate=runs/resnet --workdir=runs/resnet-again
"""

import contextlib
import pathlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags
from rich.console import Console

from cifar_flax import records
from cifar_flax.commands import BEFORE_NAME, cli
from cifar_flax.commands.setting_flags import (
    define_devices,
    define_processes,
    define_settings,
    devices_from_flags,
    join_processes,
    settings_from_flags,
)
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.files import shell_word
from cifar_flax.runs.checkpoint import open_checkpoints
from cifar_flax.runs.environment import use_compilation_cache
from cifar_flax.runs.folder import check_same_settings, folder_for
from cifar_flax.runs.observers import Observer, Plan, RangeTestResult, RunResult
from cifar_flax.runs.replication import compare_repetition
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from cifar_flax.show.console import (
    ConsoleDisplay,
    make_console,
    print_replication,
    print_result,
)
from cifar_flax.show.figures import RangeFigure
from cifar_flax.show.tensorboard import TensorBoard
from cifar_flax.training import processes
from cifar_flax.training.recipe_files import to_toml

FLAGS = flags.FLAGS


class ResumeParser(flags.BooleanParser):
    """Reads ``--resume``: true, false or auto."""

    def parse(self, argument: str | int) -> Any:
        """Returns the value; raises a ValueError for other text."""
        return argument if argument == "auto" else super().parse(argument)


class StopOnSignal(Observer):
    """Turns signals into a request to stop while a run can save its state."""

    def __init__(self) -> None:
        """Makes an observer without a request."""
        self.request = cli.StopRequest()
        self._caught = contextlib.ExitStack()

    def started(self, plan: Plan) -> None:
        """Begins to catch signals."""
        self._caught.enter_context(cli.caught_signals(self.request))

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Ends catching signals."""
        self._caught.close()


def main() -> int:
    """Runs the command; returns the exit status."""
    with leaving(), cli.command():
        if FLAGS.resume and FLAGS.workdir is None:
            raise flags.ValidationError(
                "--resume needs --workdir, the folder of the run to continue"
            )
        join_processes()
        folder = None if FLAGS.workdir is None else pathlib.Path(FLAGS.workdir)
        resume = FLAGS.resume
        if resume == "auto":
            resume = folder is not None and (folder / records.CONFIG).exists()
        repeated = FLAGS.replicate and pathlib.Path(FLAGS.replicate)
        settings = settings_from_flags(folder if resume else None, repeated)
        if FLAGS.print_recipe:
            print(to_toml(settings.make_recipe()), end="")
            return 0
        signals = StopOnSignal()
        screen = make_console(on_broken=signals.request.output_broke)
        if FLAGS.stop_with_input:
            cli.stop_with_input()
        use_compilation_cache()
        dataset = settings.load_data()
        alone = processes.count() == 1
        if resume and alone and folder and show_finished(settings, folder, dataset):
            show_replication(screen, repeated, folder)
            return 0
        with folder_for(folder, f"{settings.model_label}-{dataset.name}") as folder:
            result = run(
                settings,
                folder,
                dataset=dataset,
                observers=[signals, *shown_on(screen)],
                stop=signals.request.event,
                resume=resume,
                **devices_from_flags(),
            )
        if result.record is not None:
            check_outcome(result.record)
            show_replication(screen, repeated, folder)
            return 0
        return say_stopped(screen, folder, signals.request.signum)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Ends a failing process at once, without waiting for the other processes."""
    try:
        yield
    except SystemExit as end:
        if end.code and processes.count() > 1:
            processes.leave(int(end.code))
        raise


def shown_on(screen: Console) -> list[Observer]:
    """Returns the observers of a run; only the first of several processes shows it."""
    if not processes.is_first():
        return []
    shown: list[Observer] = [RangeFigure(), ConsoleDisplay(screen)]
    return [*shown, TensorBoard()] if FLAGS.tensorboard else shown


def say_stopped(screen: Console, folder: pathlib.Path, signum: int | None) -> int:
    """Says how to continue a stopped run; returns the exit status.

    Args:
      screen: console.
      folder: of the run.
      signum: the signal that stopped the run; None if another process received it.
    """
    workdir = shell_word(f"--workdir={folder}", sys.stdout.encoding)
    words = f"to continue:\n  {BEFORE_NAME}run {workdir} --resume"
    if signum == cli.SIGPIPE:
        cli.logger.info("stopped because the output was closed; %s", words)
    if processes.is_first():
        screen.print(words, soft_wrap=True)
    return 128 + (signal.SIGTERM if signum is None else signum)


def show_finished(settings: Settings, folder: pathlib.Path, dataset: Dataset) -> bool:
    """Shows the result of a folder that holds this run, finished; returns whether."""
    result = records.read_result(folder)
    if result is None:
        return False
    if result.status == "finished":
        with open_checkpoints(folder / records.CHECKPOINTS, owner=False) as saved:
            if not saved.is_sound(result.steps):
                return False  # the run reports this and repairs it
    recorded = records.read_config(folder)
    recipe = settings.recipe_of(records.read_range_test(folder))
    now = settings.record(dataset.has_validation)
    check_same_settings(now, recorded, folder, dataset, recipe)
    screen = make_console()
    screen.print(f"{folder} holds a finished run; there is nothing left to do")
    print_result(screen, result, folder)
    check_outcome(result)
    return True


def show_replication(
    screen: Console, repeated: pathlib.Path | None, folder: pathlib.Path
) -> None:
    """Says whether the result agrees with that of the run that is repeated, if any."""
    if repeated is not None and processes.is_first():
        print_replication(screen, compare_repetition(repeated, folder))


def check_outcome(result: records.Result) -> None:
    """Raises a UserError if all seeds of a run have diverged."""
    if result.status == "diverged":
        raise UserError(
            f"all seeds have diverged, the last at step {result.steps}; lower --lr, "
            "or let --lr=auto find a rate"
        )


if __name__ == "__main__":
    define_settings()
    define_devices()
    cli.define_path(
        "workdir", None, "Folder of the run (default: a new one under runs/)."
    )
    cli.define_path(
        "replicate",
        None,
        "Folder of a finished run: train it again as recorded, with fresh seeds, and "
        "say whether the results agree. Other flags replace its settings.",
    )
    flags.DEFINE_bool(
        "tensorboard", False, "Also write event files for TensorBoard to the folder."
    )
    flags.DEFINE_bool(
        "print_recipe", False, "Print the recipe as a TOML file, and do not train."
    )
    flags.DEFINE_bool(
        "resume",
        False,
        "Continue the unfinished run in --workdir; =auto: begin a new run if there is "
        "none, for a job that repeats its command.",
    )
    FLAGS["resume"].parser = ResumeParser()
    define_processes()
    flags.DEFINE_bool(
        "stop_with_input",
        False,
        "Stop as with SIGTERM when standard input ends; for a program that starts this "
        "command and may be killed.",
    )
    sys.exit(main())
