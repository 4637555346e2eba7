"""A finished run as something to predict with."""

import dataclasses
import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax import records
from cifar_flax.checkpoint import open_checkpoints
from cifar_flax.data.augment import normalise
from cifar_flax.errors import UserError
from cifar_flax.fields import (
    FLAG,
    INTEGER,
    NAME,
    NUMBER,
    POSITIVE,
    SHARE,
    TEXT,
    check,
    one_of,
    whole,
)
from cifar_flax.loop import map_replicas
from cifar_flax.models import make_model

_OF_MODEL = {
    "dtype": one_of("float32", "bfloat16"),
    "bn_momentum": SHARE,
    "bn_epsilon": POSITIVE,
    "bn_freeze": FLAG,
}
_SIDE = whole(16, 1024)  # smaller ones are nothing after the models' strides
_CONFIG = {
    "settings": {"model": NAME, "seeds": [INTEGER], **_OF_MODEL},
    "dataset": {
        "class_names": [TEXT],
        "image_shape": [_SIDE, _SIDE, one_of(3)],
        "mean": [NUMBER] * 3,
        "std": [POSITIVE] * 3,
    },
}


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
    """

    model: nn.Module
    variables: dict[str, Any]
    seeds: tuple[int, ...]
    class_names: list[str]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    step: int

    @classmethod
    def load(cls, folder: str | pathlib.Path, best: bool = False) -> "Run":
        """Reads a run from its folder.

        Args:
          folder: of the run.
          best: take the checkpoint with the best validation accuracy, not the latest.

        Raises:
          UserError: no run, a damaged one, or one without a sound checkpoint.
        """
        folder = pathlib.Path(folder)
        config = records.read_config(folder)
        where = str(folder / records.CONFIG)
        check(config, _CONFIG, where)
        settings, data = config["settings"], config["dataset"]
        try:
            model = make_model(
                settings["model"],
                len(data["class_names"]),
                **{name: settings[name] for name in _OF_MODEL},
            )
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        image_shape = tuple(data["image_shape"])
        mean, std = tuple(data["mean"]), tuple(data["std"])
        seeds = tuple(settings["seeds"])
        path = folder / records.CHECKPOINTS
        if not path.is_dir():
            raise UserError(f"{folder} has no checkpoint; nothing was trained there")
        template = jax.eval_shape(
            jax.vmap(lambda key: _init(model, image_shape, key)),
            jax.random.split(jax.random.key(0), len(seeds)),
        )
        with open_checkpoints(path, owner=False) as checkpoints:
            step = checkpoints.best_step if best else None
            if best and step is None:
                raise UserError(f"no checkpoint with a validation accuracy in {path}")
            variables, step = checkpoints.restore_variables(template, step)
        names = data["class_names"]
        return cls(model, variables, seeds, names, image_shape, mean, std, step)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Class probabilities by each replica.

        Args:
          images: uint8 [N, H, W, C].

        Returns:
          float32 [R, N, K].
        """
        return np.asarray(self._predict(self.variables, jnp.asarray(images)))

    @functools.cached_property
    def _predict(self):
        def of_one(variables, images):
            images = normalise(images, self.mean, self.std)
            logits: Any = self.model.apply(variables, images, train=False)
            return jax.nn.softmax(logits)

        return jax.jit(map_replicas(of_one))


def _init(model, image_shape, key):
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}
