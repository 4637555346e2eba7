"""Makes the folder of a run, locks it for one process, and checks it on a resume."""

import contextlib
import fnmatch
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from cifar_flax import files, records
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.identity import code_differs, model_differs, model_of
from cifar_flax.records import CONFIG
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.recorded_settings import differences
from cifar_flax.training.recipe_files import completed

LOCK = ".cifar_flax.lock"  # a name that no other program uses

logger = logging.getLogger(__name__)


def new_folder(parent: pathlib.Path, stem: str) -> pathlib.Path:
    """Makes ``parent/stem-1``, or the same with the next free number."""
    number = 1
    while True:
        folder = parent / f"{stem}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise UserError(
                f"cannot make the folder {folder}: {error.strerror}; give another one"
            ) from error


def whole_path(folder: str | pathlib.Path | None) -> pathlib.Path | None:
    """Returns the absolute path of a run's folder; None if there is none.

    Code of the user, such as a model or an observer, may change the current folder.
    """
    return None if folder is None else files.expand_user(folder).absolute()


@contextlib.contextmanager
def folder_for(folder: pathlib.Path | None, stem: str) -> Iterator[pathlib.Path]:
    """Yields a folder for a run: the given one, or a new one under ``runs/``.

    A new folder is removed again if it is still empty.

    Args:
      folder: the given folder; None for a new one.
      stem: the beginning of the name of a new folder.
    """
    if folder is not None:
        yield folder
        return
    folder = new_folder(pathlib.Path("runs"), stem)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # the folder is not empty
            folder.rmdir()


def claim_folder(folder: pathlib.Path) -> None:
    """Makes a folder for a new run, or takes an empty one.

    Raises:
      UserError: the folder is not empty (its files are kept), or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Files that a killed process of this project left behind do not count.
        taken = any(
            not files.is_lock(path.name, LOCK)
            and not fnmatch.fnmatch(path.name, files.PARTIAL)
            for path in folder.iterdir()
        )
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; give another one"
        ) from error
    if (folder / CONFIG).exists():
        raise UserError(
            f"{folder} holds a run; --resume (in Python resume=True) continues it, or "
            "give another folder"
        )
    if taken:
        raise UserError(f"{folder} is not empty and has no run; give another folder")


@contextlib.contextmanager
def locked_folder(folder: pathlib.Path) -> Iterator[files.Lock]:
    """Locks a run's folder for this process, or for this thread of it.

    Raises:
      UserError: another process has the lock, or the folder cannot be written or
        locked.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(files.locked(folder / LOCK, wait=False))
        except files.InUseError as error:
            raise UserError(
                f"{folder} is in use by {error}; wait for it, or give another folder"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to the folder {folder}, or lock it: {error.strerror}; "
                "give another one"
            ) from error
        for leftover in folder.glob(files.PARTIAL):
            leftover.unlink(missing_ok=True)
        yield lock


def keep_folder(folder: pathlib.Path, lock: files.Lock) -> None:
    """Takes a folder's lock again if its file was removed.

    Raises:
      UserError: another process has taken the lock in the meantime.
    """
    try:
        taken_anew = lock.keep()
    except files.InUseError as error:
        raise UserError(
            f"{folder / LOCK} was removed, and {error} has the folder now; this run "
            "ends and writes nothing more"
        ) from error
    except OSError:
        return  # the next write will report the problem
    if taken_anew:
        logger.warning(
            "%s was removed and is created again; it keeps other processes out",
            folder / LOCK,
        )


def lock_holder(folder: pathlib.Path) -> str | None:
    """Returns the living process that has locked a folder, or None."""
    return files.lock_holder(folder / LOCK)


@contextlib.contextmanager
def opened_folder(
    folder: pathlib.Path | None, config: records.Config, resume: bool
) -> Iterator[tuple[pathlib.Path | None, records.Config, files.Lock | None]]:
    """Opens the folder of a run with its ``config.json``, new or to be continued.

    Yields:
      The folder, the record in it, and its lock. Nothing is written if the folder is
      None.

    Raises:
      UserError: the folder is in use, cannot be made, or holds another run.
    """
    if folder is None:
        if resume:
            raise UserError("resume needs the folder of the run to continue")
        yield None, config, None
        return
    if resume:
        recorded = records.read_config(folder)
        check_same_run(config, recorded, folder)
    else:
        is_new = not os.path.exists(folder)  # Path.exists raises for a long name
        claim_folder(folder)
    with locked_folder(folder) as lock:
        if resume:
            yield folder, recorded, lock
            return
        claim_folder(folder)  # another process may have been faster
        try:
            records.write_config(folder, config)
            yield folder, config, lock
        except UserError:  # a refusal; the corrected command may take the folder
            if not _is_begun(folder):
                _clear(folder, is_new)
            raise


def _is_begun(folder: pathlib.Path) -> bool:
    """Returns whether a run has written anything besides what precedes a step."""
    metrics, checkpoints = folder / records.METRICS, folder / records.CHECKPOINTS
    first = {CONFIG, metrics.name, checkpoints.name}
    others = [path for path in folder.iterdir() if path.name not in first]
    return (
        any(not files.is_lock(path.name, LOCK) for path in others)
        or (metrics.exists() and metrics.stat().st_size > 0)
        or (checkpoints.exists() and any(checkpoints.iterdir()))
    )


def _clear(folder: pathlib.Path, remove: bool) -> None:
    """Removes the record of a run that has not begun, and its folder if asked to."""
    with contextlib.suppress(OSError):
        for name in (CONFIG, records.METRICS):
            (folder / name).unlink(missing_ok=True)
        if (folder / records.CHECKPOINTS).exists():
            (folder / records.CHECKPOINTS).rmdir()
        (folder / LOCK).unlink(missing_ok=True)
        if remove:
            folder.rmdir()


def check_same_run(
    config: records.Config, recorded: records.Config, folder: pathlib.Path
) -> None:
    """Raises a UserError if the recorded run is another one."""
    if recorded.kind != config.kind:
        raise UserError(
            f"{folder} holds the result of {recorded.kind} and not a run to continue; "
            "give another folder"
        )
    check_same_settings(
        config.settings, recorded, folder, config.dataset, config.recipe
    )
    if different := content_differs(config, recorded):
        raise another_run(folder, [different])
    for name, version in config.versions.items():
        if recorded.versions.get(name) != version:
            logger.warning(
                "%s was %s and is %s: the rest of the run may round differently",
                name,
                recorded.versions.get(name),
                version,
            )


def check_same_settings(
    now: dict[str, records.Setting],
    recorded: records.Config,
    folder: pathlib.Path,
    dataset: Dataset | records.DatasetInfo,
    recipe: dict[str, Any] | None,
) -> None:
    """Raises a UserError if settings, data or recipe differ from those of a run.

    Args:
      now: the settings, from ``Settings.record``.
      recorded: the run's ``config.json``.
      folder: of the run.
      dataset: the data.
      recipe: the recipe of the settings, from ``to_plain``, which another version may
        have changed; None if it is not known yet.
    """
    different, was = differences(now, recorded.settings), recorded.dataset
    if was.fingerprint != dataset.fingerprint:
        different.append(
            f"the data set was {was.name} ({was.source}) and is {dataset.name} "
            f"({dataset.source})"
        )
    if not different:
        different = recipe_differences(recipe, recorded)
    had, has = _seeds(recorded.settings), _seeds(now)
    more = tuple(seed for seed in has if seed not in had)
    if len(different) == 1 and more:
        raise UserError(
            f"{folder} holds the run of the seeds {as_text(had)}; train the others "
            f"with --seeds={as_text(more)} in another --workdir, and a report puts all "
            "of them together"
        )
    if different:
        raise another_run(folder, different)


def _seeds(settings: dict[str, records.Setting]) -> tuple[Any, ...]:
    seeds: Any = settings["seeds"]
    return tuple(seeds)


def recipe_differences(
    recipe: dict[str, Any] | None, recorded: records.Config
) -> list[str]:
    """Describes what differs in a recipe from that of a record, if both are known."""
    if recipe is None or recorded.recipe is None:
        return []
    tta = recorded.settings.get("tta")  # older records have it only there
    before = completed({**({"tta": tta} if tta else {}), **recorded.recipe})
    return [
        f"the recipe's {name} was {before.get(name)} and is {value}"
        for name, value in recipe.items()
        if before.get(name) != value
    ]


def content_differs(now: records.Config, recorded: records.Config) -> str | None:
    """Returns what differs in the contents of two runs of equal settings, or None."""
    if model := model_differs(model_of(now), model_of(recorded)):
        return f"the model {now.model} has changed: {model}"
    ours, theirs = now.identity, recorded.identity
    starts = [one and one.start for one in (ours, theirs)]
    if None not in starts and starts[0] != starts[1]:
        return "the run that it starts from has changed"
    return code_differs(now, recorded)


def another_run(folder: pathlib.Path, different: list[str]) -> UserError:
    """Returns the error of a folder that holds another run."""
    return UserError(
        f"{folder} holds another run: {'; '.join(different)}; drop these flags, or "
        "give another --workdir"
    )
