"""Trains a run again with fresh seeds, and says whether the results agree."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from cifar_flax import records
from cifar_flax.analysis.statistics import prediction_interval
from cifar_flax.errors import UserError
from cifar_flax.identity import differing_parts, parts_of
from cifar_flax.runs.recorded_settings import SETTINGS, differences
from cifar_flax.runs.settings import Settings
from cifar_flax.training.arguments import fresh_seeds

# Settings of the machine, which are those of the one that repeats the run.
_HERE = {*records.PLACES, "lowering"}


@dataclasses.dataclass(frozen=True)
class Replication:
    """The accuracies of a run and of its repetition with other seeds.

    Attributes:
      before: test accuracy of each seed of the run that has not diverged.
      now: of each seed of the repetition.
      interval: 95 % prediction interval of the repetition's mean; None if the run has
        fewer than two seeds.
      differences: what else than the seeds differs, in words.
    """

    before: list[float]
    now: list[float]
    interval: tuple[float, float] | None
    differences: list[str]

    @property
    def agrees(self) -> bool | None:
        """Whether the new mean lies in the interval; None if there is none."""
        if self.interval is None or not self.now:
            return None
        low, high = self.interval
        return low <= sum(self.now) / len(self.now) <= high


def settings_to_repeat(folder: pathlib.Path, given: Mapping[str, Any]) -> Settings:
    """Returns the settings that train a run again.

    They are those of its record, with as many fresh seeds. Folders of data, and the
    implementation of convolutions, are not taken over: they belong to the machine.

    Args:
      folder: of the finished run.
      given: settings that replace those of the record.

    Raises:
      UserError: there is no finished run, or ``given`` has one of its seeds.
    """
    where = f"--replicate={folder}"
    _finished(folder, where)
    recorded = Settings.of_run(folder, given)
    if recorded.continue_from is not None:
        raise UserError(
            f"{where}: that run continues {recorded.continue_from}, whose seeds it "
            "keeps; replicate that one"
        )
    fresh = fresh_seeds(recorded.seeds, len(recorded.seeds))
    seeds = given.get("seeds") or fresh
    if again := sorted({*seeds} & {*recorded.seeds}):
        raise UserError(
            f"{where}: seed {again[0]} is one of that run and gives its result again; "
            f"give others, such as --seeds={fresh[0]}"
        )
    here = {name: SETTINGS[name].default for name in _HERE}
    return recorded.with_given({**here, **given, "seeds": seeds})


def compare_repetition(folder: pathlib.Path, again: pathlib.Path) -> Replication:
    """Compares a run with its repetition.

    Args:
      folder: of the run.
      again: folder of the repetition.

    Raises:
      UserError: one of them is not finished.
    """
    (before, old), (now, new) = (_finished(one, str(one)) for one in (folder, again))
    accuracies, fresh = (
        [found for found in result.test_accuracy if found is not None]
        for result in (old, new)
    )
    interval = prediction_interval(accuracies, len(fresh), before.dataset.test_size)
    return Replication(accuracies, fresh, interval, _differences(now, before))


def _finished(
    folder: pathlib.Path, where: str
) -> tuple[records.Config, records.Result]:
    config, result = records.read_config(folder), records.read_result(folder)
    if result is None:
        raise UserError(f"{where}: that run is not finished")
    return config, result


def _differences(now: records.Config, before: records.Config) -> list[str]:
    """Describes what differs between two runs, except seeds and places."""
    names = ("seeds", "lowering")
    ours, theirs = (
        {n: value for n, value in one.settings.items() if n not in names}
        for one in (now, before)
    )
    found = differences(ours, theirs)
    if now.dataset.fingerprint != before.dataset.fingerprint:
        found.append(f"the data was {_content(before)} and is {_content(now)}")
    ours, theirs = parts_of(now), parts_of(before)
    ours["device"], theirs["device"] = now.device, before.device
    for name in [*differing_parts(now, before), "device"]:
        if ours.get(name) != theirs.get(name):
            found.append(f"{name} was {theirs.get(name)} and is {ours.get(name)}")
    return found


def _content(config: records.Config) -> str:
    return f"{config.dataset.source} (content {config.dataset.fingerprint[:8]})"
