"""Sorts runs into studies, and chooses what is compared.

Runs of the same configuration are one entry, whatever their seeds and folders. Entries
with the same training and test images and the same version are one study. Only entries
of the same study are compared. The ranking holds one entry of each model: the best on
the validation split. Choosing it by the test accuracy would overestimate it.
"""

import dataclasses
import difflib
import functools
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.predictions import Calibration
from cifar_flax.analysis.statistics import (
    Difference,
    ci95_of_mean,
    ci95_of_share,
    compare,
    holm,
)
from cifar_flax.errors import UserError, one_line
from cifar_flax.identity import (
    bits_of,
    configuration_of,
    custom_model_of,
    differing_parts,
    parts_of,
)
from cifar_flax.reports.runs import RunRecord, read_runs

# A study with more entries than this is large: only its best entries are compared with
# each other and drawn over the epochs. 20 entries have 190 pairs.
WHOLE = 20
BEST = 10

# Parts of a recipe that a name tells.
MOST_PARTS = 2

# Settings of the model; entries that differ in them are always compared.
OF_MODEL = ("model", "model_args")


@dataclasses.dataclass(frozen=True, eq=False)
class Entry:
    """All seeds of one configuration.

    Attributes:
      name: name that is unique in its study.
      runs: the runs of the seeds.
    """

    name: str
    runs: list[RunRecord]

    @property
    def first(self) -> RunRecord:
        """The first run, for properties that all runs share."""
        return self.runs[0]

    @functools.cached_property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy of each finished seed."""
        return {
            seed.number: seed.accuracy
            for run in self.runs
            for seed in run.seeds
            if seed.diverged_at is None and seed.accuracy is not None
        }

    @functools.cached_property
    def diverged(self) -> list[int]:
        """Seeds that diverged."""
        every = [seed for run in self.runs for seed in run.seeds]
        return [seed.number for seed in every if seed.diverged_at is not None]

    @property
    def seeds(self) -> list[int]:
        """All seeds, including diverged ones."""
        return sorted([*self.accuracies, *self.diverged])

    @property
    def mean(self) -> float:
        """Mean test accuracy of the finished seeds; NaN if there is none.

        The mean of equal accuracies is exactly their value.
        """
        values = list(self.accuracies.values())
        return (
            values[0] + float(np.mean(np.subtract(values, values[0])))
            if values
            else np.nan
        )

    @property
    def mean_of_all(self) -> float:
        """Mean test accuracy of all seeds; a diverged seed counts as 0."""
        return (
            self.mean * len(self.accuracies) / len(self.seeds)
            if self.accuracies
            else 0.0
        )

    @property
    def spread(self) -> float | None:
        """Standard deviation of the test accuracies; None for fewer than two seeds."""
        values = list(self.accuracies.values())
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def half_width(self) -> float | None:
        """Half the 95 % interval over seeds, or over the test images for one seed."""
        values = list(self.accuracies.values())
        if not values:
            return None
        half = ci95_of_mean(values)
        if half is not None:
            return half
        return ci95_of_share(values[0], self.first.result.test_size)

    @functools.cached_property
    def right(self) -> np.ndarray:
        """Whether each finished seed classifies each image correctly, bool [n, N]."""
        return np.concatenate([run.right for run in self.runs])

    @functools.cached_property
    def validation(self) -> float | None:
        """Mean accuracy on the validation split at the end of training."""
        _, values = self.curve("val_accuracy")
        return float(values[:, -1].mean()) if len(values) else None

    @property
    def rates(self) -> tuple[float, float]:
        """The lowest and the highest learning rate of its runs."""
        rates = [run.used["lr"] for run in self.runs]
        return min(rates), max(rates)

    @property
    def seconds_per_seed(self) -> float:
        """Mean training time of a seed."""
        return sum(run.seconds for run in self.runs) / len(self.seeds)

    @property
    def predictions(self) -> list[dict[str, np.ndarray]]:
        """The ``predictions.npz`` of each run, which are read at each access."""
        return [run.predictions for run in self.runs]

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Calibration of the predictions of all finished seeds."""
        pairs = [(run, index) for run in self.runs for index in run.replicas]
        first, *others = (run.scores[index] for run, index in pairs)
        return sum(others, start=first).calibration

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns a metric over the epochs.

        Args:
          name: name in ``metrics.jsonl``.

        Returns:
          Epochs [E], and the values [R, E] of the finished seeds; R is 0 if the metric
          was not recorded.
        """
        whole = [run for run in self.runs if run.result.status == "finished"]
        if not whole:
            return np.empty(0), np.empty((0, 0))
        epochs = np.array([line.epoch for line in whole[0].metrics])
        rows = []
        for run in whole:
            values = [np.atleast_1d(getattr(line, name)) for line in run.metrics]
            columns = np.array(values, dtype=np.float64).T  # None becomes NaN
            was_recorded = len(columns) == len(run.result.seeds)
            rows.append(columns[list(run.replicas)] if was_recorded else columns)
        table = np.concatenate(rows)
        return epochs, table[~np.isnan(table).any(1)]


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """Entries that may be compared.

    Attributes:
      dataset: the data set of all entries.
      version: the version of this package that trained them.
      key: distinguishes the study from others.
      entries: the ranking, the best entry first; entries with a diverged seed are last.
      apart: entries of models for which another entry is ranked, in the same order.
      compared: settings besides the model whose values are compared.
      baseline: the entry with which all others are compared; None: the entries of
        ``best`` are compared with each other.
    """

    dataset: records.DatasetInfo
    version: str
    key: str
    entries: list[Entry]
    apart: list[Entry]
    compared: tuple[str, ...] = ()
    baseline: Entry | None = None

    @property
    def everything(self) -> list[Entry]:
        """The ranked entries, followed by those apart."""
        return [*self.entries, *self.apart]

    @property
    def is_large(self) -> bool:
        """Whether there are too many entries to compare and draw all of them."""
        return len(self.entries) > WHOLE

    @property
    def best(self) -> list[Entry]:
        """The best entries of a large study, or all entries of another study."""
        return self.entries[:BEST] if self.is_large else self.entries

    @property
    def shown(self) -> list[Entry]:
        """The best entries, and the baseline."""
        others = [self.baseline] if self.baseline else []
        return [*self.best, *(entry for entry in others if entry not in self.best)]

    @functools.cached_property
    def comparisons(self) -> list[tuple[Entry, Entry, Difference]]:
        """The comparisons, with p-values adjusted for their number.

        With a baseline, every entry is compared with it; otherwise every pair of the
        best entries, the better one first. Entries with one seed or with a diverged
        seed are not compared, because they have no valid interval.
        """
        able = [e for e in self.entries if len(e.accuracies) > 1 and not e.diverged]
        pairs = list(itertools.combinations([e for e in able if e in self.best], 2))
        if self.baseline is not None:
            others = [entry for entry in able if entry is not self.baseline]
            pairs = [(e, self.baseline) for e in others if self.baseline in able]
        found = [
            compare(first.accuracies, second.accuracies, (first.right, second.right))
            for first, second in pairs
        ]
        adjusted = holm([one for one in found if one is not None])
        return [(*pair, one) for pair, one in zip(pairs, adjusted, strict=True)]

    @functools.cached_property
    def differing(self) -> list[str]:
        """Settings that differ between the shown entries."""
        return differing([entry.first.used for entry in self.shown])


def read_studies(
    folder: pathlib.Path,
    baseline: str | None = None,
    compared: Sequence[str] = (),
) -> tuple[list[Study], list[str]]:
    """Reads the studies of all finished runs below a folder, the largest first.

    Args:
      folder: folder that holds the runs, at any depth.
      baseline: name of the entry with which the others of its study are compared. All
        entries of that study are ranked.
      compared: settings whose values are compared besides the models. The default is
        none, or, in a study of one model, all that differ except the rate.

    Returns:
      The studies, and a line with the reason for each run that is left out.

    Raises:
      UserError: there is no such folder, it holds no finished run, or there is no such
        entry or setting.
    """
    runs, left_out = read_runs(folder)
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(repr(_study_key(run)), []).append(run)
    made = [
        (key, group, _make_entries(group, left_out)) for key, group in groups.items()
    ]
    _check_names(made, baseline, compared)
    studies = [
        _make_study(key, group[0], entries, baseline, compared)
        for key, group, entries in made
    ]
    return sorted(studies, key=lambda study: -len(study.entries)), left_out


def _check_names(
    made: list[tuple[str, list[RunRecord], list[Entry]]],
    baseline: str | None,
    compared: Sequence[str],
) -> None:
    """Raises a UserError if the baseline or a compared setting does not exist."""
    names = [entry.name for _, _, entries in made for entry in entries]
    if baseline is not None and baseline not in names:
        near = difflib.get_close_matches(baseline, names, n=3, cutoff=0)
        shown = ", ".join(one_line(repr(word), 100) for word in near)
        raise UserError(
            f"--baseline={one_line(baseline, 100)}: none of the {len(names)} "
            f"configurations has this name; the nearest are {shown}"
        )
    known = {
        name
        for _, _, entries in made
        for name in differing([entry.first.settings for entry in entries])
    }
    for name in compared:
        if name not in known:
            those = ", ".join(sorted(known)) or "none"
            raise UserError(
                f"--compare={one_line(name, 100)}: no setting that differs between "
                f"these runs has this name; those that differ: {those}"
            )


def _study_key(run: RunRecord) -> tuple:
    data = run.config.dataset
    sizes = ("train_size", "val_size", "test_size")
    return (
        *(getattr(data, n) for n in ("name", "fingerprint", "class_names", *sizes)),
        run.labels_sha256,
        run.config.versions.get("cifar-flax"),
    )


def _make_entries(runs: list[RunRecord], left_out: list[str]) -> list[Entry]:
    configurations: dict[str, list[RunRecord]] = {}
    for run in runs:
        key = configuration_of(run.config, str(run.folder))
        configurations.setdefault(key, []).append(run)
    parts = [part for group in configurations.values() for part in _parts(group)]
    kept = [_without_repeats(part, left_out) for part in parts]
    groups = [group for group in kept if group]
    names = _names([group[0] for group in groups])
    return [Entry(*pair) for pair in zip(names, groups, strict=True)]


def _claims(runs: list[RunRecord]) -> dict[int, list[tuple[RunRecord, int]]]:
    """Returns the runs that hold each seed, with its index in the run."""
    found: dict[int, list[tuple[RunRecord, int]]] = {}
    for run in runs:
        for index, seed in enumerate(run.result.seeds):
            found.setdefault(seed, []).append((run, index))
    return found


def _parts(runs: list[RunRecord]) -> list[list[RunRecord]]:
    """Divides a configuration by versions and machine if these change a seed's result.

    Seeds of several machines are otherwise one entry: their results differ only as
    those of other seeds do.
    """
    by_bits: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_bits.setdefault(repr(sorted(bits_of(run.config).items())), []).append(run)
    repeated = [claims for claims in _claims(runs).values() if len(claims) > 1]
    changed = any(len({run.outcome(i) for run, i in claims}) > 1 for claims in repeated)
    return list(by_bits.values()) if changed else [runs]


def _without_repeats(runs: list[RunRecord], left_out: list[str]) -> list[RunRecord]:
    """Keeps each seed once, and no seed for which two runs have different results."""
    kept: dict[int, list[int]] = {id(run): [] for run in runs}
    repeated: dict[int, list[tuple[int, RunRecord]]] = {}
    for seed, claims in _claims(runs).items():
        first, index = claims[0]
        if len({run.outcome(i) for run, i in claims}) > 1:
            folders = " and ".join(str(run.folder) for run, _ in claims)
            left_out.append(
                f"{folders} have different results for seed {seed} of the same "
                "configuration, so none of them is used"
            )
            continue
        kept[id(first)].append(index)
        for run, _ in claims[1:]:
            repeated.setdefault(id(run), []).append((seed, first))
    for run in runs:
        if not kept[id(run)] and (twice := repeated.get(id(run))):
            seeds = ", ".join(str(seed) for seed, _ in twice)
            left_out.append(
                f"{run.folder} repeats seed {seeds} of {twice[0][1].folder}"
            )
    return [
        dataclasses.replace(run, replicas=tuple(kept[id(run)]))
        for run in runs
        if kept[id(run)]
    ]


def _make_study(
    key: str,
    run: RunRecord,
    entries: list[Entry],
    baseline: str | None,
    compared: Sequence[str],
) -> Study:
    by_name = {entry.name: entry for entry in entries}
    base = None if baseline is None else by_name.get(baseline)
    told_apart = tuple(compared) or _compared_by_default(entries)
    ranked = entries if base is not None else _chosen(entries, told_apart)
    kept = set(map(id, ranked))
    return Study(
        dataset=run.config.dataset,
        version=run.config.versions.get("cifar-flax", "of no known version"),
        key=key,
        entries=sorted(ranked, key=_rank),
        apart=sorted((e for e in entries if id(e) not in kept), key=_rank),
        compared=told_apart,
        baseline=base,
    )


def _rank(entry: Entry) -> tuple[bool, float]:
    return bool(entry.diverged), -np.nan_to_num(entry.mean)


def _compared_by_default(entries: list[Entry]) -> tuple[str, ...]:
    names = differing([entry.first.settings for entry in entries])
    if set(names) & set(OF_MODEL):
        return ()
    return tuple(name for name in names if name != "lr")


def _chosen(entries: list[Entry], compared: Sequence[str]) -> list[Entry]:
    """Chooses the best entry of each group on the validation split.

    Without a validation split, all entries are ranked.
    """
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        names = (*OF_MODEL, *compared)
        values = [entry.first.settings.get(name) for name in names]
        key = repr([*values, custom_model_of(entry.first.config)])
        groups.setdefault(key, []).append(entry)
    chosen = []
    for group in groups.values():
        if any(entry.validation is None and entry.accuracies for entry in group):
            chosen += group
            continue
        chosen.append(
            min(
                group,
                key=lambda e: (len(e.diverged) / len(e.seeds), -(e.validation or 0)),
            )
        )
    return chosen


def _names(runs: list[RunRecord]) -> list[str]:
    """Names runs by the model and the settings that differ between its runs."""
    by_model: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_model.setdefault(run.result.model, []).append(run.settings)
    varied = {model: set(differing(those)) for model, those in by_model.items()}

    def name_of(run: RunRecord, values: dict[str, Any]) -> str:
        model = run.result.model
        words = [f"{n}={value}" for n, value in values.items() if n in varied[model]]
        return " ".join([model, *words])

    names = [name_of(run, run.used) for run in runs]
    if len(set(names)) < len(names):
        # Two settings may have the same effect, such as a rate and the recipe's own.
        names = [name_of(run, run.settings) for run in runs]
    return _told_apart(names, runs)


def _told_apart(names: list[str], runs: list[RunRecord]) -> list[str]:
    """Adds to equal names what the contents of their runs differ in."""
    told = list(names)
    for name in {name for name in names if names.count(name) > 1}:
        same = [number for number, other in enumerate(names) if other == name]
        first = runs[same[0]].config
        pairs = [differing_parts(runs[number].config, first) for number in same]
        parts = dict.fromkeys(itertools.chain(*pairs))
        for number in same:
            mine = parts_of(runs[number].config)
            words = [f"{part}={mine.get(part)}" for part in parts]
            if len(words) > MOST_PARTS:  # a caution names all of them
                words = [*words[:MOST_PARTS], f"recipe_code={mine['recipe_code']}"]
            told[number] = " ".join([name, *words])
        if len({told[number] for number in same}) < len(same):
            for number in same:
                told[number] += f" of {runs[number].folder.name}"
    return told


def differing(every: list[dict[str, Any]]) -> list[str]:
    """Returns the settings that differ between several groups of settings."""
    return [
        name
        for name in dict.fromkeys(itertools.chain(*every))
        if any(settings.get(name) != every[0].get(name) for settings in every)
    ]
