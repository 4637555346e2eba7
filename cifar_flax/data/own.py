"""Users' own data sets: folders of pictures, and .npz files.

``folder:PATH``  ``PATH/train/CLASS/*.png``, ``PATH/test/CLASS/*.png`` and, for its own
                 validation images, ``PATH/val/CLASS/*.png``; or ``PATH/CLASS/*.png``,
                 of which a part is held out as the test set; see ``data.folders``
``npz:PATH``     arrays ``images`` and ``labels``, or ``train_images`` and so on, or
                 with the names of Keras, ``x_train`` and so on

If there is no test set, the validation images are used as the test set.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifar_flax.data import cache
from cifar_flax.data.dataset import (
    Dataset,
    Pair,
    as_it_is,
    by_field,
    check_classes,
    check_images,
    check_labels,
    checked_names,
    describe,
    make_dataset,
)
from cifar_flax.data.folders import MAX_CLASSES, SPLITS, Listing, list_folder
from cifar_flax.data.splits import with_test_set
from cifar_flax.data.values import Reading, channels_last, check_levels, white_of
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import expand_user, printable

if TYPE_CHECKING:
    from cifar_flax.data.images import Facts

KINDS = ("folder", "npz")

# Names of arrays in a file: images and labels of a split.
_NAMES = {
    "train": (
        *(("train_images", "train_labels"), ("x_train", "y_train")),
        ("images", "labels"),
    ),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
    "val": tuple(
        names
        for val in SPLITS["val"]
        for names in ((f"{val}_images", f"{val}_labels"), (f"x_{val}", f"y_{val}"))
    ),
}


def is_own(name: str) -> bool:
    """Returns whether the name of a data set says where it is."""
    kind, colon, path = name.partition(":")
    return bool(colon and path) and kind in KINDS


def whole_name(name: str) -> str:
    """Returns the name with the absolute path, valid in any folder."""
    kind, _, path = name.partition(":")
    return f"{kind}:{expand_user(path).absolute()}" if is_own(name) else name


def load_own(name: str, data_dir: pathlib.Path, size: int | None) -> Dataset:
    """Reads a user's own data set.

    Args:
      name: see the module.
      data_dir: folder of the cache for decoded pictures.
      size: height and width to resize images to; None: they keep their size.

    Raises:
      UserError: the data set does not exist or is not valid.
    """
    kind, _, text = name.partition(":")
    path = expand_user(text)
    title = "".join(c if c.isalnum() else "_" for c in path.stem) or "data"
    if kind == "npz":
        return _read_npz(path, title, size)
    listing = list_folder(path)
    key = hashlib.sha256(f"{listing.checksum()} {size}".encode()).hexdigest()[:24]
    return cache.load_or_build(
        data_dir, title, key, lambda: _read_folder(title, listing, size)
    )


def _read_npz(path: pathlib.Path, title: str, size: int | None) -> Dataset:
    pairs, names, notes = read_arrays(path)
    if "train" not in pairs:
        raise UserError(
            f"{path} has no training images; it needs images and labels, or "
            "train_images and train_labels, and test_images and test_labels if any"
        )
    count = max(int(labels.max()) for _, labels in pairs.values()) + 1
    classes = _class_names(names, count, str(path))
    reading = dataclasses.replace(as_it_is(pairs), notes=notes)
    if size is not None:
        from cifar_flax.data.images import fit_array  # Pillow takes a while to load

        pairs = {split: (fit_array(x, size), y) for split, (x, y) in pairs.items()}
    return _make(title, str(path), pairs, path.name, classes, reading)


def read_arrays(
    path: pathlib.Path,
) -> tuple[dict[str, Pair], np.ndarray | None, tuple[str, ...]]:
    """Reads the images and labels of each split of an .npz file.

    Returns:
      The splits, the array ``class_names`` if there is one, and notes.

    Raises:
      UserError: the file cannot be read, or has no images with labels.
    """
    try:
        if not path.is_file():
            raise UserError(f"there is no file {path}; give npz:PATH of an .npz file")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except UserError:
        raise
    except Exception as error:  # NumPy may raise anything for a damaged file
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    used, notes = ["class_names"], []
    pairs: dict[str, Pair] = {}
    for split, choices in _NAMES.items():
        for names in choices:
            if split not in pairs and all(name in arrays for name in names):
                images, labels = (arrays[name] for name in names)
                where, used = f"{path}, {split} split", [*used, *names]
                pairs[split], is_first = _checked_pair(where, images, labels)
                if is_first:
                    notes.append(f"{names[0]} had the channels first")
    if not pairs:
        raise UserError(
            f"{path} has the arrays {', '.join(arrays)}; it needs images and labels, "
            "or train_images and train_labels, and test_images and test_labels if any"
        )
    if others := [name for name in arrays if name not in used]:
        shown = ", ".join(one_line(printable(name), 60) for name in others[:3])
        notes.append(f"left out: other arrays: {len(others)} ({shown})")
    return pairs, arrays.get("class_names"), tuple(notes)


def _checked_pair(
    where: str, images: np.ndarray, labels: np.ndarray
) -> tuple[Pair, bool]:
    """Returns images [N, H, W, C] and labels, and whether they were [N, C, H, W]."""
    is_first = False
    if images.ndim == 3:  # grey, without a channel axis
        images = images[..., None]
    elif images.ndim == 4 and images.size and images.dtype == np.uint8:
        images, is_first = channels_last(where, images)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    images = check_images(where, images)
    return (images, check_labels(where, labels, len(images))), is_first


def _class_names(given: np.ndarray | None, count: int, where: str) -> Sequence[str]:
    if count > MAX_CLASSES:
        raise UserError(
            f"{where}: the highest label is {count - 1:,}; number the classes from 0 "
            f"without gaps, to {MAX_CLASSES - 1:,} at most"
        )
    if given is None:
        return [str(label) for label in range(count)]
    if given.dtype.kind != "U" or given.ndim != 1:
        raise UserError(
            f"{where}: class_names is {describe(given)}; it must be texts, one for "
            "each class"
        )
    return [str(name) for name in given]


def _make(
    title: str,
    where: str,
    pairs: dict[str, Pair],
    source: str,
    names: Sequence[str],
    reading: Reading,
) -> Dataset:
    """Makes a data set of images and labels by split.

    Every class must have training images, also after some are held out.
    """
    names = checked_names(where, names)
    check_classes(where, pairs["train"][1], names)
    pairs, source = with_test_set(pairs, source)
    remedy = "one of two images is held out as the test set, so add images"
    check_classes(where, pairs["train"][1], names, remedy)
    notes = (*reading.notes, *_common_images(pairs), *_without(pairs, names))
    return make_dataset(
        title,
        class_names=names,
        source=source,
        reading=dataclasses.replace(reading, notes=notes),
        **by_field(pairs),
    )


def _common_images(pairs: dict[str, Pair]) -> Iterator[str]:
    """Says which images are in the training set and elsewhere, or in two classes."""
    seen: dict[int, int] = {}
    twice = 0
    for image, label in zip(*pairs["train"], strict=True):
        twice += seen.setdefault(hash(image.tobytes()), int(label)) != label
    if twice:
        yield f"training images equal to one of another class: {twice:,}"
    for split, (images, _) in list(pairs.items())[1:]:
        if common := sum(hash(image.tobytes()) in seen for image in images):
            yield f"{split} images that are training images, too: {common:,}"


def _without(pairs: dict[str, Pair], names: Sequence[str]) -> Iterator[str]:
    """Says which classes the test and validation images lack."""
    for split, (_, labels) in list(pairs.items())[1:]:
        counts = np.bincount(labels, minlength=len(names))
        if len(empty := np.flatnonzero(counts == 0)):
            shown = ", ".join(names[k][:60] for k in empty[:3])
            more = ", ..." if len(empty) > 3 else ""
            yield f"classes without a {split} image: {len(empty):,} ({shown}{more})"


def _read_folder(title: str, listing: Listing, size: int | None) -> Dataset:
    from cifar_flax.data.images import extremes, facts_of, read_image

    facts = {path: facts_of(path) for path in listing.paths}
    shape, notes = _common_shape(facts, size)
    where, white = str(listing.folder), None
    check_memory(where, len(facts), shape)
    if _all_deep(facts):
        ranges = np.array([extremes(path) for path in facts])
        low, high = float(ranges[:, 0].min()), float(ranges[:, 1].max())
        whole = all(one.deep != "fraction" for one in facts.values())
        white = white_of(where, low, high, whole=whole)
    pairs: dict[str, Pair] = {}
    for split, pictures in listing.splits.items():
        images = np.empty((len(pictures), *shape), np.uint8)
        for index, (path, _) in enumerate(pictures):
            images[index] = read_image(path, *shape, white)
        pairs[split] = images, np.array([label for _, label in pictures], np.int32)
    notes += listing.notes
    if white is None:
        reading = dataclasses.replace(as_it_is(pairs), notes=notes)
    else:
        check_levels(where, pairs["train"][0], high)
        reading = Reading(low, high, white, notes)
    name = listing.folder.name
    return _make(title, where, pairs, name, listing.names, reading)


def _common_shape(
    facts: dict[pathlib.Path, "Facts"], size: int | None
) -> tuple[tuple[int, int, int], tuple[str, ...]]:
    """Returns the (H, W, C) of all pictures, and notes; C is 1 if all are grey."""
    notes = []
    grey = sum(one.is_grey for one in facts.values())
    if 0 < grey < len(facts):
        notes.append(f"grey pictures among coloured ones: {grey:,}")
    if clear := sum(one.has_alpha for one in facts.values()):
        notes.append(f"pictures with transparency, which becomes white: {clear:,}")
    if several := sum(one.has_frames for one in facts.values()):
        notes.append(f"pictures with more than the frame that is read: {several:,}")
    first = next(iter(facts))
    height, width = facts[first].height, facts[first].width
    other = [p for p, f in facts.items() if (f.height, f.width) != (height, width)]
    if size is not None:
        if other or (height, width) != (size, size):
            notes.append(f"pictures are cropped and resized to {size} x {size}")
        height = width = size
    elif other:
        one = facts[other[0]]
        raise UserError(
            f"{other[0]} has {one.height} x {one.width} pixels and {first} {height} x "
            f"{width}; --image_size=N makes all of them N x N"
        )
    return (height, width, 1 if grey == len(facts) else 3), tuple(notes)


def _all_deep(facts: dict[pathlib.Path, "Facts"]) -> bool:
    """Returns whether all pictures have more than 8 bits a value; refuses a mixture."""
    kinds = {one.deep is not None: path for path, one in facts.items()}
    if len(kinds) == 2:
        raise UserError(
            f"{kinds[True]} has more than 8 bits a value and {kinds[False]} has 8; "
            "convert all pictures to 8 bits with one scale"
        )
    return True in kinds


def check_memory(where: str, count: int, shape: tuple[int, ...]) -> None:
    """Raises a UserError if the images would take more than half of the memory."""
    needed, memory = count * int(np.prod(shape)), _memory()
    if memory is not None and needed > memory / 2:
        raise UserError(
            f"{where}: {count:,} pictures of {' x '.join(map(str, shape))} take "
            f"{needed / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB; give "
            "a smaller --image_size, or fewer pictures"
        )


def _memory() -> int | None:
    """Returns the machine's memory in bytes; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
