"""The progress of training, as a trainer reports it."""

import dataclasses
import functools

import numpy as np

from cifar_flax.training.placement import Placement
from cifar_flax.training.state import TrainState


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """The progress of training after a compiled chunk of steps.

    Attributes:
      step: number of steps done.
      diverged_at: see ``TrainState``.
      epoch_done: whether an epoch has just ended. Loss and accuracy are means over that
        epoch; otherwise over the steps of the current epoch so far.
      learning_rate: rate of the last step.
      train_loss: mean loss of the training images during training, float64 [R]; NaN
        for a replica that has diverged.
      train_accuracy: share of the training images classified correctly during training,
        float64 [R]; NaN for a replica that has diverged. An image that mixup or cutmix
        has mixed counts by its own label.
      losses: mean loss of the batch of each step of the last chunk, float32 [R, S]; NaN
        for the steps that a diverged replica did not do.
      images: number of training images of the last chunk, over all replicas.
      seconds: duration of the last chunk.
      spread: the state, spread over the devices.
      placement: of the replicas.
    """

    step: int
    diverged_at: tuple[int | None, ...]
    epoch_done: bool
    learning_rate: float
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    losses: np.ndarray
    images: int
    seconds: float
    spread: TrainState
    placement: Placement

    @functools.cached_property
    def state(self) -> TrainState:
        """The state of all replicas. Further training does not change it."""
        return self.placement.collect(self.spread)

    def __repr__(self) -> str:
        loss = np.round(self.train_loss, 4).tolist()
        accuracy = np.round(self.train_accuracy, 4).tolist()
        return (
            f"Progress(step={self.step}, epoch_done={self.epoch_done}, "
            f"learning_rate={self.learning_rate:.3g}, train_loss={loss}, "
            f"train_accuracy={accuracy})"
        )
