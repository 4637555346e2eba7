"""What a run trains: settings, and the model, recipe and data that they stand for."""

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from cifar_flax import records
from cifar_flax.analysis.metrics import Function, Metric, check_metric
from cifar_flax.data import Dataset, DataSpec, Split, Splits, split_dataset
from cifar_flax.data.cifar import CIFARS
from cifar_flax.data.labelled import Labelled, Like, load_labelled
from cifar_flax.data.own import is_own as is_own_data
from cifar_flax.errors import UserError, one_line
from cifar_flax.models import has_norm
from cifar_flax.models.calling import fields_in_words
from cifar_flax.models.program import Program, shapes_of
from cifar_flax.own_code import (
    OwnCode,
    Source,
    is_own,
    label_of,
    load_code,
    source_of,
)
from cifar_flax.runs.data_record import describe_data
from cifar_flax.runs.environment import describe_environment, describe_source
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.inference import Run
from cifar_flax.runs.origin import Start, first_start, load_origin
from cifar_flax.runs.own_metrics import load_metrics
from cifar_flax.runs.recipe_choice import AUTO, OF_RECIPE
from cifar_flax.runs.settings import OF_MODEL, Settings, check_test_name
from cifar_flax.training import processes
from cifar_flax.training.arguments import check_split
from cifar_flax.training.named_recipes import own_name, recipe_for
from cifar_flax.training.placement import make_mesh
from cifar_flax.training.recipe_files import to_plain
from cifar_flax.training.recipe_identity import identify
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer, check_recipe

# Points of the schedule in the record, enough to draw it.
SCHEDULE_POINTS = 1_000

_NAME = re.compile(r"\w[\w./-]{0,999}")  # as ``records.Result`` reads it

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """Settings, model, recipe and data; made by ``prepare``.

    Attributes:
      settings: of the run.
      model: the model that a program gave; None for that of the settings.
      recipe: the recipe that a program gave; None for that of the settings.
      dataset: the data set.
      splits: the splits of the data set.
      source: the code of a custom model, if the settings name it; see also ``code``.
      also_test: further labelled images to evaluate on, by their name.
      metrics: to evaluate by, besides loss and accuracy.
      own_metrics: the code of those that are not named ones.
      devices: number of devices, see ``placement.make_mesh``.
      mesh: shape of the mesh, see there.
    """

    settings: Settings
    model: nn.Module | None
    recipe: Recipe | None
    dataset: Dataset
    splits: Splits
    source: Source | None
    also_test: Mapping[str, Labelled] = dataclasses.field(default_factory=dict)
    metrics: Sequence[Metric] = ()
    own_metrics: Sequence[OwnCode] = ()
    devices: int | None = None
    mesh: Mapping[str, int] | None = None

    @classmethod
    def prepare(
        cls,
        settings: Settings,
        model: nn.Module | None = None,
        recipe: Recipe | None = None,
        dataset: Dataset | None = None,
        *,
        devices: int | None = None,
        mesh: Mapping[str, int] | None = None,
        needs_schedule: bool = True,
        also_test: Mapping[str, Split] | None = None,
        metrics: Sequence[Function] = (),
    ) -> "Subject":
        """Checks that the arguments do not contradict each other, and loads the data.

        Args:
          settings: of the run.
          model: replaces the model of the settings.
          recipe: replaces the recipe of the settings.
          dataset: replaces the data set of the settings.
          devices: number of devices.
          mesh: shape of the mesh.
          needs_schedule: False for a range test, which has its own rates.
          also_test: further labelled images, besides those of the settings.
          metrics: functions besides those of the settings.

        Raises:
          UserError: the arguments contradict each other, or the data cannot be loaded.
        """
        if not isinstance(settings, Settings):
            kind = type(settings).__name__
            raise UserError(f"the settings are a {kind}; give cifar_flax.Settings(...)")
        if dataset is not None and not isinstance(dataset, Dataset):
            kind = type(dataset).__name__
            raise UserError(f"the dataset is a {kind}; make_dataset makes one")
        changed = settings.changed()
        if model is not None:
            _refuse_both(changed, OF_MODEL, "model")
        else:
            _check_model(settings, changed)
        if recipe is not None:
            _refuse_both(changed, (*OF_RECIPE, "continue_from"), "recipe")
        if dataset is None:
            dataset = settings.load_data()
        elif not _gives(settings.dataset, dataset.name):
            _refuse_both(changed, ("dataset",), "dataset")
        splits = _split(settings, dataset)
        is_named = model is None and is_own(settings.model)
        source = source_of(settings.model) if is_named else None
        given = (settings, model, recipe, dataset, splits, source)
        if needs_schedule:  # a range test evaluates nothing
            further = _also_test(settings, also_test or {}, dataset, splits.spec)
            named, own = load_metrics([*(settings.metrics or ()), *metrics])
            for metric in named:
                check_metric(metric, splits.test.labels, splits.num_classes)
            subject = cls(*given, further, named, own, devices, mesh)
        else:
            subject = cls(*given, devices=devices, mesh=mesh)
        if not _NAME.fullmatch(subject.name):
            raise UserError(
                f"the model is called {one_line(repr(subject.name), 60)}; a record "
                "needs a name of letters, digits and _ . / -"
            )
        if is_named:
            _ = subject.net  # made before the file may change again
        if needs_schedule and not subject.has_schedule:
            is_ours = model is None and not is_named
            who = settings.model if is_ours else "your own model"
            raise UserError(
                f"{who} has no default recipe; give --recipe=modern or a file "
                "(in Python recipe=), or --lr with --epochs or --cycles"
            )
        _ = subject.code  # loaded before its file may change again
        return subject

    @property
    def name(self) -> str:
        """Name of the model."""
        if self.model is None:
            return self.settings.model_label
        return type(self.model).__name__

    @property
    def has_schedule(self) -> bool:
        """Whether the length of training is known; a custom model may lack a recipe."""
        settings = self.settings
        length = settings.epochs is not None or settings.cycles is not None
        by_rate = length and settings.lr is not None
        model = settings.model if self.model is None else ""
        name = settings.recipe or own_name(model)
        named = name != "lesson" or recipe_for(name, model) is not None
        return by_rate or named or self.recipe is not None

    @property
    def finds_rate(self) -> bool:
        """Whether a range test finds the rate."""
        return self.settings.lr == AUTO

    @functools.cached_property
    def net(self) -> nn.Module:
        """The model; it is made once, so that what is recorded is what is trained."""
        if self.model is not None:
            return self.model
        return self.settings.make_model(self.splits.num_classes)

    @functools.cached_property
    def origin(self) -> Run | None:
        """The run from which this one starts; None if it starts anew.

        Raises:
          UserError: there is no such run, or it has trained another model.
        """
        return load_origin(self.settings, self.model)

    @property
    def unit_recipe(self) -> Recipe | None:
        """The recipe with a rate of 1, if each seed has its own rate; else None."""
        varies = self.settings.varies("rate") and self.recipe is None
        return self._recipe(1.0) if varies else None

    def _recipe(self, found_lr: float | None = None) -> Recipe:
        """Returns the recipe with its own code loaded."""
        recipe, of_ours = self.recipe, self.model is None
        if recipe is None:
            recipe = self.settings.make_recipe(found_lr, of_ours=of_ours)
        return recipe.with_code(self.code) if self.code else recipe

    @functools.cached_property
    def code(self) -> dict[str, OwnCode]:
        """Own code besides the model, by the name of its flag; it is loaded once."""
        recipe = self.recipe or self.settings.make_recipe(of_ours=self.model is None)
        named = recipe.code() if isinstance(recipe, Recipe) else {}
        return {name: load_code(value, name) for name, value in named.items()}

    def make_trainer(
        self, found_lr: float | None = None, seeds: tuple[int, ...] | None = None
    ) -> Trainer:
        """Makes the trainer.

        Args:
          found_lr: the rate that ``--lr=auto`` found; see ``Settings.make_recipe``.
          seeds: replace those of the settings.
        """
        settings, recipe = self.settings, self._recipe(found_lr)
        check_recipe(recipe, self.splits.spec)
        seeds = seeds or settings.seeds
        mesh = make_mesh(len(seeds), recipe.batch_size, self.devices, self.mesh)
        return Trainer(
            self.net,
            recipe,
            self.splits.spec,
            seeds,
            lowering=settings.lowering,
            mesh=None if mesh.size == 1 else mesh,
        )

    def first_start(self, trainer: Trainer, config: records.Config) -> Start:
        """Returns where the run begins; see ``origin.first_start``."""
        return first_start(
            trainer, self.settings, self.origin, config, self.splits.train
        )

    def identity(self, program: Program, needs_origin: bool) -> records.Identity:
        """Returns what decides the numbers, without the recipe."""
        start = None
        try:
            start = None if self.origin is None else self.origin.sha256
        except UserError:  # a run goes on after the run that it started from is gone
            if needs_origin:
                raise
        return records.Identity(
            model=program.sha256, start=start, unknown=program.unknown
        )

    def config(
        self, kind: str, trainer: Trainer, *flags: str, resume: bool = False
    ) -> records.Config:
        """Returns the content of ``config.json``.

        Args:
          kind: ``run`` or ``lr_find``.
          trainer: of the run.
          *flags: flags of the command besides the settings.
          resume: whether it is for a run that has begun.
        """
        source = self.source
        command = ["python", "-m", f"experiments.{kind}", *self.settings.as_flags()]
        settings = self.settings
        by_command = self.model is None and self.recipe is None and self._loads_data
        by_command &= len(self.also_test) == len(settings.also_test or {})
        by_command &= len(self.metrics) == len(settings.metrics or ())
        # Our kernels keep the order of every sum; other code may not.
        is_native = trainer.lowering == "native" and self.settings.dtype == "float32"
        any_cores = is_native and self.model is None and self.source is None
        any_cores = any_cores and not self.code
        config = records.Config(
            kind=kind,
            settings=self._settings_record(),
            recipe=None,
            dataset=describe_data(self.dataset, self.splits),
            model_source=None if source is None else describe_source(source),
            sources={n: describe_source(code.source) for n, code in self.code.items()}
            | {
                f"metrics.{label_of(own.name)}": describe_source(own.source)
                for own in self.own_metrics
            },
            identity=self.identity(trainer.program, needs_origin=not resume),
            num_params=sum(row.num_params for row in trainer.layers),
            flops_per_image=sum(row.flops for row in trainer.layers),
            command=[*command, *flags] if by_command else [],
            **describe_environment(
                trainer.lowering, trainer.placement, any_cores=any_cores
            ),
        )
        # With --lr=auto the rates are not known yet.
        known = self.has_schedule and not self.finds_rate
        return with_recipe(config, trainer) if known else config

    @property
    def _loads_data(self) -> bool:
        """Whether the settings alone load these data, judged by the names."""
        given, found = self.settings.dataset, self.dataset.name
        if given == "auto":
            return found in (*CIFARS, "shapes")
        return _gives(given, found)

    def _settings_record(self) -> dict[str, records.Setting]:
        """Returns the settings, with what is known of a program's model and recipe."""
        record = self.settings.record(self.dataset.has_validation)
        if self.model is not None:
            record |= dict.fromkeys(OF_MODEL)
            record |= {"model": self.name, "model_fields": fields_in_words(self.model)}
        if self.recipe is not None:
            record["recipe"] = f"{self.recipe}; {self.recipe.optimizer_in_words}"
            record["tta"] = self.recipe.tta
        if self.metrics:
            named = self.settings.metrics or ()
            given = [metric.name for metric in self.metrics[len(named) :]]
            record["metrics"] = [*named, *given]
        if not self._loads_data:
            record["dataset"] = self.dataset.name
        return record


def with_recipe(
    config: records.Config, trainer: Trainer, recipe: Recipe | None = None
) -> records.Config:
    """Adds the recipe and the schedule of a trainer to a record.

    Args:
      config: the record.
      trainer: of the run.
      recipe: identifies the recipe if each seed has its own rate; see
        ``Subject.unit_recipe``.
    """
    total, per_epoch = trainer.total_steps, trainer.steps_per_epoch
    steps = np.linspace(0, total - 1, min(total, SCHEDULE_POINTS)).astype(np.int32)
    rates = jax.jit(jax.vmap(trainer.schedule))(steps)
    config.recipe = to_plain(trainer.recipe)
    if config.identity is not None:  # an older run goes on without one
        program = trainer.recipe_program
        if recipe is not None:
            variables = shapes_of(trainer.model, trainer.spec.image_shape)
            program = identify(recipe, per_epoch, variables, trainer.spec)
        config.identity.recipe = program.sha256
        config.identity.unknown = config.identity.unknown or program.unknown
    config.schedule = records.Schedule(
        epochs=[float(f"{step / per_epoch:.6g}") for step in steps],
        rates=[float(f"{rate:.6g}") for rate in np.asarray(rates, np.float64)],
    )
    return config


def _split(settings: Settings, dataset: Dataset) -> Splits:
    """Splits the data as the settings say."""
    if settings.split_seed is not None and dataset.has_validation:
        raise UserError(
            f"--seeds_vary={as_text(settings.seeds_vary)}: {dataset.name} has its "
            "own validation images, so the split cannot vary"
        )
    return split_dataset(
        dataset, settings.val_size, settings.train_size, settings.split_seed
    )


def _gives(given: str, found: str) -> bool:
    """Returns whether the name that was given may mean the data set that was found."""
    names = ("auto", found)
    return given in names or given.replace("/", "_") in names or is_own_data(given)


def _also_test(
    settings: Settings, given: Mapping[str, Split], dataset: Dataset, spec: DataSpec
) -> dict[str, Labelled]:
    """Returns the further test images of settings, and those that a program gives."""
    like = Like(dataset.class_names, spec.image_shape, dataset.reading.white)
    named = settings.also_test or {}
    found = {}
    for name, split in given.items():
        check_test_name(name)
        if name in named:
            raise UserError(f"also_test has {name!r} twice; give one of them")
        check_split(f"also_test {name!r}", split, spec)
        found[name] = Labelled.of(split, "a program")
    for name, place in named.items():
        try:
            found[name] = processes.in_turn(
                functools.partial(
                    load_labelled, place, like, data_dir=settings.data_dir
                )
            )
        except UserError as error:
            raise UserError(f"--also_test: the images {name!r}: {error}") from error
    return found


def _check_model(settings: Settings, changed: Mapping[str, Any]) -> None:
    """Warns of settings without effect; raises a UserError if code cannot be loaded."""
    if is_own(settings.model):
        source_of(settings.model)
    elif not has_norm(settings.model) and changed.keys() & set(OF_MODEL[3:]):
        logger.warning(
            "%s has no batch norm: its settings have no effect", settings.model
        )
    elif settings.bn_freeze and settings.init_from is None:
        logger.warning(
            "--bn_freeze: the running statistics of an untrained network are 0 and 1, "
            "and will not change"
        )


def _refuse_both(changed: dict[str, Any], names: tuple[str, ...], given: str) -> None:
    """Raises a UserError if both a setting and an argument are given."""
    if both := [name for name in names if name in changed]:
        value = as_text(changed[both[0]])
        raise UserError(
            f"--{both[0]}={value} and {given}= contradict each other; give one of them"
        )
