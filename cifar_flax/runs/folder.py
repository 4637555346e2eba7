"""The folder of a run: made, claimed for one process, and checked on a resume."""

import contextlib
import fnmatch
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

from cifar_flax import files, records
from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.records import CONFIG
from cifar_flax.runs.settings import differences

LOCK = ".cifar_flax.lock"  # a name that nobody else gives a file

logger = logging.getLogger(__name__)


def new_folder(parent: pathlib.Path, stem: str) -> pathlib.Path:
    """Makes ``parent/stem-1``, or with the next number that nobody has taken."""
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


@contextlib.contextmanager
def folder_for(folder: pathlib.Path | None, stem: str) -> Iterator[pathlib.Path]:
    """A folder for a run: the one given, or a new one under ``runs/``.

    A new one in which nothing was written is removed again.

    Args:
      folder: that was asked for; None for a new one.
      stem: the beginning of a new one's name.
    """
    if folder is not None:
        yield folder
        return
    folder = new_folder(pathlib.Path("runs"), stem)
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def claim_folder(folder: pathlib.Path) -> None:
    """Makes a folder for a new run; an empty one that is there will do, too.

    Raises:
      UserError: there is something in it, which is left as it is, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a process of ours that was killed left behind is nobody's.
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
            f"{folder} holds a run; --resume (in Python resume=True) goes on with it, "
            "or give another folder"
        )
    if taken:
        raise UserError(f"{folder} is not empty and holds no run; give another folder")


@contextlib.contextmanager
def locked_folder(folder: pathlib.Path) -> Iterator[files.Lock]:
    """Keeps a run's folder for this process, or this thread of it.

    Raises:
      UserError: another one has it, or it cannot be written to or locked.
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
    """Takes a folder's lock anew where its file was removed.

    Raises:
      UserError: another process was faster.
    """
    try:
        taken_anew = lock.keep()
    except files.InUseError as error:
        raise UserError(
            f"{folder / LOCK} was removed, and {error} has the folder now; this run "
            "ends and writes no more, and that one goes on"
        ) from error
    except OSError:
        return  # what is written next will tell
    if taken_anew:
        logger.warning(
            "%s was removed and is made again: it keeps other processes out",
            folder / LOCK,
        )


def lock_holder(folder: pathlib.Path) -> str | None:
    """Which process has a folder; None where no living one has."""
    return files.lock_holder(folder / LOCK)


@contextlib.contextmanager
def opened_folder(
    folder: str | pathlib.Path | None, config: records.Config, resume: bool
) -> Iterator[tuple[pathlib.Path | None, records.Config, files.Lock | None]]:
    """The folder of a run with its ``config.json``: a new one, or one to go on in.

    Yields:
      The folder, the record that it holds, and its lock; nothing is written where the
      folder is None.

    Raises:
      UserError: the folder is in use, cannot be made, or holds another run.
    """
    if folder is None:
        if resume:
            raise UserError("resume needs a folder, that of the run to go on with")
        yield None, config, None
        return
    files.check_local(folder)
    folder = pathlib.Path(folder)
    if resume:
        recorded = records.read_config(folder)
        check_same_run(config, recorded, folder)
    else:
        claim_folder(folder)
    with locked_folder(folder) as lock:
        if resume:
            yield folder, recorded, lock
            return
        claim_folder(folder)  # another process may have been the first
        records.write_config(folder, config)
        yield folder, config, lock


def check_same_run(
    config: records.Config, recorded: records.Config, folder: pathlib.Path
) -> None:
    """Refuses to go on with a run that was another one."""
    if recorded.kind != config.kind:
        raise UserError(
            f"{folder} holds the outcome of {recorded.kind} and no run to go on with; "
            "give another folder"
        )
    check_same_settings(
        config.settings, recorded, folder, config.dataset, config.recipe
    )
    was, now = recorded.model_source, config.model_source
    if was is not None and now is not None and was.sha256 != now.sha256:
        logger.warning(
            "the code of the model in %s has changed since the run began; the rest of "
            "it trains what is there now",
            now.path,
        )
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
    """Refuses settings, data or a recipe that a run did not have.

    Args:
      now: asked for, as ``Settings.record`` gives them.
      recorded: the run's ``config.json``.
      folder: of the run.
      dataset: asked for.
      recipe: that the settings stand for, as ``to_plain`` gives it; it may have
        another meaning in another version. None where it is not known yet.
    """
    different, was = differences(now, recorded.settings), recorded.dataset
    if was.fingerprint != dataset.fingerprint:
        different.append(
            f"the data set was {was.name} ({was.source}) and is {dataset.name} "
            f"({dataset.source})"
        )
    if recipe is not None and recorded.recipe is not None and not different:
        # Older records lack the first two.
        older = {"lookahead": 0, "tta": recorded.settings.get("tta")}
        before = {**older, **recorded.recipe}
        different = [
            f"the recipe's {name} was {before.get(name)} and is {value}"
            for name, value in recipe.items()
            if before.get(name) != value
        ]
    if different:
        raise UserError(
            f"{folder} holds another run: {'; '.join(different)}; drop these flags, or "
            "give another --workdir"
        )
