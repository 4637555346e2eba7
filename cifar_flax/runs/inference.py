"""Loads a run and predicts with it."""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Sequence
from typing import Any, get_args

import flax.linen as nn
import jax
import numpy as np
from scipy.special import softmax

from cifar_flax import records
from cifar_flax.analysis.metrics import Function, check_metric
from cifar_flax.data import DataSpec, Split
from cifar_flax.data.augment import Tta
from cifar_flax.data.labelled import Labelled, Like, load_labelled
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user
from cifar_flax.identity import Model, model_differs, model_of, run_of
from cifar_flax.jax_settings import known_settings
from cifar_flax.models import MODELS
from cifar_flax.models.calling import fields_in_words
from cifar_flax.models.check import check_model
from cifar_flax.models.own import make_own
from cifar_flax.models.program import program_of
from cifar_flax.own_code import is_own, source_of
from cifar_flax.runs.checkpoint import open_checkpoints
from cifar_flax.runs.environment import describe_source, package_versions
from cifar_flax.runs.own_metrics import load_metrics
from cifar_flax.runs.settings import OF_MODEL, Settings
from cifar_flax.training.arguments import check_split
from cifar_flax.training.evaluation import Evaluation, Predictor, evaluate

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run's model with its trained variables.

    Attributes:
      model: the module; ``model.apply(variables, images, train=False)`` takes the
        variables of one replica and normalised images.
      variables: of R replicas; every array has a leading axis of length R. A seed that
        has diverged is left out.
      seeds: of the replicas.
      class_names: names in the order of the logits.
      image_shape: (H, W, C) of the training images.
      mean: mean of the training pixels / 255, per channel.
      std: standard deviation of the training pixels / 255, per channel.
      step: of the checkpoint.
      white: value of the source that is white; see ``data.values.Reading``.
      tta: test-time augmentation of the run; see ``augment.views``.
      model_name: name in the record, without the path of the code.
    """

    model: nn.Module
    variables: dict[str, Any]
    seeds: tuple[int, ...]
    class_names: list[str]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step: int
    tta: Tta = "none"
    model_name: str = ""
    white: float | None = None

    @classmethod
    @known_settings()
    def load(
        cls,
        folder: str | pathlib.Path,
        best: bool = False,
        model: nn.Module | str | None = None,
    ) -> "Run":
        """Reads a run from its folder.

        Args:
          folder: of the run.
          best: whether to take the checkpoint with the best validation accuracy instead
            of the latest; see ``checkpoint``.
          model: the module of a run with a custom model, or its name as given to
            ``--model``. A record never runs code by itself.

        Raises:
          UserError: the folder has no run or a damaged one, no checkpoint is valid,
            every seed has diverged, or the model is missing or wrong.
        """
        folder = expand_user(folder)
        config = records.read_config(folder)
        where, data = str(folder / records.CONFIG), config.dataset
        seeds = config.settings["seeds"]
        assert isinstance(seeds, list)  # reading has checked it
        replicas = tuple(int(str(seed)) for seed in seeds)
        module = _model_of(config, where, model)
        try:
            _, shapes = check_model(module, data.image_shape, len(data.class_names))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if model is not None:
            _check_same_model(config, where, module, model)
        path = folder / records.CHECKPOINTS
        if not path.is_dir():
            raise UserError(f"{folder} has no checkpoint; it holds no training")
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(replicas), *leaf.shape), leaf.dtype),
            shapes,
        )
        with open_checkpoints(path, owner=False, run=run_of(config)) as checkpoints:
            step = checkpoints.best_step if best else None
            if best and step is None:
                raise UserError(f"no checkpoint in {path} has a validation accuracy")
            variables, step = checkpoints.restore_variables(template, step)
            lost = checkpoints.lost(step)
        counting = _counting(folder, replicas, step, lost)
        if len(counting) < len(replicas):
            variables = jax.tree.map(lambda leaf: leaf[np.array(counting)], variables)
        return cls(
            model=module,
            variables=variables,
            seeds=tuple(replicas[index] for index in counting),
            class_names=data.class_names,
            image_shape=data.image_shape,
            mean=tuple(data.mean),
            std=tuple(data.std),
            step=step,
            tta=_tta_of(config),
            model_name=config.model,
            white=data.white,
        )

    def __repr__(self) -> str:
        name, sizes = type(self.model).__name__, " x ".join(map(str, self.image_shape))
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"Run({name}, {len(self.class_names)} classes, images {sizes}, "
            f"seeds {seeds}, step {self.step})"
        )

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Computes class probabilities with each replica.

        Args:
          images: uint8 [N, H, W, C].

        Returns:
          float32 [R, N, K].

        Raises:
          UserError: there are no images, or their dtype, size or number of channels is
            not that of the training images.
        """
        logits = self.predictor(self.variables, images)
        with np.errstate(invalid="ignore"):  # an infinite logit gives NaN
            return softmax(logits, axis=-1)

    @known_settings()
    def evaluate(
        self, split: Split, metrics: Sequence[str | Function] = ()
    ) -> Evaluation:
        """Computes loss, accuracy and other metrics of each replica.

        Args:
          split: images as for ``predict``, with labels that are classes of the run;
            ``load_labelled`` loads some by name.
          metrics: names, places and functions; see ``analysis.metrics``.

        Raises:
          UserError: the images or the labels do not fit.
        """
        check_split("split to evaluate", split, self.spec)
        wanted, _ = load_metrics(metrics)
        for metric in wanted:
            check_metric(metric, split.labels, len(self.class_names))
        return evaluate(self.predictor, self.variables, split, wanted)

    @known_settings()
    def load_labelled(
        self,
        name: str,
        *,
        data_dir: str | pathlib.Path | None = None,
        archive: str | pathlib.Path | None = None,
        archive_sha256: str | None = None,
    ) -> Labelled:
        """Loads labelled images for ``evaluate``; see ``data.labelled``.

        Args:
          name: such as ``npz:PATH``, ``folder:PATH`` or ``cifar10``.
          data_dir: see ``load_dataset``, also for the arguments below.
          archive: an archive of CIFAR-10 or CIFAR-100.
          archive_sha256: its checksum.

        Raises:
          UserError: they cannot be loaded, or a class is not one of the run.
        """
        like = Like(self.class_names, self.image_shape, self.white)
        return load_labelled(
            *(name, like),
            data_dir=data_dir,
            archive=archive,
            archive_sha256=archive_sha256,
        )

    @functools.cached_property
    def sha256(self) -> str:
        """SHA-256 of the variables, in hex."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree.leaves_with_path(self.variables):
            array = np.asarray(leaf)
            about = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
            digest.update(about.encode() + array.tobytes())
        return digest.hexdigest()

    @property
    def spec(self) -> DataSpec:
        """Description of the data that the run was trained on."""
        return DataSpec(
            image_shape=self.image_shape,
            num_classes=len(self.class_names),
            mean=self.mean,
            std=self.std,
            train_size=0,  # a loaded run does not train
        )

    @functools.cached_property
    def predictor(self) -> Predictor:
        """Computes logits with the variables of any number of replicas."""
        return Predictor(self.model, self.spec, tta=self.tta)


def _counting(
    folder: pathlib.Path, seeds: tuple[int, ...], step: int, lost: list[bool] | None
) -> list[int]:
    """Returns the indices of the seeds that have not diverged at a checkpoint.

    Args:
      folder: the run's folder; its result knows of a seed that diverged in its last
        step.
      seeds: the seeds that the run trained.
      step: of the checkpoint.
      lost: what the checkpoint knows; None for an older one.

    Raises:
      UserError: every seed has diverged.
    """
    alive = {n for n in range(len(seeds)) if not (lost and lost[n])}
    result = None
    with contextlib.suppress(UserError):  # a damaged result does not affect the network
        result = records.read_result(folder)
    if result is not None and tuple(result.seeds) == seeds:
        alive &= set(result.alive(step))
    if not alive:
        raise UserError(
            f"{folder}: every seed has diverged by step {step}; train again with a "
            "lower rate, or try --best (in Python best=True)"
        )
    if gone := [str(seed) for n, seed in enumerate(seeds) if n not in alive]:
        logger.warning(
            "%s: seed %s diverged by step %d and does not count",
            folder,
            ", ".join(gone),
            step,
        )
    return sorted(alive)


def _tta_of(config: records.Config) -> Tta:
    """Returns the test-time augmentation; older records have it in their settings."""
    recorded = {**config.settings, **(config.recipe or {})}.get("tta")
    return next((one for one in get_args(Tta) if one == recorded), "none")


def _model_of(
    config: records.Config, where: str, given: nn.Module | str | None
) -> nn.Module:
    """Returns the model of a run: one of cifar_flax, or the given one."""
    name, num_classes = str(config.settings["model"]), len(config.dataset.class_names)
    if name in MODELS:
        if given is not None:
            raise UserError(f"{where}: its model is {name}; leave out model")
        # Other settings may name a recipe file, which need not exist any more.
        settings = Settings.from_record(config, where, OF_MODEL)
        return settings.make_model(num_classes)
    if given is None:
        hint = f", such as {name}" if is_own(name) else ""
        raise UserError(
            f"{where}: its model is {name}, which is not part of cifar_flax, and a "
            f"record never runs code; give it as --model{hint} (in Python model=)"
        )
    if isinstance(given, nn.Module):
        return given
    args = config.settings.get("model_args")
    return make_own(given, args if isinstance(args, dict) else None, num_classes)


def _check_same_model(
    config: records.Config, where: str, module: nn.Module, given: nn.Module | str
) -> None:
    """Raises a UserError if a model that was given is not the one that was trained."""
    program = program_of(module, config.dataset.image_shape)
    fields, code = None, None
    if isinstance(given, nn.Module):
        fields = fields_in_words(given)
    else:
        code = describe_source(source_of(given)).all_sha256
    now = Model(program.sha256, fields, code, package_versions())
    if different := model_differs(now, model_of(config)):
        raise UserError(
            f"{where}: the run has trained another {config.model}: {different}; give "
            "the model as it was trained"
        )
