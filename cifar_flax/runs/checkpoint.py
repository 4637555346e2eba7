"""Saves and restores the checkpoints of a run; the only module that uses Orbax.

A run keeps its latest two checkpoints, the best one, and, after a replica has diverged,
the last one before that. The best one has the highest validation accuracy among those
in which the fewest replicas have diverged: means over different replicas cannot be
compared. Checksums detect a damaged checkpoint, which is not used.
"""

import contextlib
import dataclasses
import gc
import itertools
import logging
import pathlib
import shutil
import sys
import traceback
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cifar_flax.analysis.statistics import mean_of_finite
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import expand_user
from cifar_flax.runs.manifest import (
    MANIFEST,
    Manifest,
    best_step,
    checksums,
    read_manifest,
    write_manifest,
)
from cifar_flax.runs.space import check_space, size_of
from cifar_flax.training import processes
from cifar_flax.training.state import TrainState

logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder; made by ``open_checkpoints``.

    Attributes:
      has_failed: whether a checkpoint could not be saved.
    """

    def __init__(self, folder: pathlib.Path, owner: bool, run: str | None):
        """Opens the folder; see ``open_checkpoints``."""
        self._folder, self._owner, self._run = folder, owner, run
        if owner:
            folder.mkdir(parents=True, exist_ok=True)
            _refuse_others(folder)  # the owner removes what it does not keep
        self.has_failed = False
        self._manifests: dict[int, Manifest] = {}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_Kept(self._manifests),
            create=False,
            cleanup_tmp_directories=owner,
            # A synchronous save takes only a few hundredths of a second longer, and it
            # reports a failure at once.
            enable_async_checkpointing=False,
            multiprocessing_options=_alone(),
        )
        self._manager = ocp.CheckpointManager(folder, options=options)
        unfinished = set(self._manager.all_steps()) - set(self._steps())
        if owner and unfinished:
            self._move_aside(unfinished)
        for step in self._steps():
            # If this fails, restoring the checkpoint will report it.
            with contextlib.suppress(Exception):
                self._manifests[step] = read_manifest(folder / str(step))

    def close(self) -> None:
        """Closes Orbax's manager of the folder."""
        self._manager.close()

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint, valid or not; None if there is none."""
        return max(self._steps(), default=None)

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint; None if the accuracy was never measured."""
        return best_step(self._manifests, self._steps())

    def lost(self, step: int) -> list[bool] | None:
        """Returns whether each replica had diverged at a step; None if not known."""
        return self._manifests[step].lost if step in self._manifests else None

    def is_sound(self, step: int) -> bool:
        """Returns whether the checkpoint of a step exists and is undamaged."""
        if step not in self._steps():
            return False
        try:
            self._check(step)
        except Exception:  # any error means that it cannot be used
            return False
        return True

    def save(
        self,
        state: TrainState,
        *,
        seconds: float = 0.0,
        val_accuracy: float | Sequence[float] | None = None,
    ) -> None:
        """Saves a state; the folder holds whole checkpoints at any moment.

        Args:
          state: of all replicas.
          seconds: time spent on training so far.
          val_accuracy: validation accuracy of each replica, or one of all; it decides
            the best checkpoint. NaN for a replica that has diverged.

        Raises:
          UserError: the state cannot be written; earlier checkpoints are kept.
        """
        step = int(state.step.max())
        parts, lost = _to_tree(state), [at is not None for at in state.diverged_at]
        mean = None
        if val_accuracy is not None:
            values = np.broadcast_to(np.asarray(val_accuracy, np.float64), len(lost))
            # The last step may make parameters NaN after its loss was computed.
            lost = (np.isnan(values) | lost).tolist()
            mean = mean_of_finite(values)
        if processes.count() > 1:  # only this process writes, and it has all arrays
            parts = jax.tree.map(np.asarray, parts)
        manifest = Manifest(
            step=step,
            seconds=float(seconds),
            val_accuracy=None if mean is None or np.isnan(mean) else mean,
            finite=not any(lost),
            structure={name: structure_of(tree) for name, tree in parts.items()},
            files={},
            run=self._run,
            lost=lost,
        )
        self._manifests[step] = manifest  # the policy needs it to choose what to keep
        args = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        problem = self._try_to_save(state, ocp.args.Composite(**args), manifest)
        if problem is not None:
            self.has_failed = True
            self._remove_unfinished()
            raise UserError(
                f"cannot save the checkpoint of step {step} in {self._folder}: "
                f"{problem}"
            )

    def restore(
        self, template: TrainState, step: int | None = None
    ) -> tuple[TrainState, float]:
        """Reads a state and the time spent on training up to it, in seconds.

        Args:
          template: a state of the same structure, from ``Trainer.blank``.
          step: step of the checkpoint; None for the newest valid one. Newer damaged
            ones are then named in a warning and moved aside.

        Raises:
          UserError: no checkpoint is valid and has this structure; nothing is changed.
        """
        parts, manifest = self._read_newest(_to_tree(template), step)
        return _from_tree(parts), manifest.seconds

    def restore_variables(
        self, template: Any, step: int | None = None
    ) -> tuple[Any, int]:
        """Reads the variables for evaluation, and their step.

        Args:
          template: variables of the same structure; the arrays may be abstract.
          step: step of the checkpoint; None for the newest valid one.

        Raises:
          UserError: no checkpoint is valid and has this structure.
        """
        parts, manifest = self._read_newest({"variables": template}, step)
        return parts["variables"], manifest.step

    def _try_to_save(
        self, state: TrainState, args: Any, manifest: Manifest
    ) -> str | None:
        """Saves; returns the error in one line, or None.

        It does not raise, because a traceback would keep Orbax's tasks alive, and these
        write to stderr when they are deleted.
        """
        try:
            check_space(self._folder, size_of(state))
            if not self._manager.save(manifest.step, args=args):
                raise FileExistsError("there is already a checkpoint of that step")
            write_manifest(self._folder / str(manifest.step), manifest)
        except Exception as error:  # Orbax raises many different types
            return one_line(error)
        return None

    def _steps(self) -> list[int]:
        """Returns the steps whose save was completed."""
        every = self._manager.all_steps()
        return [s for s in every if (self._folder / str(s) / MANIFEST).is_file()]

    def _read_newest(
        self, templates: dict[str, Any], step: int | None
    ) -> tuple[dict[str, Any], Manifest]:
        every = [one for one in self._steps() if step in (None, one)]
        self._check_run(every)
        damaged: dict[int, str] = {}
        for one in sorted(every, reverse=True):
            try:
                parts, manifest = self._read(one, templates)
            except Exception as error:  # after any error an older one may be valid
                damaged[one] = one_line(error)
                continue
            for other, why in damaged.items():
                logger.warning(
                    "the checkpoint of step %d in %s is damaged (%s); using the one of "
                    "step %d, which loses %d steps",
                    other,
                    self._folder,
                    why,
                    one,
                    other - one,
                )
            if self._owner and damaged:
                self._move_aside(damaged)
            return parts, manifest
        if not damaged:
            raise UserError(f"there is no checkpoint in {self._folder}")
        problems = "; ".join(f"step {s}: {why}" for s, why in damaged.items())
        raise UserError(
            f"no checkpoint in {self._folder} is valid and fits this model; nothing "
            f"was changed: {problems}"
        )

    def _check_run(self, steps: Collection[int]) -> None:
        """Raises a UserError if a checkpoint is of another run."""
        for step in steps:
            theirs, place = None, self._folder / str(step)
            with contextlib.suppress(Exception):  # a damaged one is reported later
                theirs = read_manifest(place).run
            if None not in (self._run, theirs) and self._run != theirs:
                raise UserError(
                    f"{place} is a checkpoint of another run; move it elsewhere"
                )

    def _read(
        self, step: int, templates: dict[str, Any]
    ) -> tuple[dict[str, Any], Manifest]:
        """Reads parts of a checkpoint; raises any type of error if it is not valid."""
        # Check first: Orbax would read flipped bits as numbers, or print long errors.
        manifest = self._check(step)
        for name, tree in templates.items():
            different = set(structure_of(tree)) ^ set(manifest.structure[name])
            if different:
                raise ValueError(f"its arrays are not the model's: {min(different)}")
        args = {n: ocp.args.StandardRestore(tree) for n, tree in templates.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        return {name: restored[name] for name in templates}, manifest

    def _check(self, step: int) -> Manifest:
        """Reads the manifest; raises any type of error if a file is damaged."""
        folder = self._folder / str(step)
        manifest = read_manifest(folder)
        if manifest.step != step:
            raise ValueError(f"it is of step {manifest.step}")
        damaged = manifest.files.items() ^ checksums(folder).items()
        if damaged:
            raise ValueError(f"{min(damaged)[0]} has changed since it was saved")
        return manifest

    def _move_aside(self, steps: Collection[int]) -> None:
        """Renames checkpoints, so that their steps can be saved again."""
        for step in steps:
            names = (f"{step}.damaged-{number}" for number in itertools.count(1))
            paths = (self._folder / name for name in names)
            free = next(path for path in paths if not path.exists())
            (self._folder / str(step)).rename(free)
        self._manager.reload()

    def _remove_unfinished(self) -> None:
        """Removes the files of a save that failed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # "was never awaited"
            gc.collect()  # deletes Orbax's tasks now, while its messages are hidden
        for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(path, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """Orbax's preservation policy for the checkpoints that a run keeps."""

    manifests: dict[int, Manifest]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        steps, known = [one.step for one in checkpoints], self.manifests
        finite = [step for step in steps if step in known and known[step].finite]
        kept = {*sorted(steps)[-2:], max(finite, default=0), best_step(known, steps)}
        return [step in kept for step in steps]


@contextlib.contextmanager
def open_checkpoints(
    folder: str | pathlib.Path, owner: bool = True, run: str | None = None
) -> Iterator[Checkpoints]:
    """Opens a folder for checkpoints.

    Args:
      folder: of the checkpoints; the owner makes it if it is missing.
      owner: whether this process owns the run. Only the owner removes unfinished saves
        and moves damaged checkpoints aside; for another process, a save in progress
        looks like an unfinished one.
      run: checksum of the run, which its checkpoints hold; see ``identity.run_of``.
        None: they are not compared.

    Raises:
      UserError: the folder cannot be made or read, or it holds a folder of another
        program whose name is a number.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        try:
            checkpoints = Checkpoints(expand_user(folder).absolute(), owner, run)
        except OSError as error:
            raise UserError(f"cannot open {folder}: {one_line(error)}") from error
        try:
            yield checkpoints
        finally:
            checkpoints.close()
            if checkpoints.has_failed:
                stack.pop_all()  # Orbax's threads may still print errors


# Files, one of which is in every checkpoint, also in a damaged one.
_SIGNS = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt", "*/_METADATA")


def _refuse_others(folder: pathlib.Path) -> None:
    """Raises a UserError if a folder, named like a step, is not a checkpoint."""
    for path in folder.iterdir():
        if not (path.name.isdigit() and path.is_dir()):
            continue
        signs = (found for sign in _SIGNS for found in path.glob(sign))
        if not any(signs) and any(one.is_file() for one in path.rglob("*")):
            raise UserError(
                f"{path} is not a checkpoint; move it elsewhere, or give a folder of "
                "its own to the checkpoints"
            )


def _alone() -> ocp.options.MultiprocessingOptions:
    """Returns options for a process that saves without waiting for others."""
    if processes.count() == 1:
        return ocp.options.MultiprocessingOptions()
    number = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=number,
        active_processes={number},
        barrier_sync_key_prefix=f"process_{number}",
    )


def structure_of(tree: Any) -> list[str]:
    """Returns the arrays of a tree as text, in their order: path, dtype and shape."""
    return [
        f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the log messages of Orbax.

    If a save fails, Orbax raises an error and also logs it at length. So do its
    threads, TensorStore, which then finds a closed event loop, and asyncio.
    """

    def is_not_orbaxs(record: logging.LogRecord) -> bool:
        raised = record.exc_info or (None, None, None)
        text = "".join(traceback.format_exception(*raised))
        return "orbax" not in f"{record.pathname} {record.getMessage()} {text}"

    def hook(unraisable):
        is_closed = str(unraisable.exc_value) == "Event loop is closed"
        if not is_closed and "BaseEventLoop.__del__" not in repr(unraisable.object):
            previous(unraisable)

    loggers, previous = map(logging.getLogger, ("absl", "asyncio")), sys.unraisablehook
    with contextlib.ExitStack() as stack:
        for log in loggers:
            log.addFilter(is_not_orbaxs)
            stack.callback(log.removeFilter, is_not_orbaxs)
        sys.unraisablehook = hook
        stack.callback(setattr, sys, "unraisablehook", previous)
        yield


def _to_tree(state: TrainState) -> dict[str, Any]:
    """Splits a state into a part only for training and the variables to evaluate."""
    training = {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(state.key),
        "totals": state.totals,
    }
    if state.average is not None:
        training["trained"] = state.trained
    return {"training": training, "variables": state.variables}


def _from_tree(parts: dict[str, Any]) -> TrainState:
    training, average = parts["training"], None
    if "trained" in training:
        variables, average = training["trained"], parts["variables"]
    else:
        variables = parts["variables"]
    return TrainState(
        step=training["step"],
        params=variables["params"],
        collections={n: value for n, value in variables.items() if n != "params"},
        average=average,
        opt_state=training["opt_state"],
        key=jax.random.wrap_key_data(training["key"]),
        totals=training["totals"],
    )
