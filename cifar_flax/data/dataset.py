"""A data set in memory: images, labels and what is known about them."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from cifar_flax.errors import UserError

IMAGE_SHAPE = (32, 32, 3)

Statistics = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels, in the order of their source.

    Attributes:
      name: 'cifar10', 'shapes', or a name of tensorflow-datasets.
      train_images: uint8 [N, 32, 32, 3], RGB.
      train_labels: int32 [N], 0 to ``num_classes`` - 1.
      test_images: as ``train_images``.
      test_labels: as ``train_labels``.
      class_names: one a label.
      mean: per channel, of pixels / 255, of the training images.
      std: likewise the standard deviation.
      fingerprint: sha256, in hex, of the training images and labels (little-endian
        int32), the test images and labels, and the class names joined by newlines.
      source: where it came from, for a person to read.
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

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


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
) -> Dataset:
    """Checks arrays and makes a ``Dataset`` of them.

    Args:
      name: see ``Dataset``, as for the arguments below.
      train_images: uint8 [N, 32, 32, 3].
      train_labels: [N], of any integer type.
      test_images: as ``train_images``.
      test_labels: as ``train_labels``.
      class_names: one a label.
      source: where the data came from.
      mean: computed from the training images where not given.
      std: likewise.
      fingerprint: likewise; hashing CIFAR-10 takes about 0.2 s.

    Returns:
      The data set. It keeps the image arrays, it does not copy them.

    Raises:
      UserError: an array has another shape or type, a split is empty, or a label has
        no class name.
    """
    names = tuple(class_names)
    images, labels = {}, {}
    for split, x, y in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        images[split] = _checked_images(f"{name}, {split} split", x)
        labels[split] = _checked_labels(f"{name}, {split} split", y, len(x), names)
    if mean is None or std is None:
        computed = channel_statistics(images["train"])
        mean, std = mean or computed[0], std or computed[1]
    return Dataset(
        name=name,
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
        class_names=names,
        mean=mean,
        std=std,
        fingerprint=fingerprint or _fingerprint(images, labels, names),
        source=source,
    )


def channel_statistics(images: np.ndarray) -> tuple[Statistics, Statistics]:
    """Mean and standard deviation of pixels / 255, a channel at a time.

    Exact up to the last division: pixels are counted by value, a thousand images at a
    time so that memory stays small. A channel that never varies gets the standard
    deviation 1/255, since images are divided by it.

    Args:
      images: uint8 [N, H, W, 3].

    Returns:
      Mean and (biased) standard deviation.
    """
    values = np.arange(256)
    mean, std = [], []
    for channel in range(3):
        counts = np.zeros(256, np.int64)
        for start in range(0, len(images), 1000):
            pixels = images[start : start + 1000, ..., channel].ravel()
            counts += np.bincount(pixels, minlength=256)
        n, total = int(counts.sum()), int(counts @ values)
        squares = int(counts @ values**2)
        mean.append(total / n / 255)
        std.append(max((n * squares - total**2) ** 0.5 / n, 1.0) / 255)
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def _fingerprint(
    images: dict[str, np.ndarray], labels: dict[str, np.ndarray], names: tuple[str, ...]
) -> str:
    """See ``Dataset.fingerprint``."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        digest.update(images[split].data)
        digest.update(labels[split].astype("<i4").data)
    digest.update("\n".join(names).encode())
    return digest.hexdigest()


def _checked_images(where: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8 or images.shape[1:] != IMAGE_SHAPE:
        raise UserError(
            f"{where}: images are {images.dtype}{list(images.shape)}; they must be "
            f"uint8[N, 32, 32, 3]"
        )
    if not len(images):
        raise UserError(f"{where}: no images; at least one is needed")
    return np.ascontiguousarray(images)


def _checked_labels(
    where: str, labels: np.ndarray, count: int, class_names: tuple[str, ...]
) -> np.ndarray:
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise UserError(
            f"{where}: labels are {labels.dtype}{list(labels.shape)}; they must be "
            f"integers, one for each of {count} images"
        )
    for label in (int(labels.min()), int(labels.max())):
        if not 0 <= label < len(class_names):
            raise UserError(
                f"{where}: label {label}; with {len(class_names)} classes labels must "
                f"be from 0 to {len(class_names) - 1}"
            )
    return np.ascontiguousarray(labels, np.int32)
