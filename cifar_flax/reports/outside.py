"""Reads results that were made elsewhere from a table: a CSV file, a row for each seed.

A table needs the columns ``model``, ``seed`` and ``test_accuracy``. It may have the
other columns of ``outside_rows.COLUMNS``, and every further column is a setting. A
table with the column ``configuration``, such as the ``results.csv`` of a report, names
its configurations itself; its further columns are metrics, and settings if they begin
with ``setting.``. The tables of others are not trusted: no file of theirs is unpickled,
and their sizes are limited.
"""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from cifar_flax import records
from cifar_flax.analysis.metrics import METRICS
from cifar_flax.analysis.predictions import score
from cifar_flax.errors import UserError, one_line
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.outside_predictions import (
    file_of,
    predictions_of,
    read_predictions,
)
from cifar_flax.reports.outside_rows import SETTING, Row, read_rows
from cifar_flax.reports.runs import RunRecord


@dataclasses.dataclass(frozen=True, eq=False)
class OutsideRun(RunRecord):
    """A seed that was trained elsewhere.

    Attributes:
      line: its line in the table.
      dataset: the data set that the table names.
      file: its predictions; None without them.
      told_settings: the settings that a report wrote, which may differ between the
        seeds of a configuration.
    """

    line: int = 0
    dataset: str | None = None
    file: pathlib.Path | None = None
    told_settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def used(self) -> dict[str, Any]:
        """The settings as the table gives them."""
        return {**self.settings, **self.told_settings}

    @property
    def given(self) -> list[str]:
        """Names of the settings that the table gives."""
        return list(self.used)

    @property
    def range_test(self) -> None:
        """None: a table has no range test, whatever its folder holds."""
        return None

    @property
    def predictions_file(self) -> pathlib.Path | None:
        """The file of predictions that the table names."""
        return self.file and self.file.absolute()

    @property
    def command(self) -> str:
        """Says that no command of ours repeats it."""
        return f"# made elsewhere: {self.source}"

    @property
    def predictions(self) -> dict[str, np.ndarray]:
        """Its predictions, read at each access; the classes alone are sure."""
        assert self.file is not None
        logits, labels, _ = read_predictions(self.file, self.result.seeds[0])
        more = len(self.config.dataset.class_names) - logits.shape[1]
        logits = np.pad(logits, ((0, 0), (0, max(0, more))), constant_values=-np.inf)
        return {
            "logits": logits[None],
            "labels": labels,
            "seeds": np.array(self.result.seeds),
            "images": np.empty((0, 1, 1, 3), np.uint8),
            "indices": np.empty(0, int),
        }


def read_table(path: pathlib.Path) -> list[OutsideRun]:
    """Reads a table of results; returns a run for each row.

    Raises:
      UserError: the table or a file of predictions cannot be read, or a cell is not
        valid; the message names its line.
    """
    runs: list[OutsideRun] = []
    seen: dict[tuple[str, int], int] = {}
    for row in read_rows(path):
        run = run_of(row)
        which = repr([run.config.dataset.name, run.told_name, run.settings])
        key = which, run.result.seeds[0]
        if key in seen:
            raise row.error(
                f"seed {key[1]} of {one_line(run.told_name or run.config.model, 100)} "
                f"is also in line {seen[key]}; keep one of them, or add a column with "
                "the setting in which they differ"
            )
        seen[key] = row.line
        runs.append(run)
    if not runs:
        raise UserError(f"{path} has no row below its header")
    return runs


def join_table(runs: list[OutsideRun], groups: dict[str, list[RunRecord]]) -> list[str]:
    """Puts the rows of a table to the study that they may be compared in.

    That is a study with the data set that the table names, if it names one, and with
    the same labels and number of test images, as far as these are known. Without such a
    study the rows are one of their own.

    Args:
      runs: of one table.
      groups: the runs of each study; the rows are added to them.

    Returns:
      Lines about rows that are not compared with all others.
    """
    lines = []
    by_data: dict[str | None, list[OutsideRun]] = {}
    for run in runs:
        by_data.setdefault(run.dataset, []).append(run)
    for name, rows in by_data.items():
        facts = _facts_of(rows)
        able = [key for key, group in groups.items() if _agree(facts, group, name)]
        if groups and not able:
            lines.append(
                f"{rows[0].source} is a study of its own, because its data set, test "
                "labels or number of test images are not those of the other runs"
            )
        elif len(able) > 1:
            lines.append(
                f"{rows[0].source} is compared only in the largest of the {len(able)} "
                "studies that it may belong to"
            )
        key = max(able, key=lambda one: len(groups[one]), default="")
        group = groups.setdefault(key or repr([rows[0].source, name]), [])
        data = group[0].config.dataset if group else rows[0].config.dataset
        size = data.test_size or facts[1] or 0
        classes = [len(run.config.dataset.class_names) for run in rows]
        names = (
            data.class_names if group else [f"class {n}" for n in range(max(classes))]
        )
        data = msgspec.structs.replace(data, test_size=size, class_names=names)
        for run in rows:
            config = msgspec.structs.replace(run.config, dataset=data)
            result = msgspec.structs.replace(run.result, test_size=size)
            group.append(dataclasses.replace(run, config=config, result=result))
    return lines


def about_tables(entries: Sequence[Entry]) -> list[str]:
    """Names the entries that were trained elsewhere, and what is not known of them."""
    entries = [entry for entry in entries if entry.first.source is not None]
    if not entries:
        return []
    tables = dict.fromkeys(str(entry.first.source) for entry in entries)
    noun = "configuration is" if len(entries) == 1 else "configurations are"
    texts = [
        f"{len(entries):,} {noun} from {', '.join(tables)}. Whether their training, "
        "validation and test images, and the way to them, were those of the others is "
        "not checked, except for the test labels of predictions."
    ]
    missing: dict[str, Callable[[Entry], bool]] = {
        "predictions, so that there are no intervals over test images, calibration and "
        "confusions": lambda e: e.right is None and bool(e.accuracies),
        "a number of test images (test_size), so that one seed has no interval and "
        "equal accuracies show nothing": lambda e: not e.first.result.test_size,
        "validation accuracies, so that all settings of a model are ranked": lambda e: (
            e.validation is None and bool(e.accuracies)
        ),
    }
    for what, lacks in missing.items():
        names = [entry.name for entry in entries if lacks(entry)]
        if names:
            more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
            texts.append(f"Not known of {', '.join(names[:3])}{more}: {what}.")
    return texts


def _facts_of(rows: list[OutsideRun]) -> tuple[str | None, int | None]:
    """Returns the checksum of the labels and the number of test images, if known."""
    labels: OutsideRun | None = None
    sized: OutsideRun | None = None
    for run in rows:
        if run.has_predictions:
            if labels is not None and run.labels_sha256 != labels.labels_sha256:
                raise UserError(
                    f"{run.source}, line {run.line}: its predictions have other labels "
                    f"than those of line {labels.line}; all must be of the same test "
                    "images in the same order"
                )
            labels = run
        if run.result.test_size:
            if sized is not None and run.result.test_size != sized.result.test_size:
                raise UserError(
                    f"{run.source}, line {run.line}: it has {run.result.test_size} "
                    f"test images, and line {sized.line} {sized.result.test_size}"
                )
            sized = run
    return (
        labels.labels_sha256 if labels is not None else None,
        sized.result.test_size if sized is not None else None,
    )


def _agree(
    facts: tuple[str | None, int | None], group: list[RunRecord], name: str | None
) -> bool:
    """Returns whether nothing known tells the data of a table from those of a study."""
    sums = {run.labels_sha256 for run in group if run.has_predictions}
    sizes = {run.result.test_size for run in group if run.result.test_size}
    first = group[0]
    told = first.dataset if isinstance(first, OutsideRun) else first.config.dataset.name
    return (
        (not sums or facts[0] in (None, *sums))
        and (not sizes or facts[1] in (None, *sizes))
        and (None in (name, told) or name == told)
    )


def run_of(row: Row) -> OutsideRun:
    """Makes the record of a row, with 0 for sizes and costs that are not known."""
    cells = row.cells
    diverged = cells.get("diverged_at")
    file = None if diverged is not None else file_of(row)
    predicted = None if file is None else predictions_of(row, file)
    logits, labels, is_certain = predicted or (None, None, False)
    right = None if logits is None else logits.argmax(-1) == labels
    accuracy = None if diverged is not None else _accuracy_of(row, right)
    classes = 1 if logits is None else logits.shape[1]
    source, scores = str(row.path), []
    if is_certain and logits is not None and labels is not None:
        scores = [score(logits[None], labels)]
    return OutsideRun(
        folder=pathlib.Path(cells.get("folder", source)),
        config=_config_of(row, classes, labels),
        result=_result_of(row, accuracy, diverged, labels),
        metrics=_metrics_of(row),
        scores=scores,
        right_bits=np.packbits(
            np.zeros((1, 0), bool) if right is None else right[None], 1
        ),
        labels_sha256="" if labels is None else _checksum(labels),
        class_sizes=[] if labels is None else np.bincount(labels).tolist(),
        replicas=(0,),
        source=source,
        told_name=cells.get("configuration"),
        told_ranked=cells.get("ranked"),
        line=row.line,
        dataset=cells.get("dataset"),
        file=file,
        told_settings={
            name.removeprefix(SETTING): value
            for name, value in row.others.items()
            if "configuration" in cells and name.startswith(SETTING)
        },
    )


def _checksum(labels: np.ndarray) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def _accuracy_of(row: Row, right: np.ndarray | None) -> float | None:
    """Returns the accuracy, which that of the predictions must be but for rounding."""
    told = row.cells.get("test_accuracy")
    if right is None:
        return told
    found = float(right.mean())
    if told is not None and abs(told - found) > max(0.5 / len(right), 0.00051):
        raise row.error(
            f"test_accuracy is {told:g}, and {found:g} by its predictions in "
            f"{row.cells['predictions']}"
        )
    return found


def _config_of(row: Row, classes: int, labels: np.ndarray | None) -> records.Config:
    size = row.cells.get("test_size", 0) if labels is None else len(labels)
    settings = {} if "configuration" in row.cells else row.others
    return records.Config(
        kind="run",
        settings={
            **{n: v for n, v in settings.items() if n != "seeds"},
            "model": row.cells["model"],
            "seeds": [row.cells["seed"]],
        },
        recipe={"phases": [{}]},
        dataset=records.DatasetInfo(
            name=row.cells.get("dataset", row.path.stem),
            fingerprint="",
            source=str(row.path),
            class_names=[f"class {number}" for number in range(classes)],
            image_shape=(1, 1, 1),
            mean=[0.0],
            std=[1.0],
            train_size=0,
            val_size=0,
            test_size=size,
        ),
        versions={},
        command=[],
    )


def _result_of(
    row: Row, accuracy: float | None, diverged: int | None, labels: np.ndarray | None
) -> records.Result:
    cells = row.cells
    metrics, also = _figures_of(row) if "configuration" in cells else ({}, {})
    return records.Result(
        model=cells["model"],
        dataset=cells.get("dataset", row.path.stem),
        num_params=cells.get("parameters", 0),
        flops_per_image=cells.get("flops_per_image", 0),
        train_flops=cells.get("train_flops"),
        seeds=[cells["seed"]],
        test_accuracy=[accuracy],
        test_loss=[cells.get("test_loss", math.nan) if diverged is None else None],
        test_accuracy_mean=accuracy,
        test_accuracy_ci95=None,
        test_size=cells.get("test_size", 0) if labels is None else len(labels),
        largest_class=cells.get("largest_class"),
        epochs=cells.get("epochs", 0),
        steps=0,
        train_seconds=cells.get("train_seconds", 0),
        compile_seconds=0,
        images_per_second=0,
        device=cells.get("device", ""),
        diverged_at=[diverged],
        status="finished" if diverged is None else "diverged",
        test_metrics=metrics,
        also_test=also,
    )


def _figures_of(
    row: Row,
) -> tuple[dict[str, list[float | None]], dict[str, records.AlsoTested]]:
    """Returns the metrics, and the results on further images, that a report wrote."""
    metrics: dict[str, list[float | None]] = {}
    also: dict[str, records.AlsoTested] = {}
    for name, value in row.others.items():
        test, _, metric = name.rpartition("_")
        if name.startswith(SETTING):
            continue
        if metric in ("low", "high", "size") or isinstance(value, str):
            continue  # intervals are computed anew
        if test != "test" and metric not in ("accuracy", *METRICS):
            test, _, metric = name.partition("_")  # a metric of one's own
        if test == "test":
            metrics[metric] = [value]
            continue
        one = also.setdefault(
            test,
            records.AlsoTested(
                source=str(row.path),
                fingerprint=test,
                size=int(row.others.get(f"{test}_size", 0)),
                accuracy=[None],
                loss=[None],
            ),
        )
        if metric == "accuracy":
            one.accuracy = [value]
        else:
            one.metrics[metric] = [value]
    return metrics, also


def _metrics_of(row: Row) -> list[records.LogPoint]:
    """Returns the end of training alone, with the validation accuracy."""
    value = row.cells.get("val_accuracy")
    return [
        records.LogPoint(
            step=0,
            epoch=1,
            learning_rate=0,
            train_loss=[math.nan],
            train_accuracy=[math.nan],
            val_loss=None,
            val_accuracy=None if value is None else [value],
            images_per_second=0,
            seconds=0,
        )
    ]
