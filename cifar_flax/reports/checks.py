"""Checks that the records of a run belong together."""

import math
import pathlib

import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError

COLUMNS = ("train_loss", "train_accuracy", "val_accuracy")


def check_records(
    folder: pathlib.Path,
    config: records.Config,
    result: records.Result,
    metrics: list[records.LogPoint],
    predictions: dict[str, np.ndarray],
) -> None:
    """Checks that the records of a run are complete and belong together.

    Raises:
      UserError: a report could not use them; the message names the file.
    """
    if config.recipe is None:
        raise UserError(f"{folder / records.CONFIG}: recipe is null in a finished run")
    _check_predictions(str(folder / records.PREDICTIONS), predictions)
    replicas, count, classes = predictions["logits"].shape
    _check_metrics(str(folder / records.METRICS), metrics, replicas)
    epochs = math.ceil(result.epochs)
    if not (
        len(result.seeds) == replicas
        and result.seeds == predictions["seeds"].tolist()
        and result.test_size == config.dataset.test_size == count
        and len(config.dataset.class_names) == classes
        and config.model == result.model
        and (len(metrics) == epochs or result.status == "diverged")
        and len(metrics) <= epochs
    ):
        raise UserError(f"the records in {folder} do not belong together")


def _check_metrics(where: str, metrics: list[records.LogPoint], replicas: int) -> None:
    # There may be no lines, because a run may diverge within its first epoch.
    if [line.epoch for line in metrics] != list(range(1, len(metrics) + 1)):
        raise UserError(f"{where}: its lines are not of the epochs 1, 2 and so on")
    for name in COLUMNS:
        values = [getattr(line, name) for line in metrics]
        if {np.size(value) for value in values} - {replicas} and any(
            value is not None for value in values
        ):
            raise UserError(f"{where}: not every {name} is of {replicas} seeds")


def _check_predictions(where: str, arrays: dict[str, np.ndarray]) -> None:
    names = ("logits", "labels", "seeds", "images", "indices")
    for name in names:
        if name not in arrays:
            raise UserError(f"{where} has no {name!r}; it is not a run of this version")
    logits, labels, seeds, images, indices = (arrays[name] for name in names)
    kinds = {array.dtype.kind for array in (labels, seeds, indices)}
    if (logits.dtype, images.dtype) != (np.float32, np.uint8) or kinds - {"i", "u"}:
        raise UserError(f"{where}: an array has the wrong dtype")
    classes = logits.shape[-1]
    if not logits.size or not ((labels >= 0) & (labels < classes)).all():
        raise UserError(f"{where}: a label is not one of its {classes} classes")
    if (
        images.ndim != 4
        or 0 in images.shape[1:]
        or indices.shape != images.shape[:1]
        or not ((indices >= 0) & (indices < len(labels))).all()
    ):
        raise UserError(f"{where}: its images and indices do not belong together")
