"""The files of a run's folder: written and read here only, and without JAX.

``config.json``      what was asked for and with what: settings, recipe, data set,
                     versions
``metrics.jsonl``    one object a log point
``result.json``      the outcome; a folder without it holds an unfinished run
``lr_find.json``     curves and suggestions of a learning-rate range test
``predictions.npz``  test logits [R, N, K], labels [N] and seeds [R]; the images
                     [M, H, W, C] that the run is most sure and wrong about, and their
                     indices [M]
``checkpoints/``     see ``checkpoint``

Whole files are replaced atomically; lines are appended and flushed to the disk.
"""

import errno
import fcntl
import io
import json
import math
import os
import pathlib
import socket
import stat
import zipfile
from typing import Any

import numpy as np

from cifar_flax.errors import UserError

CONFIG = "config.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
RANGE_TEST = "lr_find.json"
PREDICTIONS = "predictions.npz"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"

# Settings of places, and of what else is written: no number depends on them.
PLACES = (
    *("data_dir", "data_archive", "archive_sha256"),
    *("workdir", "resume", "tensorboard"),
)

# Bounds on what is read of a file; no run comes near them.
_MAX_TEXT = 64 * 2**20
_MAX_ARRAYS = 2**30

# Raised when the meaning of a file changes, so that a reader can tell.
FORMAT = 1


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


def claim_folder(folder: pathlib.Path) -> None:
    """Makes a folder for a new run; an empty one that is there will do, too.

    Raises:
      UserError: there is something in it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # What a process that was killed left behind is nobody's.
        taken = any(not path.name.startswith(".") for path in folder.iterdir())
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder}: {error.strerror}; give another one"
        ) from error
    if (folder / CONFIG).exists():
        raise UserError(
            f"{folder} holds a run; experiments.run --resume goes on with it, or give "
            "another folder"
        )
    if taken:
        raise UserError(f"{folder} is not empty and holds no run; give another folder")


def lock_folder(folder: pathlib.Path) -> None:
    """Takes a folder for this process, until it ends, in whatever way.

    Raises:
      UserError: another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {folder}: {error.strerror}; give another one"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _read_holder(lock)
        os.close(lock)
        raise UserError(
            f"{folder} is in use by {holder}; wait for it, or give another folder"
        ) from error
    for leftover in folder.glob(".*.partial"):
        leftover.unlink(missing_ok=True)
    os.truncate(lock, 0)
    os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    # Never closed: the system does it when the process is gone.


def lock_holder(folder: pathlib.Path) -> str | None:
    """Which process has a folder; None where no living one has."""
    try:
        lock = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(lock)
    finally:
        os.close(lock)
    return None


def _read_holder(lock: int) -> str:
    return os.pread(lock, 1000, 0).decode(errors="replace") or "another process"


def write_config(folder: pathlib.Path, config: dict[str, Any]) -> None:
    """Writes ``config.json``."""
    write_json(folder / CONFIG, config)


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """Reads ``config.json``; UserError where there is none or it is damaged."""
    return read_json(folder / CONFIG)


def write_result(folder: pathlib.Path, result: dict[str, Any]) -> None:
    """Writes ``result.json``; with it the run is finished."""
    write_json(folder / RESULT, result)


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """Reads ``result.json``; None for an unfinished run."""
    return _read_if_there(folder / RESULT)


def write_range_test(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes ``lr_find.json``."""
    write_json(folder / RANGE_TEST, record)


def read_range_test(folder: pathlib.Path) -> dict[str, Any] | None:
    """Reads ``lr_find.json``; None where there is none."""
    return _read_if_there(folder / RANGE_TEST)


def append_metrics(folder: pathlib.Path, lines: list[dict[str, Any]]) -> None:
    """Adds lines to ``metrics.jsonl``, which ``cut_metrics`` has made: all or none.

    Raises:
      UserError: they cannot be written.
    """
    path = folder / METRICS
    content = "".join(_to_json(line) + "\n" for line in lines).encode()
    try:
        # Not made anew: where it has vanished, so have the lines before.
        with open(path, "r+b", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; a last line cut short by a crash is left out."""
    path = folder / METRICS
    if not os.path.exists(path):  # False for too long a name
        return []
    lines = _read_bytes(path, _MAX_TEXT).split(b"\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                records.append(_parse_line(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines):  # no newline behind it: never finished
                break
            raise UserError(f"line {number} of {path} is damaged: {error}") from error
    return records


def _parse_line(line: bytes) -> dict[str, Any]:
    record = json.loads(line.decode())
    if not isinstance(record, dict) or type(record.get("step")) is not int:
        raise ValueError("it has no step")
    return record


def cut_metrics(folder: pathlib.Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines past a step, which a resumed run is about to write again.

    Returns:
      The lines that are left.
    """
    lines = [line for line in read_metrics(folder) if line["step"] <= step]
    text = "".join(_to_json(line) + "\n" for line in lines)
    _replace(folder / METRICS, text.encode())
    return lines


def write_predictions(
    folder: pathlib.Path,
    logits: np.ndarray,
    labels: np.ndarray,
    seeds: list[int],
    images: np.ndarray,
    indices: np.ndarray,
) -> None:
    """Writes ``predictions.npz``.

    Args:
      folder: of the run.
      logits: of the test images, float32 [R, N, K].
      labels: [N].
      seeds: one a replica.
      images: that the run is most sure and wrong about, uint8 [M, H, W, C].
      indices: of these in the test set, [M].
    """
    buffer = io.BytesIO()
    np.savez(
        buffer,
        logits=logits,
        labels=labels,
        seeds=np.asarray(seeds),
        images=images,
        indices=indices,
    )
    _replace(folder / PREDICTIONS, buffer.getvalue())


def read_predictions(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads ``predictions.npz``; UserError where there is none or it is damaged."""
    path = folder / PREDICTIONS
    content = io.BytesIO(_read_bytes(path, _MAX_ARRAYS))
    try:
        with zipfile.ZipFile(content) as archive:  # a small one may hold terabytes
            size = sum(member.file_size for member in archive.infolist())
        if size > _MAX_ARRAYS:
            raise ValueError(f"it unpacks to {size} bytes")
        with np.load(content, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        replicas, count, _ = arrays["logits"].shape
        if arrays["seeds"].shape != (replicas,) or arrays["labels"].shape != (count,):
            raise ValueError("its arrays do not belong together")
    except Exception as error:  # zipfile and NumPy raise anything for damaged files
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"cannot read {path}: {why}") from error
    return arrays


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    """Writes a file of this format; any of NumPy's values will do."""
    text = _to_json({"format": FORMAT, **value}, indent=2)
    _replace(path, (text + "\n").encode())


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file of this format; UserError where there is none or it is damaged."""
    content = _read_bytes(path, _MAX_TEXT)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise UserError(f"{path} is not a record of format {FORMAT} of cifar_flax")
    return value


def _read_bytes(path: pathlib.Path, limit: int) -> bytes:
    """A whole file; UserError where it cannot be read or is no file of a run."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):  # a pipe would be waited for
            raise UserError(f"{path} is not a plain file; no run writes such")
        if about.st_size > limit:
            raise UserError(f"{path} has {about.st_size} bytes, over {limit}; refused")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path.parent} holds no run: no {path.name} in it") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _read_if_there(path: pathlib.Path) -> dict[str, Any] | None:
    """Reads a file of this format; None where there is none."""
    return read_json(path) if os.path.exists(path) else None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """NumPy values as Python's; NaN and infinities, which JSON has not, as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _finite(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _replace(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
