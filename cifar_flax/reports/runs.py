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
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import shell_word
from cifar_flax.identity import OF_RECIPE, configuration_of, recorded_of
from cifar_flax.own_code import label_of
from cifar_flax.reports.checks import check_also_tested, check_records, check_scores
from cifar_flax.search_records import PRUNED


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
      class_sizes: number of test images of each class.
      replicas: indices of the replicas that count; another run may have the others.
      source: the table that it was read from; None for a run of this package.
      told_name: the name of its configuration, if a table gives it.
      told_ranked: whether its configuration is ranked, if a table says so.
    """

    folder: pathlib.Path
    config: records.Config
    result: records.Result
    metrics: list[records.LogPoint]
    scores: list[Scores]
    right_bits: np.ndarray
    labels_sha256: str
    class_sizes: list[int]
    replicas: tuple[int, ...]
    source: str | None = None
    told_name: str | None = None
    told_ranked: bool | None = None

    @property
    def predictions_file(self) -> pathlib.Path | None:
        """The file of predictions that a table names."""
        return None

    @property
    def has_predictions(self) -> bool:
        """Whether it is known which images it classifies correctly."""
        return self.right_bits.size > 0

    @functools.cached_property
    def seeds(self) -> list[Seed]:
        """The seeds that count."""
        result = self.result
        columns = (result.seeds, result.test_accuracy, result.diverged_at)
        every = [Seed(*row) for row in zip(*columns, strict=True)]
        return [every[index] for index in self.replicas]

    @property
    def finished(self) -> list[int]:
        """Indices of the replicas that count and have not diverged."""
        return [index for index in self.result.alive() if index in self.replicas]

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
        # A custom phase may have anything there.
        rates = [r for r in rates if isinstance(r, int | float)]
        own = {**recipe, **recipe.get("augmentation", {}), "lr": max(rates, default=0)}
        own |= {"epochs": self.result.epochs, "optimizer_args": recipe.get("options")}
        own["phases"] = len(recipe.get("phases", []))
        used = {
            name: own.get(name, value) if value in (None, "auto") else value
            for name, value in {"lr": None, **self.settings}.items()
        }
        return {
            name: label_of(value)
            if name in OF_RECIPE and isinstance(value, str)
            else value
            for name, value in used.items()
        }

    @property
    def given(self) -> list[str]:
        """Names of the settings that were given, and the learning rate if known."""
        known = self.settings | {"lr": self.used["lr"]}
        return [name for name, value in known.items() if value is not None]

    @property
    def right(self) -> np.ndarray:
        """Whether each finished seed classifies each image correctly, bool [n, N]."""
        bits, count = self.right_bits[self.finished], self.result.test_size
        return np.unpackbits(bits, axis=1, count=count).astype(bool)

    @property
    def mixes(self) -> bool:
        """Whether it was trained on mixed images, of which its training accuracy is."""
        augmentation: Any = (self.config.recipe or {}).get("augmentation") or {}
        return bool(augmentation.get("mixup") or augmentation.get("cutmix"))

    @property
    def command(self) -> str:
        """The command that repeats the run on the same data, for a shell.

        It names the data set that was found, since ``auto`` may find another one on
        another machine, and where the data were. Only the run's own folder is left out.
        """
        words = self.config.command
        kept = [
            word
            for word in words
            if word != "--dataset=auto" and not word.startswith("--workdir=")
        ]
        if not kept:
            return "# a program made this run"
        if not any(word.startswith("--dataset=") for word in kept):
            kept.append(f"--dataset={self.config.dataset.name}")
        return " ".join(map(shell_word, ["python", *kept[1:]]))

    @property
    def predictions(self) -> dict[str, np.ndarray]:
        """Its ``predictions.npz`` for the finished seeds, read at each access."""
        arrays, rows = records.read_predictions(self.folder), self.finished
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
      The runs, and a line with the reason for all that is left out: a run that cannot
      be compared, and a folder that cannot be looked into.

    Raises:
      UserError: there is no such folder, or it holds no finished run.
    """
    if not os.path.isdir(folder):  # unlike Path.is_dir, it accepts very long names
        raise UserError(f"{folder} is not a folder; give a folder of runs as --runs")
    runs = []
    found, left_out = _find_runs(folder)
    for path in found:
        if os.path.exists(path / PRUNED) and not os.path.exists(path / records.RESULT):
            continue  # the page tells of it with the search that it belongs to
        try:
            runs.append(_read_run(path))
        except UserError as error:
            left_out.append(str(error))
        except Exception as error:  # no record may take the report from the others
            left_out.append(f"{path} cannot be read: {one_line(repr(error))}")
    if not runs:
        why = f": {left_out[0]}" if left_out else ""
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise UserError(f"{folder} holds no finished run{why}{more}")
    return runs, left_out


def _find_runs(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
    """Returns each folder of a run below a folder once, and why others are passed over.

    It looks into runs, and into those that a link names. It does not follow other
    links, which may lead to anything, also back to here.
    """
    found: dict[str, pathlib.Path] = {}
    left_out: list[str] = []

    def unreadable(error: OSError) -> None:
        left_out.append(f"cannot read the folder {error.filename}: {error.strerror}")

    places = [folder]
    for place in places:  # links add to it, after the folders that they may name
        if os.path.realpath(place) in found:
            continue  # two links lead to it
        links: list[pathlib.Path] = []
        for path, folders, files in os.walk(place, onerror=unreadable):
            here = pathlib.Path(path)
            every = {*folders, *files}
            if records.CONFIG in every:
                found.setdefault(os.path.realpath(path), here)
                folders[:] = [name for name in folders if name != records.CHECKPOINTS]
            elif len(names := sorted(_OF_A_RUN & every)) > 1:
                those = " and ".join(names)
                left_out.append(f"{path} has {those} but no {records.CONFIG}")
            folders.sort()
            links += [here / name for name in folders if os.path.islink(here / name)]
            links += [here / name for name in files if _is_broken(here / name)]
        for link in links:
            target = os.path.realpath(link)
            if os.path.lexists(os.path.join(target, records.CONFIG)):
                if target not in found:
                    places.append(link)
            elif not os.path.isdir(target):
                left_out.append(f"{link} is a link to {target}, which does not exist")
            elif not pathlib.Path(target).is_relative_to(os.path.realpath(folder)):
                left_out.append(
                    f"{link} is a link to the folder {target}, which is not a run and "
                    "is not looked into; give that folder as --runs, or link its runs"
                )
    return list(found.values()), left_out


# Files that only a run has, besides its config.
_OF_A_RUN = {records.METRICS, records.STEPS, records.RESULT, records.PREDICTIONS}


def _is_broken(path: pathlib.Path) -> bool:
    # A dot begins the name of files that programs make, such as an editor's locks.
    is_link = not path.name.startswith(".") and os.path.islink(path)
    return is_link and not os.path.exists(path)


def _read_run(folder: pathlib.Path) -> RunRecord:
    """Reads a run; raises a UserError with the reason if it cannot be compared."""
    config = records.read_config(folder)
    if config.kind != "run":
        raise UserError(f"{folder} holds the result of {config.kind}, not of a run")
    result = records.read_result(folder)
    if result is None:
        raise UserError(f"{folder} is not finished")
    metrics, arrays = records.read_metrics(folder), records.read_predictions(folder)
    range_test = records.read_range_test(folder)
    check_records(folder, config, result, metrics, arrays, range_test)
    logits, labels = arrays["logits"], arrays["labels"]
    scores = [score(replica[None], labels) for replica in logits]
    check_scores(folder, result, scores)
    check_also_tested(folder, config, result)
    run = RunRecord(
        folder,
        config,
        result,
        metrics,
        scores=scores,
        right_bits=np.packbits(logits.argmax(-1) == labels, axis=1),
        labels_sha256=hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest(),
        class_sizes=np.bincount(labels, minlength=logits.shape[-1]).tolist(),
        replicas=tuple(range(len(logits))),
    )
    configuration_of(config, str(folder))
    recorded_of(config)
    rate = run.used.get("lr")  # what cannot be derived is reported here, too
    if not isinstance(rate, int | float):
        raise UserError(
            f"{folder / records.CONFIG}: settings.lr is {one_line(repr(rate), 60)}; it "
            "must be a number, null or auto"
        )
    _ = run.seeds, run.right
    return run
