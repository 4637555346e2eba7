"""From the settings to a trainer, and to a folder that says what runs in it."""

import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from cifar_flax import records
from cifar_flax.data import Dataset, load_dataset, split_dataset
from cifar_flax.errors import UserError
from cifar_flax.fields import TEXT, check
from cifar_flax.loop import Trainer
from cifar_flax.models import has_norm, make_model
from cifar_flax.recipes import Recipe
from experiments import cli, config
from experiments.environment import describe_environment


def load_data(settings: config.Config) -> Dataset:
    """The data set that the settings name."""
    return load_dataset(
        settings.dataset,
        data_dir=settings.data_dir,
        archive=settings.data_archive,
        archive_sha256=settings.archive_sha256,
    )


def make_trainer(
    settings: config.Config, dataset: Dataset, found_lr: float | None = None
) -> Trainer:
    """The trainer that the settings describe.

    Args:
      settings: of the run.
      dataset: not yet divided.
      found_lr: what ``--lr=auto`` found; see ``Config.make_recipe``.
    """
    if not has_norm(settings.model) and settings.changes(
        "bn_momentum", "bn_epsilon", "bn_freeze"
    ):
        cli.logger.warning(
            "%s has no batch norm: its settings have no effect", settings.model
        )
    return Trainer(
        make_model(
            settings.model,
            dataset.num_classes,
            dtype=settings.dtype,
            bn_momentum=settings.bn_momentum,
            bn_epsilon=settings.bn_epsilon,
            bn_freeze=settings.bn_freeze,
        ),
        split_dataset(dataset, settings.val_size, settings.train_size),
        settings.make_recipe(found_lr),
        settings.seeds,
        augmentation=settings.augmentation,
    )


def make_record(
    settings: config.Config, trainer: Trainer, dataset: Dataset, command: str = "run"
) -> dict[str, Any]:
    """What ``config.json`` holds.

    Args:
      settings: of the run.
      trainer: made of them.
      dataset: not yet divided.
      command: that makes the record, a module of this package.
    """
    splits = trainer.splits
    return {
        "kind": command,
        "settings": dataclasses.asdict(settings),
        # With --lr=auto the rates come later.
        "recipe": None
        if settings.lr == config.AUTO
        else describe_recipe(trainer.recipe),
        "dataset": {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "source": dataset.source,
            "class_names": dataset.class_names,
            "image_shape": splits.train.images.shape[1:],
            "mean": splits.mean,
            "std": splits.std,
            "train_size": len(splits.train),
            "val_size": len(splits.val) if splits.val else 0,
            "test_size": len(splits.test),
        },
        **describe_environment(),
        "command": ["python", "-m", f"experiments.{command}", *sys.argv[1:]],
    }


def describe_recipe(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON: its fields, and the kind of each phase."""
    phases = [
        {"kind": type(phase).__name__.lower(), **dataclasses.asdict(phase)}
        for phase in recipe.phases
    ]
    return {**dataclasses.asdict(recipe), "phases": phases}


def open_folder(settings: config.Config, record: dict[str, Any]) -> pathlib.Path:
    """The run's folder with its ``config.json``: a new one, or one to go on in.

    Raises:
      UserError: the folder is in use, cannot be made, or holds another run.
    """
    if settings.workdir is None:
        what = "" if record["kind"] == "run" else f"{record['kind']}-"
        stem = f"{what}{settings.model}-{record['dataset']['name']}"
        folder = records.new_folder(pathlib.Path("runs"), stem)
    else:
        folder = pathlib.Path(settings.workdir)
    records.lock_folder(folder)
    if settings.resume:
        check_same_run(settings, record, records.read_config(folder), folder)
        return folder
    records.claim_folder(folder)
    records.write_config(folder, record)
    return folder


def check_same_run(
    settings: config.Config,
    record: dict[str, Any],
    recorded: dict[str, Any],
    folder: pathlib.Path,
) -> None:
    """Refuses to go on with a run that was another one."""
    where, kind = str(folder / records.CONFIG), recorded.get("kind", "run")
    check(kind, TEXT, where)
    if kind != record["kind"]:
        raise UserError(
            f"{folder} holds the outcome of {kind} and no run to go on with; give "
            "another folder"
        )
    known = dict.fromkeys(("name", "source", "fingerprint"), TEXT)
    check(recorded, {"settings": {}, "dataset": known, "versions": {}}, where)
    different = []
    was, now = recorded["dataset"], record["dataset"]
    if was["fingerprint"] != now["fingerprint"]:
        different.append(
            f"the data set was {was['name']} ({was['source']}) and is {now['name']} "
            f"({now['source']})"
        )
    check_same_settings(settings, recorded, folder, different)
    for name, version in record["versions"].items():
        if recorded["versions"].get(name) != version:
            cli.logger.warning(
                "%s was %s and is %s: the rest of the run may round differently",
                name,
                recorded["versions"].get(name),
                version,
            )


def check_same_settings(
    settings: config.Config,
    recorded: dict[str, Any],
    folder: pathlib.Path,
    other: Sequence[str] = (),
) -> None:
    """Refuses settings that a run did not have.

    Args:
      settings: asked for.
      recorded: the run's ``config.json``.
      folder: of the run.
      other: what differs beside the settings.
    """
    different = [*settings.differences(recorded["settings"]), *other]
    if different:
        raise UserError(
            f"{folder} holds another run: {'; '.join(different)}; drop these flags, or "
            "give another --workdir"
        )
