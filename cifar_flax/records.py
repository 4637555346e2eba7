"""The files in the folder of a run, each with a type that defines its content.

``config.json``      ``Config``: settings, recipe, data and versions
``metrics.jsonl``    a ``LogPoint`` per line
``steps.npz``        ``Steps``: the loss and the learning rate of each step
``result.json``      ``Result``; a folder without it holds an unfinished run
``lr_find.json``     ``RangeTest``
``predictions.npz``  test logits [R, N, K], labels [N] and seeds [R]; the most
                     confidently misclassified images [M, H, W, C] and their indices
                     [M]; the checksum of their run, except in older files;
                     ``predictions-NAME.npz`` of further test images
``checkpoints/``     see ``runs.checkpoint``

Whole files are replaced atomically; lines are appended and flushed to the disk. JSON
has no NaN and no infinity, so these are written as null. This module does not need JAX.
"""

import dataclasses
import errno
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from cifar_flax.errors import UserError, one_line
from cifar_flax.json_files import (
    MAX_TEXT,
    decode,
    encode,
    read_bytes,
    read_json,
    replace,
    write_json,
)
from cifar_flax.range_records import RangeTest, RateTrial, Suggestion
from cifar_flax.record_types import (
    FORMAT,
    OF_EVALUATION,
    PLACES,
    AlsoTested,
    Config,
    DatasetInfo,
    Identity,
    Layer,
    LogPoint,
    ModelSource,
    Number,
    Positive,
    Record,
    Result,
    Schedule,
    Setting,
    Share,
)

# The types that other modules know from here.
__all__ = [
    "FORMAT",
    "OF_EVALUATION",
    "PLACES",
    "AlsoTested",
    "Config",
    "DatasetInfo",
    "Identity",
    "Layer",
    "LogPoint",
    "ModelSource",
    "Positive",
    "RangeTest",
    "RateTrial",
    "Record",
    "Result",
    "Schedule",
    "Setting",
    "Share",
    "Suggestion",
]

CONFIG = "config.json"
METRICS = "metrics.jsonl"
STEPS = "steps.npz"
RESULT = "result.json"
RANGE_TEST = "lr_find.json"
PREDICTIONS = "predictions.npz"
CHECKPOINTS = "checkpoints"

# Limit on what is read; a run that would write more is refused.
MAX_ARRAYS = 2**30

_OF_SEEDS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")

# The values of seeds as they are in the file.
_Values = Number | None | list[Number | None]

# A ``LogPoint`` as it is in the file.
_Line = msgspec.defstruct(
    "_Line",
    [
        (field.name, _Values if field.name in _OF_SEEDS else field.type)
        for field in msgspec.structs.fields(LogPoint)
        if field.name != "val_metrics"
    ]
    + [("val_metrics", dict[str, _Values] | None, None)],
    kw_only=True,
    omit_defaults=True,
)


def write_config(folder: pathlib.Path, config: Config) -> None:
    """Writes ``config.json``."""
    write_json(folder / CONFIG, config)


def read_config(folder: pathlib.Path) -> Config:
    """Reads ``config.json``; raises a UserError if it is missing or damaged."""
    return read_json(folder / CONFIG, Config)


def write_result(folder: pathlib.Path, result: Result) -> None:
    """Writes ``result.json``, which marks the run as finished."""
    write_json(folder / RESULT, result)


def read_result(folder: pathlib.Path) -> Result | None:
    """Reads ``result.json``; None for an unfinished run."""
    # os.path.exists returns False for a very long name; Path.exists raises.
    is_there = os.path.exists(folder / RESULT)
    return read_json(folder / RESULT, Result) if is_there else None


def write_range_test(folder: pathlib.Path, record: RangeTest) -> None:
    """Writes ``lr_find.json``."""
    write_json(folder / RANGE_TEST, record)


def read_range_test(folder: pathlib.Path) -> RangeTest | None:
    """Reads ``lr_find.json``; returns None if it is missing."""
    is_there = os.path.exists(folder / RANGE_TEST)
    return read_json(folder / RANGE_TEST, RangeTest) if is_there else None


def append_metrics(folder: pathlib.Path, lines: Sequence[LogPoint]) -> None:
    """Appends lines to ``metrics.jsonl``, either all of them or none.

    ``cut_metrics`` makes the file.

    Raises:
      UserError: the lines cannot be written.
    """
    path = folder / METRICS
    content = _to_lines(lines)
    try:
        # Do not make a new file: if it has vanished, earlier lines are lost.
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


def read_metrics(folder: pathlib.Path) -> list[LogPoint]:
    """Reads the lines of ``metrics.jsonl``, without an incomplete last line."""
    path = folder / METRICS
    if not os.path.exists(path):  # it returns False for a very long name
        return []
    lines = read_bytes(path, MAX_TEXT).split(b"\n")
    points = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        where = f"line {number} of {path} is damaged"
        try:
            points.append(_from_line(decode(line, _Line, where)))
        except UserError:
            if number < len(lines):
                raise
            break  # without a newline, the line was never completed
    return points


def cut_metrics(folder: pathlib.Path, step: int) -> list[LogPoint]:
    """Removes the lines after a step, which a resumed run will write again.

    Returns:
      The remaining lines.
    """
    lines = [line for line in read_metrics(folder) if line.step <= step]
    replace(folder / METRICS, _to_lines(lines))
    return lines


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """``steps.npz``: the S steps that a run has done.

    Attributes:
      losses: mean training loss of each batch, float32 [R, S]; NaN for steps that a
        diverged replica did not do, and for steps whose record is lost.
      rates: learning rate of each step, float32 [S].
    """

    losses: np.ndarray
    rates: np.ndarray

    def __post_init__(self):
        count, shape = np.shape(self.rates), np.shape(self.losses)
        if len(count) != 1 or len(shape) != 2 or shape[1:] != count or not shape[0]:
            raise ValueError(f"losses {shape} and rates {count} do not belong together")

    def __repr__(self) -> str:
        replicas, count = self.losses.shape
        return f"Steps({count} steps of {replicas} replicas)"


def write_steps(folder: pathlib.Path, steps: Steps) -> None:
    """Writes ``steps.npz``."""
    _write_arrays(folder / STEPS, losses=steps.losses, rates=steps.rates)


def read_steps(folder: pathlib.Path) -> Steps:
    """Reads ``steps.npz``; raises a UserError if it is missing or damaged."""
    path = folder / STEPS
    if not os.path.exists(path):
        raise UserError(f"there is no {path}, the record of each step")
    arrays = read_arrays(path)
    try:
        kinds = {name: arrays[name].dtype for name in ("losses", "rates")}
        if any(kind != np.float32 for kind in kinds.values()):
            raise ValueError(f"its arrays are {kinds}; they must be float32")
        return Steps(arrays["losses"], arrays["rates"])
    except (KeyError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from error


def write_predictions(
    folder: pathlib.Path,
    logits: np.ndarray,
    labels: np.ndarray,
    seeds: list[int],
    images: np.ndarray,
    indices: np.ndarray,
    run: str | None = None,
    name: str | None = None,
) -> None:
    """Writes ``predictions.npz``.

    Args:
      folder: of the run.
      logits: of the test images, float32 [R, N, K].
      labels: [N].
      seeds: one per replica.
      images: the most confidently misclassified images, uint8 [M, H, W, C].
      indices: indices of these images in the test set, [M].
      run: checksum of the run, see ``identity.run_of``; None if it is not known.
      name: of further test images; None for those of the data set.
    """
    bound = {} if run is None else {"run": np.asarray(run)}
    _write_arrays(
        folder / predictions_of(name),
        logits=logits,
        labels=labels,
        seeds=np.asarray(seeds),
        images=images,
        indices=indices,
        **bound,
    )


def predictions_of(name: str | None) -> str:
    """Returns the file of the predictions of further test images, or of the usual."""
    stem, dot, ending = PREDICTIONS.rpartition(".")
    return PREDICTIONS if name is None else f"{stem}-{name}{dot}{ending}"


def read_predictions(
    folder: pathlib.Path, name: str | None = None
) -> dict[str, np.ndarray]:
    """Reads ``predictions.npz``; raises a UserError if it is missing or damaged.

    Args:
      folder: of the run.
      name: of further test images; None for those of the data set.
    """
    path = folder / predictions_of(name)
    arrays = read_arrays(path)
    try:
        replicas, count, _ = arrays["logits"].shape
        if arrays["seeds"].shape != (replicas,) or arrays["labels"].shape != (count,):
            raise ValueError("its arrays do not belong together")
    except (KeyError, ValueError) as error:
        raise UserError(f"cannot read {path}: {one_line(error)}") from error
    return arrays


def _write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    replace(path, buffer.getvalue())


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file; raises a UserError if it is not valid.

    Nothing is unpickled, and the arrays have at most ``MAX_ARRAYS`` bytes.
    """
    content = io.BytesIO(read_bytes(path, MAX_ARRAYS))
    try:
        with zipfile.ZipFile(
            content
        ) as archive:  # a small file may unpack to terabytes
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_ARRAYS:
            raise ValueError(f"it unpacks to {size} bytes")
        with np.load(content, allow_pickle=False) as loaded:
            return {name: loaded[name] for name in loaded.files}
    except Exception as error:  # zipfile and NumPy raise many types for damaged files
        raise UserError(f"cannot read {path}: {one_line(error)}") from error


def _to_lines(points: Sequence[LogPoint]) -> bytes:
    return b"".join(encode(_to_line(point)) + b"\n" for point in points)


def _to_line(point: LogPoint) -> msgspec.Struct:
    fields = msgspec.structs.asdict(point)
    fields |= {name: _short(fields[name]) for name in _OF_SEEDS}
    if point.val_metrics is not None:
        short = {name: _short(values) for name, values in point.val_metrics.items()}
        fields["val_metrics"] = short
    return _Line(**fields)


def _short(values: list[float] | None) -> list[float] | float | None:
    return values[0] if values is not None and len(values) == 1 else values


def _from_line(line: msgspec.Struct) -> LogPoint:
    fields = msgspec.structs.asdict(line)
    for name in _OF_SEEDS:
        values = fields[name]
        if values is None and name in ("val_loss", "val_accuracy"):
            continue
        fields[name] = _long(values)
    if fields["val_metrics"] is not None:
        every = fields["val_metrics"].items()
        fields["val_metrics"] = {name: _long(values) for name, values in every}
    return LogPoint(**fields)


def _long(values: Any) -> list[float]:
    values = values if isinstance(values, list) else [values]
    return [math.nan if value is None else value for value in values]
