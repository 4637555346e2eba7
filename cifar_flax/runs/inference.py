"""A finished run as something to predict with."""

import dataclasses
import functools
import logging
import pathlib
from typing import Any, get_args

import flax.linen as nn
import jax
import numpy as np
from scipy.special import softmax

from cifar_flax import records
from cifar_flax.data import DataSpec
from cifar_flax.data.augment import Tta
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.models import MODELS
from cifar_flax.models.check import check_model
from cifar_flax.models.own import is_own, make_own, source_of
from cifar_flax.runs.checkpoint import open_checkpoints
from cifar_flax.runs.settings import OF_MODEL, Settings
from cifar_flax.training.evaluation import Predictor

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run's model with its trained variables.

    Attributes:
      model: called as ``model.apply(variables, images, train=False)`` with the
        variables of one replica, on normalised images.
      variables: of R replicas, every array with a leading axis of that length.
      seeds: of the replicas.
      class_names: in the order of the logits.
      image_shape: (H, W, C) that it was trained on.
      mean: per channel, of the training pixels / 255.
      std: per channel, of the training pixels / 255.
      step: of the checkpoint.
      tta: test-time augmentation of the run; see ``augment.views``.
      model_name: as the record has it, without the place of its code.
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
          best: take the checkpoint with the best validation accuracy, not the latest.
          model: of a run with a model of one's own, whose code no record runs: the
            module, or its name as of ``--model``.

        Raises:
          UserError: no run, a damaged one, one without a valid checkpoint, or one whose
            model has to be given, or is another.
        """
        folder = pathlib.Path(folder)
        config = records.read_config(folder)
        where, data = str(folder / records.CONFIG), config.dataset
        seeds = config.settings["seeds"]
        assert isinstance(seeds, list)  # as it was read
        replicas = tuple(int(str(seed)) for seed in seeds)
        module = _model_of(config, where, model)
        try:
            _, shapes = check_model(module, data.image_shape, len(data.class_names))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        path = folder / records.CHECKPOINTS
        if not path.is_dir():
            raise UserError(f"{folder} has no checkpoint; nothing was trained there")
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((len(replicas), *leaf.shape), leaf.dtype),
            shapes,
        )
        with open_checkpoints(path, owner=False) as checkpoints:
            step = checkpoints.best_step if best else None
            if best and step is None:
                raise UserError(f"no checkpoint with a validation accuracy in {path}")
            variables, step = checkpoints.restore_variables(template, step)
        return cls(
            model=module,
            variables=variables,
            seeds=replicas,
            class_names=data.class_names,
            image_shape=data.image_shape,
            mean=tuple(data.mean),
            std=tuple(data.std),
            step=step,
            tta=_tta_of(config),
            model_name=config.model,
        )

    def __repr__(self) -> str:
        name, sizes = type(self.model).__name__, " x ".join(map(str, self.image_shape))
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"Run({name}, {len(self.class_names)} classes, images {sizes}, "
            f"seeds {seeds}, step {self.step})"
        )

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities by each replica.

        Args:
          images: uint8 [N, H, W, C].

        Returns:
          float32 [R, N, K].

        Raises:
          UserError: images of another type, size or number of channels, or none.
        """
        return softmax(self.predictor(self.variables, images), axis=-1)

    @property
    def spec(self) -> DataSpec:
        """What the run knows of the data that it was trained on."""
        return DataSpec(
            image_shape=self.image_shape,
            num_classes=len(self.class_names),
            mean=self.mean,
            std=self.std,
            train_size=0,  # nothing is trained
        )

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The logits of its model, for the variables of any number of replicas."""
        return Predictor(self.model, self.spec, tta=self.tta)


def _tta_of(config: records.Config) -> Tta:
    """How the run was evaluated; older records do not say it, or in their settings."""
    recorded = {**config.settings, **(config.recipe or {})}.get("tta")
    return next((one for one in get_args(Tta) if one == recorded), "none")


def _model_of(
    config: records.Config, where: str, given: nn.Module | str | None
) -> nn.Module:
    """The model of a run: one that comes with cifar_flax, or the one that is given."""
    name, num_classes = str(config.settings["model"]), len(config.dataset.class_names)
    if name in MODELS:
        if given is not None:
            raise UserError(f"{where}: its model is {name}; give no other")
        # The file of its recipe, which other settings may name, need not be there.
        settings = Settings.from_record(config, where, OF_MODEL)
        return settings.make_model(num_classes)
    if given is None:
        hint = f", such as {name}" if is_own(name) else ""
        raise UserError(
            f"{where}: its model is {name}, which does not come with cifar_flax, and "
            f"whose code no record runs; give it as --model{hint} (in Python model=)"
        )
    if isinstance(given, nn.Module):
        return given
    args = config.settings.get("model_args")
    model = make_own(given, args if isinstance(args, dict) else None, num_classes)
    source, now = config.model_source, source_of(given)
    if source is not None and source.sha256 != now.sha256:
        logger.warning(
            "the code in %s is not the one that the run was trained with", now.path
        )
    return model
