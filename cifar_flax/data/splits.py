"""The training, validation and test split."""

import dataclasses

import numpy as np

from cifar_flax.data.dataset import (
    Dataset,
    Statistics,
    check_images,
    check_labels,
    check_statistics,
    describe,
)
from cifar_flax.errors import UserError

# The split must not depend on the seed of a run, so that runs can be compared.
_SPLIT_SEED = 20_260_101


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a program must know of its data, without the data themselves.

    Attributes:
      image_shape: (H, W, C).
      num_classes: K.
      mean: per channel, of pixels / 255.
      std: per channel, of pixels / 255.
      train_size: images in the training split.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: Statistics
    std: Statistics
    train_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, H, W, C] and their labels int32 [N]; checked when it is made.

    Raises:
      UserError: another type or shape, lengths that differ, or nothing at all.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        images = check_images("a split", self.images)
        labels = check_labels("a split", self.labels, len(images))
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({describe(self.images)})"


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """A data set, divided; checked when it is made.

    Attributes:
      train: what the parameters are fitted to.
      val: held out of the training set, for every choice made along the way; None
        where the training set was not divided.
      test: evaluated once, at the end.
      num_classes: number of classes.
      mean: per channel, of pixels / 255.
      std: per channel, of pixels / 255.

    Raises:
      UserError: images of different sizes, a label that is no class, or statistics
        that do not fit the channels.
    """

    train: Split
    val: Split | None
    test: Split
    num_classes: int
    mean: Statistics
    std: Statistics

    def __post_init__(self):
        shape = self.train.images.shape[1:]
        for name in ("train", "val", "test"):
            split = getattr(self, name)
            if split is None and name == "val":
                continue
            where = f"{name} split"
            check_images(where, split.images, shape)
            check_labels(where, split.labels, len(split), self.num_classes)
        mean, std = check_statistics("splits", self.mean, self.std, shape[-1])
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @property
    def spec(self) -> DataSpec:
        """What a program must know of these data."""
        height, width, channels = self.train.images.shape[1:]
        return DataSpec(
            image_shape=(height, width, channels),
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            train_size=len(self.train),
        )


def split_dataset(
    dataset: Dataset, val_size: int = 5_000, train_size: int | None = None
) -> Splits:
    """Divides the training set into a training and a validation split.

    Both are stratified: each class has the same share in them as in the training set,
    to within one image. The division is the same for every seed, and the validation
    split does not depend on ``train_size``.

    Args:
      dataset: what to divide.
      val_size: images in the validation split; 0 for none.
      train_size: images to train on, at most what the validation split leaves; None
        for all of them.

    Returns:
      The splits. Images keep the order of the data set.

    Raises:
      UserError: a size that the training set cannot give.
    """
    total = len(dataset.train_labels)
    for name, size in (("val_size", val_size), ("train_size", train_size or 1)):
        if not isinstance(size, int | np.integer):
            raise UserError(f"{name} is {size!r}; it must be a whole number of images")
    if not 0 <= val_size < total:
        raise UserError(
            f"val_size is {val_size}; {dataset.name} has {total} training images, so "
            f"it must be from 0 to {total - 1}"
        )
    left = total - val_size
    if train_size is not None and not 0 < train_size <= left:
        raise UserError(
            f"train_size is {train_size}; {dataset.name} has {total} training images "
            f"and {val_size} are for validation, so it must be from 1 to {left}"
        )
    order = _stratified_order(dataset.train_labels)
    stop = total if train_size is None else val_size + train_size
    val, train = np.sort(order[:val_size]), np.sort(order[val_size:stop])
    images, labels = dataset.train_images, dataset.train_labels
    return Splits(
        train=Split(images[train], labels[train]),
        val=Split(images[val], labels[val]) if val_size else None,
        test=Split(dataset.test_images, dataset.test_labels),
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )


def _stratified_order(labels: np.ndarray) -> np.ndarray:
    """A fixed shuffle in which every run of images has the classes in proportion.

    Image i of the n images of a class, in random order, stands at (i + u) / n of the
    way, with one u of [0, 1) a class.
    """
    rng = np.random.default_rng(_SPLIT_SEED)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(position, kind="stable")
