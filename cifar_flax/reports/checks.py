"""Checks that the records of a run belong together."""

import math
import pathlib
from typing import Any

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.predictions import Scores, score
from cifar_flax.errors import UserError, one_line
from cifar_flax.identity import run_of

COLUMNS = ("train_loss", "train_accuracy", "val_accuracy")


def check_records(
    folder: pathlib.Path,
    config: records.Config,
    result: records.Result,
    metrics: list[records.LogPoint],
    predictions: dict[str, np.ndarray],
    range_test: records.RangeTest | None,
) -> None:
    """Checks that the records of a run are complete and belong together.

    Raises:
      UserError: a report could not use them; the message names the file.
    """
    if config.recipe is None:
        raise UserError(f"{folder / records.CONFIG}: recipe is null in a finished run")
    _check_predictions(str(folder / records.PREDICTIONS), predictions)
    _, count, classes = predictions["logits"].shape
    _check_bound(str(folder / records.PREDICTIONS), config, predictions)
    seeds, data = predictions["seeds"].tolist(), config.dataset
    of_result, of_predictions = records.RESULT, records.PREDICTIONS
    told = {
        "seeds": {
            records.CONFIG: config.settings["seeds"],
            of_result: result.seeds,
            of_predictions: seeds,
        },
        "number of test images": {
            records.CONFIG: data.test_size,
            of_result: result.test_size,
            of_predictions: count,
        },
        "number of classes": {
            records.CONFIG: len(data.class_names),
            of_predictions: classes,
        },
        "model": {
            records.CONFIG: config.model,
            of_result: result.model,
            records.RANGE_TEST: (range_test and range_test.model) or config.model,
        },
        "number of parameters": {
            records.CONFIG: config.num_params or result.num_params,  # 0: an older one
            of_result: result.num_params,
        },
    }
    _check_agreement(folder, told)
    _check_metrics(str(folder / records.METRICS), metrics, result)
    epochs = math.ceil(result.epochs)
    if len(metrics) > epochs or (len(metrics) < epochs and result.status == "finished"):
        raise UserError(
            f"the records in {folder} do not belong together: {records.METRICS} has "
            f"{len(metrics)} epochs and {of_result} {epochs}"
        )


def _check_agreement(folder: pathlib.Path, told: dict[str, dict[str, Any]]) -> None:
    """Raises a UserError if files differ in a fact: told are the values by file."""
    for fact, values in told.items():
        first, *others = values
        for other in others:
            if values[other] != values[first]:
                words = [one_line(repr(values[name]), 100) for name in (first, other)]
                raise UserError(
                    f"the records in {folder} do not belong together: its {fact} is "
                    f"{words[0]} in {first} and {words[1]} in {other}"
                )


def check_also_tested(
    folder: pathlib.Path, config: records.Config, result: records.Result
) -> None:
    """Checks the predictions of further test images, and that they are the result's.

    Raises:
      UserError: they are missing or damaged, or contradict the result.
    """
    for name, also in result.also_test.items():
        arrays = records.read_predictions(folder, name)
        where = str(folder / records.predictions_of(name))
        _check_predictions(where, arrays)
        _check_bound(where, config, arrays)
        logits, labels = arrays["logits"], arrays["labels"]
        if (len(logits), len(labels)) != (len(result.seeds), also.size):
            raise UserError(f"{where} has not the seeds and images of {records.RESULT}")
        scores = [score(replica[None], labels) for replica in logits]
        for index in result.alive():
            accuracy, loss = also.accuracy[index], also.loss[index]
            if accuracy is not None and loss is not None:
                told = result.seeds[index], (accuracy, loss), scores[index]
                _check_score(folder, *told, records.predictions_of(name))


def _check_bound(
    where: str, config: records.Config, arrays: dict[str, np.ndarray]
) -> None:
    """Raises a UserError if predictions are bound to another run."""
    run = run_of(config)
    if "run" in arrays and run is not None and arrays["run"].tolist() != run:
        raise UserError(f"{where} holds the predictions of another run")


def check_scores(
    folder: pathlib.Path, result: records.Result, scores: list[Scores]
) -> None:
    """Checks that the result of a run is that of its predictions.

    Args:
      folder: of the run.
      result: its result.
      scores: of the predictions of each replica.

    Raises:
      UserError: they contradict each other.
    """
    for index in result.alive():
        one, count = scores[index], int(scores[index].counts.sum())
        if not count:
            raise UserError(
                f"{folder}: seed {result.seeds[index]} has not diverged by "
                f"{records.RESULT}, but its logits in {records.PREDICTIONS} are NaN or "
                "infinite"
            )
        told = result.test_accuracy[index] or 0.0, result.test_loss[index] or 0.0
        _check_score(folder, result.seeds[index], told, one)


def _check_score(
    folder: pathlib.Path,
    seed: int,
    told: tuple[float, float],
    one: Scores,
    file: str = records.PREDICTIONS,
) -> None:
    """Raises a UserError if accuracy and loss are not those of the predictions."""
    count = max(1, int(one.counts.sum()))
    found = one.right.sum() / count, one.nll / count
    # Older versions may have rounded to float32.
    if not np.allclose(told, found, rtol=(1e-6, 1e-4), atol=1e-6):
        raise UserError(
            f"{folder}: seed {seed} has the accuracy {told[0]:.6g} and the loss "
            f"{told[1]:.6g} in {records.RESULT}, but {found[0]:.6g} and "
            f"{found[1]:.6g} by its logits in {file}"
        )


def _check_metrics(
    where: str, metrics: list[records.LogPoint], result: records.Result
) -> None:
    # There may be no lines, because a run may diverge within its first epoch.
    if [line.epoch for line in metrics] != list(range(1, len(metrics) + 1)):
        raise UserError(f"{where}: its lines are not of the epochs 1, 2 and so on")
    replicas = len(result.seeds)
    for name in COLUMNS:
        values = [getattr(line, name) for line in metrics]
        if {np.size(value) for value in values} - {replicas} and any(
            value is not None for value in values
        ):
            raise UserError(f"{where}: not every {name} is of {replicas} seeds")
    # The epochs of a run that this one continues may have measured less.
    others = [line.val_metrics or {} for line in metrics]
    if any(len(values) != replicas for one in others for values in one.values()):
        raise UserError(f"{where}: not every val_metrics is of {replicas} seeds")
    for line in metrics:
        # The last step may make parameters NaN after its loss was computed.
        alive = result.alive(line.step - 1)
        for index in range(replicas):
            if index not in alive and math.isfinite(line.train_loss[index]):
                raise UserError(
                    f"{where} has a loss of seed {result.seeds[index]} at step "
                    f"{line.step}, and {records.RESULT} says that it diverged at step "
                    f"{result.diverged_at[index]}"
                )


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
