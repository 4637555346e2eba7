"""The training, validation and test split."""

import dataclasses

import numpy as np

from cifar_flax.data.dataset import (
    Dataset,
    Pair,
    Statistics,
    check_images,
    check_labels,
    check_statistics,
    describe,
)
from cifar_flax.errors import UserError

# Training images held out if a data set has no validation images of its own.
VAL_SIZE = 5_000

# If there is no test set, this share of each class is held out for it.
TEST_SHARE = 1 / 6

# The split must not depend on the seed of a run, so that runs can be compared.
_SPLIT_SEED = 20_260_101


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What a program must know about its data, without the data themselves.

    Attributes:
      image_shape: (H, W, C).
      num_classes: K.
      mean: per channel, of pixels / 255.
      std: per channel, of pixels / 255.
      train_size: number of images in the training split.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    mean: Statistics
    std: Statistics
    train_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Images with labels; the constructor checks them.

    Attributes:
      images: uint8 [N, H, W, C].
      labels: int32 [N].

    Raises:
      UserError: a type or shape is wrong, the lengths differ, or there are no images.
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
    """The splits of a data set; the constructor checks them.

    Attributes:
      train: images to which the parameters are fitted.
      val: images for all choices before the end: the data set's own validation images,
        or some held out of the training set; None if there are none.
      test: images that are evaluated once, at the end.
      num_classes: number of classes.
      mean: per channel, of pixels / 255.
      std: per channel, of pixels / 255.

    Raises:
      UserError: the images have different sizes, a label is not a class, or the
        statistics do not fit the channels.
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
        """What a program must know about these data."""
        height, width, channels = self.train.images.shape[1:]
        return DataSpec(
            image_shape=(height, width, channels),
            num_classes=self.num_classes,
            mean=self.mean,
            std=self.std,
            train_size=len(self.train),
        )


def with_test_set(pairs: dict[str, Pair], source: str) -> tuple[dict[str, Pair], str]:
    """Returns the images and labels of each split with a test set, and the source.

    If there is no test set, the validation images become it, or else a part of the
    training images. The source says so.

    Raises:
      UserError: there are too few training images.
    """
    if "test" in pairs:
        return pairs, source
    if "val" in pairs:
        words = "its validation images as the test set"
        return {"train": pairs["train"], "test": pairs["val"]}, f"{source}, {words}"
    images, labels = pairs["train"]
    rng, held = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held[members[: max(1, round(TEST_SHARE * len(members)))]] = True
    if held.all():
        raise UserError(f"{source} has too few images: none is left to train on")
    words = f"{held.sum():,} of {len(held):,} images held out as the test set"
    parts = {"train": ~held, "test": held}
    divided = {split: (images[part], labels[part]) for split, part in parts.items()}
    return divided, f"{source}, {words}"


def split_dataset(
    dataset: Dataset,
    val_size: int | None = None,
    train_size: int | None = None,
    seed: int | None = None,
) -> Splits:
    """Divides a data set into training, validation and test split.

    If the data set has no validation images of its own, the training set is divided.
    Both parts are stratified: each class has the same share in them as in the training
    set, to within one image. The validation split does not depend on ``train_size``.

    Args:
      dataset: what to divide.
      val_size: number of images to hold out of the training set for validation; 0: no
        validation; None: the data set's own validation images if it has some, else
        ``VAL_SIZE``.
      train_size: number of images to train on, at most what the validation split
        leaves; None: all of them.
      seed: seed of the division; None: the usual division, the same in all runs.

    Returns:
      The splits. Images keep the order of the data set.

    Raises:
      UserError: the training set does not allow a size, or ``val_size`` is given
        although the data set has validation images of its own.
    """
    total = len(dataset.train_labels)
    held = _held_out(dataset, val_size)
    for name, size in (("val_size", held), ("train_size", train_size or 1)):
        if not isinstance(size, int | np.integer):
            raise UserError(f"{name} is {size!r}; it must be a whole number of images")
    if not 0 <= held < total:
        default = " by default" if val_size is None else ""
        raise UserError(
            f"val_size is {held}{default}; {dataset.name} has {total} training images: "
            f"pass --val_size=N (in Python val_size=N) with N from 0 to {total - 1}"
        )
    left = total - held
    if train_size is not None and not 0 < train_size <= left:
        raise UserError(
            f"train_size is {train_size}; {dataset.name} has {total} training images "
            f"and {held} are for validation, so it must be from 1 to {left}"
        )
    order = _stratified_order(dataset.train_labels, seed)
    stop = total if train_size is None else held + train_size
    val_part, train = np.sort(order[:held]), np.sort(order[held:stop])
    images, labels = dataset.train_images, dataset.train_labels
    val = Split(images[val_part], labels[val_part]) if held else None
    if val_size is None and dataset.val_images is not None:
        assert dataset.val_labels is not None
        val = Split(dataset.val_images, dataset.val_labels)
    return Splits(
        train=Split(images[train], labels[train]),
        val=val,
        test=Split(dataset.test_images, dataset.test_labels),
        num_classes=dataset.num_classes,
        mean=dataset.mean,
        std=dataset.std,
    )


def _held_out(dataset: Dataset, val_size: int | None) -> int:
    """Returns the number of images to hold out of the training set."""
    if dataset.val_labels is None:
        return VAL_SIZE if val_size is None else val_size
    if val_size is None or val_size == 0:
        return 0
    raise UserError(
        f"val_size is {val_size}; {dataset.name} has {len(dataset.val_labels)} "
        f"validation images of its own, so no training images are held out; leave "
        f"--val_size out to use them, or pass --val_size=0 for no validation"
    )


def _stratified_order(labels: np.ndarray, seed: int | None) -> np.ndarray:
    """Returns a random order in which any section has the classes in proportion.

    The same seed gives the same order. Image i of the n images of a class, in random
    order, gets the position (i + u) / n, with one u from [0, 1) for each class.
    """
    own = _SPLIT_SEED if seed is None else [_SPLIT_SEED, seed % 2**32]
    rng = np.random.default_rng(own)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return np.argsort(position, kind="stable")
