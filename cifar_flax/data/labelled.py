"""Further labelled images on which a trained network is evaluated.

They have the classes of the training images, or some of them, and are brought to their
size. Classes are matched by name; a file without names has the labels themselves.
"""

import dataclasses
import difflib
import pathlib
from collections.abc import Sequence

import numpy as np

from cifar_flax.data.dataset import Pair, check_labels, fingerprint_of
from cifar_flax.data.folders import list_labelled
from cifar_flax.data.load import load_dataset
from cifar_flax.data.own import check_memory, is_own, read_arrays
from cifar_flax.data.splits import Split
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled images; see ``load_labelled``.

    Attributes:
      split: the images and labels.
      source: where they come from, and what was done to them.
      fingerprint: SHA-256 of the images and labels, in hex.
      notes: how the source was read, and what was left out and why.
    """

    split: Split
    source: str
    fingerprint: str
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, split: Split, source: str, notes: tuple[str, ...] = ()) -> "Labelled":
        """Makes it from images with labels."""
        pairs = {"test": (split.images, split.labels)}
        return cls(split, source, fingerprint_of(pairs, ()), notes)


@dataclasses.dataclass(frozen=True)
class Like:
    """What is known of the training images.

    Attributes:
      class_names: names in the order of the labels.
      image_shape: (H, W, C).
      white: see ``values.Reading``.
    """

    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    white: float | None = None


def load_labelled(
    name: str,
    like: Like,
    *,
    data_dir: str | pathlib.Path | None = None,
    archive: str | pathlib.Path | None = None,
    archive_sha256: str | None = None,
) -> Labelled:
    """Loads labelled images to evaluate a network on.

    Args:
      name: as for ``load_dataset``, of which it takes the test images. A file or a
        folder may also have only these, and then all of its images are taken.
      like: the training images of the network.
      data_dir: see ``load_dataset``, also for the arguments below.
      archive: an archive that is read instead.
      archive_sha256: its checksum.

    Raises:
      UserError: there are no such images, they cannot be read or brought to the size
        of the training images, or a class is not one of the training images.
    """
    kind, _, text = name.partition(":")
    notes: tuple[str, ...] = ()
    if not is_own(name) or archive or archive_sha256:
        dataset = load_dataset(
            name, data_dir=data_dir, archive=archive, archive_sha256=archive_sha256
        )
        if dataset.reading.white not in (None, like.white):
            raise UserError(f"{name}: its values are not those of the training images")
        source, notes = f"test images of {dataset.source}", dataset.reading.notes
        labels = _labels(name, dataset.test_labels, dataset.class_names, like)
        pair = dataset.test_images, labels
    elif kind == "npz":
        source, (pair, notes) = name, _of_file(expand_user(text), like)
    else:
        height, width, _ = like.image_shape
        source = f"{name}, each fitted to {height} x {width}"
        pair, notes = _of_folder(expand_user(text), like)
    images, size = pair[0], " x ".join(map(str, pair[0].shape[1:3]))
    check_labels(name, pair[1], len(images), len(like.class_names))
    if images.shape[1:] != like.image_shape:
        images = _fitted(name, images, like.image_shape)
        source += f", resized from {size}"
    return Labelled.of(Split(images, pair[1]), source, notes)


def _of_file(path: pathlib.Path, like: Like) -> tuple[Pair, tuple[str, ...]]:
    """Reads the images of an .npz file."""
    pairs, names, notes = read_arrays(path)
    images, labels = pairs.get("test") or pairs.get("val") or pairs["train"]
    if names is not None:
        labels = _labels(str(path), labels, [str(one) for one in names.ravel()], like)
    return (images, labels), notes


def _of_folder(folder: pathlib.Path, like: Like) -> tuple[Pair, tuple[str, ...]]:
    """Reads the pictures of a folder, as ``predict`` reads pictures."""
    from cifar_flax.data.images import read_image  # Pillow takes a while to load

    pictures, notes = list_labelled(folder, list(like.class_names))
    check_memory(str(folder), len(pictures), like.image_shape)
    images = np.empty((len(pictures), *like.image_shape), np.uint8)
    for index, (path, _) in enumerate(pictures):
        images[index] = read_image(path, *like.image_shape, like.white)
    return (images, np.array([label for _, label in pictures], np.int32)), notes


def _labels(
    where: str, labels: np.ndarray, names: Sequence[str], like: Like
) -> np.ndarray:
    """Returns the labels by which the training images know the same classes."""
    labels = check_labels(where, labels, len(labels), len(names))
    known = list(like.class_names)
    own = np.zeros(len(names), np.int32)
    for label in np.unique(labels):
        if names[label] not in known:
            near = difflib.get_close_matches(names[label], known, n=3, cutoff=0)
            raise UserError(
                f"{where}: its class {names[label]!r} is not one of the training "
                f"images; the most similar are {', '.join(near)}"
            )
        own[label] = known.index(names[label])
    return own[labels]


def _fitted(where: str, images: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns images of another size as large as the training images."""
    from cifar_flax.data.images import fit_array

    if images.shape[-1] != shape[-1] or shape[0] != shape[1]:
        found, wanted = (", ".join(map(str, s)) for s in (images.shape[1:], shape))
        raise UserError(
            f"{where}: images are [N, {found}], and those of the training are "
            f"[N, {wanted}]; give images of this shape"
        )
    return fit_array(images, shape[0])
