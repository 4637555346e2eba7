"""What a report asks of the records of a run, checked once, when they are read."""

import pathlib
from typing import Any

import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.fields import (
    COUNT,
    INTEGER,
    NAME,
    NOT_NEGATIVE,
    NULL,
    NUMBER,
    POSITIVE,
    SETTING,
    SHARE,
    SIZE,
    TEXT,
    check,
    either,
    list_of,
    one_of,
    whole,
)

# Bounds on what is drawn; no run comes near them.
_MAX_EPOCHS = 100_000
_EPOCHS = whole(1, _MAX_EPOCHS)
_STEPS = whole(1, 1_000_000)

_NUMBER_OR_NULL = either(NUMBER, NULL)
_FIGURE = either(_NUMBER_OR_NULL, list_of(_NUMBER_OR_NULL))
COLUMNS = ("train_loss", "train_accuracy", "val_accuracy")

_CONFIG = {
    "settings": {"model": NAME, ...: SETTING},
    "recipe": {
        "phases": [
            {
                "kind": one_of("constant", "sgdr"),
                "learning_rate": NOT_NEGATIVE,
                ...: SETTING,
            }
        ],
        ...: SETTING,
    },
    "dataset": {
        **dict.fromkeys(("name", "fingerprint", "source"), TEXT),
        "class_names": [TEXT],
        **{"train_size": SIZE, "val_size": COUNT, "test_size": SIZE},
    },
    "versions": {"cifar-flax": TEXT, ...: SETTING},
    "command": [TEXT],
}
_LENGTHS = {
    "constant": {"epochs": _EPOCHS},
    "sgdr": dict.fromkeys(("cycles", "cycle_len", "cycle_mult"), _EPOCHS),
}
_RESULT = {
    "model": NAME,
    "num_params": SIZE,
    "flops_per_image": POSITIVE,
    "seeds": [INTEGER],
    "test_accuracy": [SHARE],
    "test_size": SIZE,
    "epochs": _EPOCHS,
    "train_seconds": POSITIVE,
    "device": TEXT,
    "diverged_at": [either(COUNT, NULL)],
    "status": one_of("finished", "diverged"),
}
_LAYER = {
    **{"path": TEXT, "kind": TEXT, "output_shape": list_of(COUNT)},
    **{"num_params": COUNT, "flops": NOT_NEGATIVE},
}
_LINE = {"epoch": _EPOCHS, **dict.fromkeys(COLUMNS, _FIGURE)}
_RANGE_TEST = {
    "seeds": [INTEGER],
    "num_steps": _STEPS,
    "rates": [POSITIVE],
    "losses": [[_NUMBER_OR_NULL]],
    "smoothed": [[_NUMBER_OR_NULL]],
    "seconds": NOT_NEGATIVE,
    "compile_seconds": NOT_NEGATIVE,
}


def check_records(
    folder: pathlib.Path,
    config: dict[str, Any],
    result: dict[str, Any],
    metrics: list[Any],
    predictions: dict[str, np.ndarray],
    range_test: dict[str, Any] | None,
) -> None:
    """Checks all records of a run, each by itself and whether they belong together.

    Raises:
      UserError: a report could not use them; the message names the file.
    """
    _check_config(str(folder / records.CONFIG), config)
    _check_result(str(folder / records.RESULT), result)
    _check_predictions(str(folder / records.PREDICTIONS), predictions)
    replicas, count, classes = predictions["logits"].shape
    _check_metrics(str(folder / records.METRICS), metrics, replicas)
    if range_test is not None:
        _check_range_test(str(folder / records.RANGE_TEST), range_test)
    per_seed = ("seeds", "test_accuracy", "diverged_at")
    epochs = count_epochs(config["recipe"])
    if not (
        {len(result[name]) for name in per_seed} == {replicas}
        and result["seeds"] == predictions["seeds"].tolist()
        and result["test_size"] == config["dataset"]["test_size"] == count
        and len(config["dataset"]["class_names"]) == classes
        and config["settings"]["model"] == result["model"]
        and (len(metrics) == epochs or result["status"] == "diverged")
        and len(metrics) <= epochs
    ):
        raise UserError(f"the records in {folder} do not belong together")


def count_epochs(recipe: dict[str, Any]) -> int:
    """Epochs of a recipe's record; of an endless one, too many."""
    total = 0
    for phase in recipe["phases"]:
        constant = phase["kind"] == "constant"
        length = phase["epochs" if constant else "cycle_len"]
        for _ in range(1 if constant else phase["cycles"]):
            total += length
            if total > _MAX_EPOCHS:
                return total
            length *= 1 if constant else phase["cycle_mult"]
    return total


def _check_config(where: str, config: dict[str, Any]) -> None:
    check(config, _CONFIG, where)
    for phase in config["recipe"]["phases"]:
        check(phase, _LENGTHS[phase["kind"]], f"{where}, a phase of the recipe")
    if count_epochs(config["recipe"]) > _MAX_EPOCHS:
        raise UserError(f"{where}: the recipe has over {_MAX_EPOCHS} epochs")


def _check_result(where: str, result: dict[str, Any]) -> None:
    check(result, _RESULT, where)
    if result.get("layers"):
        check(result["layers"], [_LAYER], f"{where}, layers")
    if len(set(result["seeds"])) < len(result["seeds"]):
        raise UserError(f"{where}: a seed is there twice")


def _check_metrics(where: str, metrics: list[Any], replicas: int) -> None:
    if metrics:  # a run may diverge within its first epoch
        check(metrics, [_LINE], f"{where}, its lines")
    if [line["epoch"] for line in metrics] != list(range(1, len(metrics) + 1)):
        raise UserError(f"{where}: its lines are not of the epochs 1, 2 and so on")
    for name in COLUMNS:
        lengths = {np.size(line[name]) for line in metrics}
        if lengths - {replicas} and any(line[name] is not None for line in metrics):
            raise UserError(f"{where}: not every {name} is of {replicas} seeds")


def _check_predictions(where: str, arrays: dict[str, np.ndarray]) -> None:
    names = ("logits", "labels", "seeds", "images", "indices")
    for name in names:
        if name not in arrays:
            raise UserError(f"{where} lacks {name!r}; no run of this version")
    logits, labels, seeds, images, indices = (arrays[name] for name in names)
    kinds = {array.dtype.kind for array in (labels, seeds, indices)}
    if (logits.dtype, images.dtype) != (np.float32, np.uint8) or kinds - {"i", "u"}:
        raise UserError(f"{where}: an array is of another type than its records have")
    classes = logits.shape[-1]
    if not logits.size or not ((labels >= 0) & (labels < classes)).all():
        raise UserError(f"{where}: a label is none of its {classes} classes")
    if (
        images.ndim != 4
        or 0 in images.shape[1:3]
        or images.shape[3] != 3
        or indices.shape != images.shape[:1]
        or not ((indices >= 0) & (indices < len(labels))).all()
    ):
        raise UserError(f"{where}: its images and indices do not belong together")


def _check_range_test(where: str, record: dict[str, Any]) -> None:
    check(record, _RANGE_TEST, where)
    rates = np.array(record["rates"])
    curves = [*record["losses"], *record["smoothed"]]
    count = len(record["seeds"])
    if (
        any(len(curve) != len(rates) for curve in curves)
        or {len(record["losses"]), len(record["smoothed"])} != {count}
        or (np.diff(rates) <= 0).any()
        or len(rates) > record["num_steps"]
    ):
        raise UserError(f"{where}: its rates and curves do not belong together")
    # A curve may break off, and has no gaps; the longest has all of the steps.
    losses, smoothed = (
        ~np.isnan(np.array(record[name], np.float64)) for name in ("losses", "smoothed")
    )
    if (
        (losses != smoothed).any()
        or (losses[:, 1:] > losses[:, :-1]).any()
        or not losses[:, -1].any()
    ):
        raise UserError(f"{where}: a curve has gaps")
