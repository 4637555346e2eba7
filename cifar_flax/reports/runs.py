"""Reads the finished runs below a folder from their records."""

import dataclasses
import functools
import hashlib
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.predictions import Scores, score
from cifar_flax.errors import UserError
from cifar_flax.files import shell_word
from cifar_flax.reports.checks import check_records


class Seed(NamedTuple):
    """The result of a seed; the accuracy is None if it diverged at a step."""

    number: int
    accuracy: float | None
    diverged_at: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class RunRecord:
    """One finished run, with a summary of its predictions, which are large.

    Attributes:
      folder: of the run.
      config: its ``config.json``.
      result: its ``result.json``.
      metrics: the lines of its ``metrics.jsonl``.
      scores: of the predictions of each replica.
      right_bits: whether each replica classifies each test image correctly, as bits:
        ``numpy.packbits`` of bool [R, N] along the images.
      labels_sha256: SHA-256 of the labels of the test images.
      replicas: indices of the replicas that count; another run may have the others.
    """

    folder: pathlib.Path
    config: records.Config
    result: records.Result
    metrics: list[records.LogPoint]
    scores: list[Scores]
    right_bits: np.ndarray
    labels_sha256: str
    replicas: tuple[int, ...]

    @functools.cached_property
    def seeds(self) -> list[Seed]:
        """The seeds that count."""
        result = self.result
        columns = (result.seeds, result.test_accuracy, result.diverged_at)
        every = [Seed(*row) for row in zip(*columns, strict=True)]
        return [every[index] for index in self.replicas]

    def outcome(self, index: int) -> tuple[Any, ...]:
        """Returns the results of a replica, which the same seed always gives."""
        result = self.result
        columns = (result.test_accuracy, result.test_loss, result.diverged_at)
        return tuple(column[index] for column in columns)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that affect the results, except the seeds."""
        return self.config.deciding_settings

    @functools.cached_property
    def used(self) -> dict[str, Any]:
        """The settings, with None and ``auto`` replaced by the recipe's values.

        ``lr`` is the highest rate of the recipe.
        """
        recipe: dict[str, Any] = self.config.recipe or {}
        rates = [phase.get("learning_rate", 0) for phase in recipe.get("phases", [])]
        own = {**recipe, **recipe.get("augmentation", {}), "lr": max(rates, default=0)}
        own |= {"epochs": self.result.epochs, "optimizer_args": recipe.get("options")}
        own["phases"] = len(recipe.get("phases", []))
        return {
            name: own.get(name, value) if value in (None, "auto") else value
            for name, value in self.settings.items()
        }

    @property
    def right(self) -> np.ndarray:
        """Whether each finished seed classifies each image correctly, bool [n, N]."""
        pairs = zip(self.replicas, self.seeds, strict=True)
        rows = [index for index, seed in pairs if seed.diverged_at is None]
        bits, count = self.right_bits[rows], self.result.test_size
        return np.unpackbits(bits, axis=1, count=count).astype(bool)

    @property
    def command(self) -> str:
        """The command of the run, without paths of this machine."""
        places = tuple(f"--{name}=" for name in (*records.PLACES, "workdir"))
        words = self.config.command
        kept = [word for word in words if not word.startswith(places)]
        if not kept:
            return "# a program made this run"
        return " ".join(map(shell_word, ["python", *kept[1:]]))

    @property
    def predictions(self) -> dict[str, np.ndarray]:
        """Its ``predictions.npz`` for the seeds that count, read at each access."""
        arrays, rows = records.read_predictions(self.folder), list(self.replicas)
        return {**arrays, **{n: arrays[n][rows] for n in ("logits", "seeds")}}

    @property
    def seconds(self) -> float:
        """Training time of the seeds that count."""
        share = len(self.replicas) / len(self.result.seeds)
        return self.result.train_seconds * share

    @property
    def range_test(self) -> records.RangeTest | None:
        """Its ``lr_find.json``, which is read at each access; None without one."""
        return records.read_range_test(self.folder)


def read_runs(folder: pathlib.Path) -> tuple[list[RunRecord], list[str]]:
    """Reads all finished runs below a folder.

    Returns:
      The runs, and a line with the reason for each run that cannot be compared.

    Raises:
      UserError: there is no such folder, or it holds no finished run.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, it accepts very long names
        raise UserError(f"{folder} is not a folder; give a folder of runs as --runs")
    runs, left_out = [], []
    for path, folders, files in os.walk(folder):
        folders.sort()
        if records.CONFIG not in files:
            continue
        folders.clear()  # the folder of a run holds no other runs
        try:
            runs.append(_read_run(pathlib.Path(path)))
        except UserError as error:
            left_out.append(str(error))
    if not runs:
        why = f": {left_out[0]}" if left_out else ""
        raise UserError(f"{folder} holds no finished run{why}")
    return runs, left_out


def _read_run(folder: pathlib.Path) -> RunRecord:
    """Reads a run; raises a UserError with the reason if it cannot be compared."""
    config = records.read_config(folder)
    if config.kind != "run":
        raise UserError(f"{folder} holds the result of {config.kind}, not of a run")
    result = records.read_result(folder)
    if result is None:
        raise UserError(f"{folder} is not finished")
    metrics, arrays = records.read_metrics(folder), records.read_predictions(folder)
    check_records(folder, config, result, metrics, arrays)
    records.read_range_test(folder)  # raises if the file is damaged
    logits, labels = arrays["logits"], arrays["labels"]
    return RunRecord(
        folder,
        config,
        result,
        metrics,
        scores=[score(replica[None], labels) for replica in logits],
        right_bits=np.packbits(logits.argmax(-1) == labels, axis=1),
        labels_sha256=hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(),
        replicas=tuple(range(len(logits))),
    )
