"""A data set in memory: images, labels and what is known about them."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cifar_flax.data.values import ALL_BYTES, Reading
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import check_text

Statistics = tuple[float, ...]

# Images uint8 [N, H, W, C] and labels [N] of a split.
Pair = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, in the order of their source.

    Attributes:
      name: 'cifar10', 'cifar100', 'shapes', or a name of tensorflow-datasets.
      train_images: uint8 [N, H, W, C]; colours are RGB.
      train_labels: int32 [N], 0 to ``num_classes`` - 1.
      test_images: as ``train_images``, of the same H, W and C.
      test_labels: as ``train_labels``.
      class_names: one for each label.
      mean: mean of each channel of the training images, of pixels / 255.
      std: standard deviation of each channel, as ``mean``.
      fingerprint: sha256, in hex, of the training images and labels (little-endian
        int32), the test images and labels, the class names joined by newlines, and the
        validation images and labels if there are any.
      source: where the data come from, in words.
      val_images: as ``train_images``; None if the data set has no validation images of
        its own.
      val_labels: as ``train_labels``; None if ``val_images`` is None.
      reading: how the source was read.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: Statistics
    std: Statistics
    fingerprint: str
    source: str
    val_images: np.ndarray | None = None
    val_labels: np.ndarray | None = None
    reading: Reading = ALL_BYTES

    @property
    def has_validation(self) -> bool:
        """Whether the data set has validation images of its own."""
        return self.val_images is not None

    @property
    def pairs(self) -> dict[str, Pair]:
        """Images and labels of 'train', 'test' and, if there are any, 'val'."""
        pairs = {
            "train": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        if self.val_images is not None and self.val_labels is not None:
            pairs["val"] = (self.val_images, self.val_labels)
        return pairs

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def by_field(pairs: Mapping[str, Pair]) -> dict[str, Any]:
    """Returns the arrays of ``Dataset.pairs`` by the names of its fields."""
    return {
        f"{split}_{what}": array
        for split, pair in pairs.items()
        for what, array in zip(("images", "labels"), pair, strict=True)
    }


def make_dataset(
    name: str,
    train_images: np.ndarray,
    train_labels: np.ndarray,
    test_images: np.ndarray,
    test_labels: np.ndarray,
    class_names: Sequence[str],
    *,
    source: str,
    mean: Statistics | None = None,
    std: Statistics | None = None,
    fingerprint: str | None = None,
    reading: Reading | None = None,
    val_images: np.ndarray | None = None,
    val_labels: np.ndarray | None = None,
) -> Dataset:
    """Checks arrays and makes a ``Dataset`` from them.

    Args:
      name: see ``Dataset``, also for the arguments below.
      train_images: uint8 [N, H, W, C].
      train_labels: [N], of any integer type.
      test_images: as ``train_images``.
      test_labels: as ``train_labels``.
      class_names: one for each label.
      source: where the data come from.
      mean: see ``Dataset``; None: computed from the training images.
      std: as ``mean``.
      fingerprint: see ``Dataset``; None: computed (about 0.2 s for CIFAR-10).
      reading: how the source was read; None: as it is.
      val_images: as ``train_images``; None: the data set has no validation images.
      val_labels: as ``train_labels``; given if ``val_images`` is.

    Returns:
      The data set. It keeps the image arrays and does not copy them.

    Raises:
      UserError: an array has another shape or type, a split is empty, a label has no
        class name, there is only one class, or a standard deviation is 0.
    """
    names = checked_names(name, class_names)
    pairs = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
    if val_images is not None and val_labels is not None:
        pairs["val"] = (val_images, val_labels)
    elif val_images is not None or val_labels is not None:
        given = "val_images" if val_labels is None else "val_labels"
        raise UserError(f"{name}: only {given} is given; give images and labels")
    shape = None
    for split, (x, y) in pairs.items():
        x = check_images(f"{name}, {split} split", x, shape)
        y = check_labels(f"{name}, {split} split", y, len(x), len(names))
        pairs[split], shape = (x, y), x.shape[1:]
    if len(names) == 1:
        raise UserError(
            f"{name}: there is only the class {names[0]!r}, which any model would get "
            "right; give images of two classes or more"
        )
    if mean is None or std is None:
        computed = channel_statistics(pairs["train"][0])
        mean, std = mean or computed[0], std or computed[1]
    mean, std = check_statistics(name, mean, std, pairs["train"][0].shape[-1])
    return Dataset(
        name=name,
        class_names=names,
        mean=mean,
        std=std,
        fingerprint=fingerprint or fingerprint_of(pairs, names),
        source=source,
        reading=reading or as_it_is(pairs),
        **by_field(pairs),
    )


def as_it_is(pairs: Mapping[str, Pair]) -> Reading:
    """Describes images that need no decision: the range of their values."""
    lows, highs = zip(*((x.min(), x.max()) for x, _ in pairs.values()), strict=True)
    return Reading(float(min(lows)), float(max(highs)))


def check_classes(
    where: str, labels: np.ndarray, names: Sequence[str], remedy: str | None = None
) -> None:
    """Raises a UserError for a class without a training image.

    Args:
      where: the images, for the message.
      labels: int32 [N] of the training images.
      names: of the classes.
      remedy: what to do; None: to number the classes from 0 without gaps.
    """
    counts = np.bincount(labels, minlength=len(names))[: len(names)]
    if counts.all():
        return
    empty = np.flatnonzero(counts == 0)
    more = f" and {len(empty) - 1:,} others" if len(empty) > 1 else ""
    if remedy is None:
        first = int(labels.min())
        remedy = "number the classes from 0 without gaps, or add images"
        if len(empty) == first:
            remedy = f"subtract {first} from all labels"
    raise UserError(
        f"{where}: no training image is of the class {names[empty[0]]!r}{more}; "
        f"{remedy}"
    )


def channel_statistics(images: np.ndarray) -> tuple[Statistics, Statistics]:
    """Computes mean and standard deviation of pixels / 255 for each channel.

    The result is exact up to the last division: pixels are counted by value, a thousand
    images at a time to save memory. A constant channel gets the standard deviation
    1/255, since images are divided by it.

    Args:
      images: uint8 [N, H, W, C].

    Returns:
      Mean and (biased) standard deviation.
    """
    values = np.arange(256)
    mean, std = [], []
    for channel in range(images.shape[-1]):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 1000):
            pixels = images[start : start + 1000, ..., channel].ravel()
            counts += np.bincount(pixels, minlength=256)
        n, total = int(counts.sum()), int(counts @ values)
        squares = int(counts @ values**2)
        mean.append(total / n / 255)
        std.append(max((n * squares - total**2) ** 0.5 / n, 1.0) / 255)
    return tuple(mean), tuple(std)


def fingerprint_of(pairs: Mapping[str, Pair], names: tuple[str, ...]) -> str:
    """Computes ``Dataset.fingerprint``."""
    digest = hashlib.sha256()
    for split, (images, labels) in pairs.items():
        if split == "val":  # it came later than the names
            digest.update("\n".join(names).encode())
        digest.update(images.data)
        digest.update(labels.astype("<i4").data)
    if "val" not in pairs:
        digest.update("\n".join(names).encode())
    return digest.hexdigest()


def check_images(
    where: str, images: Any, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Checks images and returns them as a contiguous array, or raises a UserError.

    Args:
      where: name of the images, for the message.
      images: uint8 [N, H, W, C], at least one; anything that NumPy takes as an array.
      shape: the (H, W, C) that they must have, if any.
    """
    array = _as_array(where, "images", images)
    wanted = "uint8 [N, H, W, C]"
    if shape is not None:
        wanted = f"uint8 [N, {', '.join(map(str, shape))}]"
    what = f"{where}: images are {describe(array)}; they must be {wanted}"
    if array.dtype != np.uint8:
        raise UserError(
            f"{what}, pixels from 0 to 255 as they are stored; do not scale or "
            "normalise them"
        )
    if not array.size:
        raise UserError(f"{where}: no images in {describe(array)}; give one or more")
    if array.ndim == 3:
        raise UserError(f"{what}; add the missing axis (of one image: images[None])")
    if array.ndim != 4 or (shape is not None and array.shape[1:] != tuple(shape)):
        raise UserError(what)
    rows, height, width = array.shape[1:]
    if rows in (1, 3, 4) and height == width > 4:
        raise UserError(f"{what}; images.transpose(0, 2, 3, 1) puts the channels last")
    return np.ascontiguousarray(array)


def check_labels(
    where: str, labels: Any, count: int, num_classes: int | None = None
) -> np.ndarray:
    """Checks labels and returns them as int32 [N], or raises a UserError.

    Args:
      where: name of the labels, for the message.
      labels: whole numbers [N] from 0 to ``num_classes`` - 1.
      count: N, the number of images.
      num_classes: number of classes; None if it is not known yet.
    """
    array = _as_array(where, "labels", labels)
    if array.dtype.kind not in "iu" or array.shape != (count,):
        hint = ""
        if array.shape == (count, 1):
            hint = "; labels[:, 0] drops the last axis"
        elif array.ndim == 2 and len(array) == count:
            hint = "; labels.argmax(1) turns one-hot rows into class numbers"
        raise UserError(
            f"{where}: labels are {describe(array)}; they must be integers [N], one "
            f"for each of {count} images{hint}"
        )
    low, high = int(array.min()), int(array.max())
    if num_classes is None:
        if low < 0:
            raise UserError(f"{where}: label {low}; labels must be 0 or above")
        num_classes = 2**31  # the limit of int32
    if low < 0 or high >= num_classes:
        hint = "; subtract 1" if (low, high) == (1, num_classes) else ""
        raise UserError(
            f"{where}: label {low if low < 0 else high}; with {num_classes} classes "
            f"labels must be from 0 to {num_classes - 1}{hint}"
        )
    return np.ascontiguousarray(array, np.int32)


def check_statistics(
    where: str, mean: Any, std: Any, channels: int
) -> tuple[Statistics, Statistics]:
    """Checks and returns mean and standard deviation of each channel."""
    for name, values in (("mean", mean), ("std", std)):
        array = _as_array(where, name, values)
        good = array.shape == (channels,) and array.dtype.kind in "fiu"
        must = "above 0" if name == "std" else "finite"
        good = good and np.isfinite(array).all()
        if not good or (name == "std" and array.min() <= 0):
            raise UserError(
                f"{where}: {name} is {values}; it must be {channels} numbers, one per "
                f"channel, of pixels / 255, each {must}"
            )
    return tuple(map(float, mean)), tuple(map(float, std))


def describe(array: Any) -> str:
    """Returns dtype and shape of an array, such as ``float32 [8, 32, 32, 3]``."""
    return f"{array.dtype} [{', '.join(map(str, array.shape))}]"


def _as_array(where: str, what: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except Exception as error:  # from ragged lists or another library's arrays
        raise UserError(
            f"{where}: {what} are {type(value).__name__}, not an array: "
            f"{one_line(error)}"
        ) from error


def checked_names(where: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns class names; raises a UserError unless they are different texts."""
    names = tuple(class_names)
    if isinstance(class_names, str) or not names or len(set(names)) < len(names):
        raise UserError(
            f"{where}: class_names is {class_names!r}; give one or more different "
            "names, one for each label"
        )
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{where}: the class name {wrong[0]!r} is not text")
    for name in names:
        try:
            check_text(name)
        except ValueError as error:
            raise UserError(f"{where}: a class is named {name!r}; {error}") from error
    return names
