"""Computes the logits of trained replicas, and their loss and accuracy on a split."""

import dataclasses
import functools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cifar_flax.analysis.metrics import Metric, measure
from cifar_flax.data.augment import Tta, normalise, views
from cifar_flax.data.dataset import check_images
from cifar_flax.data.splits import DataSpec, Split
from cifar_flax.jax_settings import known_settings
from cifar_flax.layers import rule
from cifar_flax.layers.conv import Lowering, resolve
from cifar_flax.layers.tiling import in_tiles
from cifar_flax.models.calling import evaluate_logits
from cifar_flax.training.placement import (
    MOST_PROGRAMS,
    Placement,
    replica_map,
    split_batch,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Loss and accuracy of R replicas on a split, over all of its images.

    Attributes:
      logits: float32 [R, N, K].
      loss: mean cross-entropy, float64 [R].
      accuracy: share of the images classified correctly, float64 [R]; NaN if the loss
        of the replica is NaN or infinite.
      metrics: other metrics by their name, float64 [R].
    """

    logits: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    metrics: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        shape = ", ".join(map(str, self.logits.shape))
        loss, accuracy = (np.round(x, 4).tolist() for x in (self.loss, self.accuracy))
        others = [f"{n}={np.round(x, 4).tolist()}" for n, x in self.metrics.items()]
        known = ", ".join([f"{loss=}", f"{accuracy=}", *others])
        return f"Evaluation({known}, logits=float32 [{shape}])"


def logits_of_pixels(
    model: nn.Module,
    variables: Any,
    images: jax.Array,
    spec: DataSpec,
    tta: Tta = "none",
) -> jax.Array:
    """Computes the logits of one replica from pixels, averaged over the views.

    Args:
      model: see ``models.calling``.
      variables: of the replica.
      images: uint8 [N, H, W, C].
      spec: of the data that the model was made for.
      tta: see ``augment.views``.

    Returns:
      [N, K], in the dtype of the model's output.
    """
    images = normalise(images, spec.mean, spec.std)
    if tta == "none":
        return evaluate_logits(model, variables, images)
    weights, seen = zip(*views(images, tta), strict=True)
    every = [evaluate_logits(model, variables, view) for view in seen]
    return jnp.average(jnp.stack(every), 0, jnp.asarray(weights))


@dataclasses.dataclass(frozen=True)
class _LogitsStep:
    """Computes the logits of one replica; arguments as of ``logits_of_pixels``.

    Steps that compute the same are equal, and share compiled programs.
    """

    model: nn.Module = dataclasses.field(compare=False)
    spec: DataSpec
    lowering: Lowering
    tta: Tta
    computes: Hashable

    def __call__(self, variables: Any, batches: jax.Array) -> jax.Array:
        """Returns the logits [M * B, K] of images [M, B, H, W, C]."""

        def of_batch(images: jax.Array) -> jax.Array:
            how = self.spec, self.tta
            return logits_of_pixels(self.model, variables, split_batch(images), *how)

        if resolve(self.lowering) == "native":
            of_batch = in_tiles(of_batch)

        logits = lax.map(of_batch, batches).astype(jnp.float32)
        return logits.reshape(-1, self.spec.num_classes)


@functools.lru_cache(maxsize=MOST_PROGRAMS)
def _program(step: _LogitsStep, place: Placement, backend: str) -> Any:
    """Makes the program that computes the logits of all replicas, [R, M * B, K]."""
    del backend  # ``replica_map`` depends on it

    def logits_of_all(variables: Any, batches: jax.Array) -> jax.Array:
        return replica_map(place.side_by_side)(
            lambda one: step(one, batches), variables
        )

    return place.map(logits_of_all, spread=1, shared=1)


@dataclasses.dataclass(frozen=True, eq=False)
class HeldSplit:
    """A split whose images are on the device until this object is dropped.

    Attributes:
      split: the images and labels.
      owner: the predictor that placed the batches; any other copies the images anew.
        None: a CPU, which reads the images where they are.
      batches: uint8 [M, B, H, W, C].
    """

    split: Split
    owner: Any = dataclasses.field(default=None, repr=False)
    batches: jax.Array | None = dataclasses.field(default=None, repr=False)


class Predictor:
    """Computes the logits of a model; it holds neither variables nor data.

    Attributes:
      batch_size: images at a time. It is small on a CPU, so that a batch fits in the
        cache, and larger on an accelerator, which needs more work to be busy.
      placement: of the replicas.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: DataSpec,
        batch_size: int | None = None,
        lowering: Lowering = "auto",
        tta: Tta = "none",
        placement: Placement | None = None,
        computes: Hashable = None,
    ):
        """Prepares the program, which is compiled when it is first called.

        Args:
          model: see ``models.calling``.
          spec: of the data that the model was made for.
          batch_size: images at a time; None for a size that suits the device.
          lowering: of the model's convolutions.
          tta: see ``augment.views``.
          placement: of the replicas; None for one device.
          computes: predictors of equal values share programs; None: this one does not.
        """
        self._step = _LogitsStep(model, spec, lowering, tta, computes or object())
        self.placement = placement or Placement(1)
        on_cpu = jax.default_backend() == "cpu"
        self.batch_size = batch_size or (256 if on_cpu else 1_000)

    @known_settings()
    def hold(self, split: Split) -> HeldSplit:
        """Puts the images of a split on the device, for any number of evaluations.

        A CPU needs no second copy of them.
        """
        if jax.default_backend() == "cpu":
            return HeldSplit(split)
        batches = self._batches(split.images)
        if not isinstance(batches, jax.Array):  # there is no mesh
            batches = jax.device_put(batches)
        return HeldSplit(split, self, batches)

    def _batches(self, images: np.ndarray) -> np.ndarray | jax.Array:
        """Returns images as padded batches, on all devices if there are several."""
        count = len(images)
        size = min(self.batch_size, count)
        size += -size % self.placement.columns
        fill = [(0, -count % size)] + [(0, 0)] * 3
        batches = np.pad(images, fill).reshape(-1, size, *images.shape[1:])
        return self.placement.share(batches)

    @known_settings()
    def __call__(self, variables: Any, images: np.ndarray | HeldSplit) -> np.ndarray:
        """Computes the logits of every replica, float32 [R, N, K].

        One compiled call takes all batches, and returns the logits of all images. Those
        of the padding are removed.

        Args:
          variables: of R replicas.
          images: uint8 [N, H, W, C], or a split from ``hold``.

        Raises:
          UserError: there are no images, or their dtype, size or number of channels is
            not that of the data.
        """
        batches: Any = None
        if isinstance(images, HeldSplit):
            batches = images.batches if images.owner is self else None
            images = images.split.images
        images = check_images("images to classify", images, self._step.spec.image_shape)
        if batches is None:
            batches = self._batches(images)
        place = self.placement
        program = _program(self._step, place, jax.default_backend())
        with rule.lowering(resolve(self._step.lowering)):
            logits = program(place.spread(variables), batches)
        return np.asarray(place.collect(logits))[:, : len(images)]


def evaluate(
    predictor: Predictor,
    variables: Any,
    split: Split | HeldSplit,
    metrics: Sequence[Metric] = (),
) -> Evaluation:
    """Computes loss and accuracy of every replica on a split.

    Args:
      predictor: of the model.
      variables: of R replicas.
      split: images with labels that are classes of the model; also from ``hold``.
      metrics: others to compute.
    """
    held = split if isinstance(split, HeldSplit) else HeldSplit(split)
    logits, labels = predictor(variables, held), held.split.labels
    likeliest = logits.argmax(-1)
    loss = -_log_probabilities(logits, labels, likeliest).mean(1)
    correct = (likeliest == labels).mean(1)
    accuracy = np.where(np.isfinite(loss), correct, np.nan)
    others = measure(metrics, logits, labels)
    return Evaluation(logits, loss, accuracy, others)


def _log_probabilities(
    logits: np.ndarray, labels: np.ndarray, likeliest: np.ndarray
) -> np.ndarray:
    """Returns the log of the probability of each image's label, float64 [R, N].

    It has the bits of SciPy's ``log_softmax``, and so has its mean over the images, but
    it does not compute those of the other classes.
    """
    highest = np.take_along_axis(logits, likeliest[..., None], -1).astype(np.float64)
    highest[~np.isfinite(highest)] = 0
    with np.errstate(all="ignore"):  # the logits of a diverged replica are NaN
        shifted = logits - highest
        found = shifted[:, np.arange(len(labels)), labels]
        found -= np.log(np.exp(shifted).sum(-1))
    return found
