"""Users' own data sets: folders of pictures, and .npz files.

``folder:PATH``  ``PATH/train/CLASS/*.png``, ``PATH/test/CLASS/*.png`` and, for its own
                 validation images, ``PATH/val/CLASS/*.png``; or ``PATH/CLASS/*.png``,
                 of which a part is held out as the test set
``npz:PATH``     arrays ``images`` and ``labels``, or ``train_images`` and so on, or
                 with the names of Keras, ``x_train`` and so on

``val`` may also be called ``valid`` or ``validation``. If there is no test set, the
validation images are used as the test set.
"""

import hashlib
import logging
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from cifar_flax.data import cache
from cifar_flax.data.dataset import (
    Dataset,
    Pair,
    by_field,
    check_images,
    check_labels,
    describe,
    make_dataset,
)
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import check_text, expand_user

KINDS = ("folder", "npz")

# If there is no test set, this share of each class is held out for it.
TEST_SHARE = 1 / 6

MAX_CLASSES = 10_000

logger = logging.getLogger(__name__)

_VALS = ("val", "valid", "validation")

# Names of arrays in a file: images and labels of a split.
_NAMES = {
    "train": (
        *(("train_images", "train_labels"), ("x_train", "y_train")),
        ("images", "labels"),
    ),
    "test": (("test_images", "test_labels"), ("x_test", "y_test")),
    "val": tuple(
        names
        for val in _VALS
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
    listing = _list_folder(path)
    return cache.load_or_build(
        data_dir,
        title,
        _key(path, listing, size),
        lambda: _read_folder(path, title, listing, size),
    )


def _read_npz(path: pathlib.Path, title: str, size: int | None) -> Dataset:
    try:
        if not path.is_file():
            raise UserError(f"there is no file {path}; give npz:PATH of an .npz file")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except UserError:
        raise
    except Exception as error:  # NumPy may raise anything for a damaged file
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    pairs = {
        split: pair
        for split in _NAMES
        if (pair := _split_of(arrays, split, str(path))) is not None
    }
    if "train" not in pairs:
        raise UserError(
            f"{path} has the arrays {', '.join(arrays)}; it needs images and labels, "
            "or train_images and train_labels, and test_images and test_labels if any"
        )
    count = max(int(labels.max()) for _, labels in pairs.values()) + 1
    names = _class_names(arrays.get("class_names"), count, str(path))
    if size is not None:
        from cifar_flax.data.images import fit_array  # Pillow takes a while to load

        pairs = {split: (fit_array(x, size), y) for split, (x, y) in pairs.items()}
    return _make(title, pairs, path.name, names)


def _make(
    title: str, pairs: dict[str, Pair], source: str, names: Sequence[str]
) -> Dataset:
    """Makes a data set of images and labels by split.

    If there is no test set, the validation images become it, or else a part of the
    training images. The source says so.
    """
    if "test" not in pairs and "val" in pairs:
        pairs = {"train": pairs["train"], "test": pairs["val"]}
        source += ", its validation images as the test set"
    elif "test" not in pairs:
        train, test, source = _hold_out(*pairs["train"], source)
        pairs = {"train": train, "test": test}
    return make_dataset(title, class_names=names, source=source, **by_field(pairs))


def _split_of(arrays: dict[str, np.ndarray], split: str, where: str) -> Pair | None:
    """Checks and returns the arrays of a split; None if there are none."""
    found = [pair for pair in _NAMES[split] if all(name in arrays for name in pair)]
    if not found:
        return None
    images, labels = (arrays[name] for name in found[0])
    if images.ndim == 3:  # grey, without a channel axis
        images = images[..., None]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    images = check_images(f"{where}, {split} split", images)
    return images, check_labels(f"{where}, {split} split", labels, len(images))


def _class_names(given: np.ndarray | None, count: int, where: str) -> Sequence[str]:
    if given is None:
        return [str(label) for label in range(count)]
    if given.dtype.kind != "U" or given.ndim != 1:
        raise UserError(
            f"{where}: class_names is {describe(given)}; it must be texts, one for "
            "each class"
        )
    return [_checked_name(str(name), where) for name in given]


def _checked_name(name: str, where: str) -> str:
    try:
        return check_text(name)
    except ValueError as error:
        raise UserError(f"{where}: a class is named {name!r}; {error}") from error


# The files of each split with their labels, and the class names.
_Listing = tuple[dict[str, list[tuple[pathlib.Path, int]]], list[str]]


def _find_splits(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the folders of the splits by name: train, and the others that exist.

    Without a folder ``train``, the folder itself has the training images.
    """
    inside = {path.name: path for path in _folders(folder)}
    if "train" not in inside:
        return {"train": folder}
    vals = [name for name in _VALS if name in inside]
    used = ["train", "test"] if "test" in inside else ["train"]
    used += vals[:1]
    if len(used) == 1:
        raise UserError(
            f"{folder} has train but no test or {' or '.join(_VALS)}; add one, or put "
            "the folders of the classes directly into it"
        )
    for other in vals[1:]:
        logger.warning(
            "%s is not used: %s is the %s set",
            inside[other],
            inside[vals[0]],
            "validation" if "test" in inside else "test",
        )
    return {name: inside[name] for name in used}


def _list_folder(folder: pathlib.Path) -> _Listing:
    """Returns the pictures of each split, and the classes."""
    from cifar_flax.data.images import find_images

    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give folder:PATH")
    splits = _find_splits(folder)
    train = splits["train"]
    names = [path.name for path in _folders(train)]
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{train} has {len(names)} folders; there must be one for each "
            f"class, 2 to {MAX_CLASSES}"
        )
    found: dict[str, list[tuple[pathlib.Path, int]]] = {}
    for split, place in splits.items():
        if unknown := [p.name for p in _folders(place) if p.name not in names]:
            raise UserError(f"{place / unknown[0]} is not a class of {train}")
        found[split] = [
            (path, label)
            for label, name in enumerate(names)
            if (place / name).is_dir()
            for path in find_images([place / name])
        ]
        if not found[split]:
            raise UserError(f"{place} has no pictures")
    return found, [_checked_name(name, str(folder)) for name in names]


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".")
    )


def _key(folder: pathlib.Path, listing: _Listing, size: int | None) -> str:
    """Returns a cache key that changes with any file of the folder."""
    digest = hashlib.sha256(repr(size).encode())
    for split, files in listing[0].items():
        for path, label in files:
            status = path.stat()
            name = os.fsencode(path.relative_to(folder))
            facts = (split, label, status.st_size, status.st_mtime_ns)
            digest.update(name + repr(facts).encode())
    return digest.hexdigest()[:24]


def _read_folder(
    folder: pathlib.Path, title: str, listing: _Listing, size: int | None
) -> Dataset:
    from cifar_flax.data.images import read_image

    files, names = listing
    every = [path for split in files.values() for path, _ in split]
    shape = _common_shape(every, size)
    needed, memory = len(every) * int(np.prod(shape)), _memory()
    if memory is not None and needed > memory / 2:
        raise UserError(
            f"{folder}: {len(every):,} pictures of {' x '.join(map(str, shape))} take "
            f"{needed / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB; give "
            "a smaller --image_size, or fewer pictures"
        )
    pairs: dict[str, Pair] = {}
    for split, pictures in files.items():
        images = np.empty((len(pictures), *shape), np.uint8)
        for index, (path, _) in enumerate(pictures):
            images[index] = read_image(path, *shape)
        labels = np.array([label for _, label in pictures], np.int32)
        pairs["val" if split in _VALS else split] = images, labels
    return _make(title, pairs, folder.name, names)


def _common_shape(paths: list[pathlib.Path], size: int | None) -> tuple[int, int, int]:
    """Returns the height, width and channels of all pictures; 1 channel if all grey."""
    from cifar_flax.data.images import shape_of

    shapes = {path: shape_of(path) for path in paths}
    channels = 1 if all(shape[2] == 1 for shape in shapes.values()) else 3
    if size is not None:
        return size, size, channels
    first = next(iter(shapes))
    height, width, _ = shapes[first]
    for path, shape in shapes.items():
        if shape[:2] != (height, width):
            raise UserError(
                f"{path} has {shape[0]} x {shape[1]} pixels and {first} {height} x "
                f"{width}; --image_size=N makes all of them N x N"
            )
    return height, width, channels


def _hold_out(
    images: np.ndarray, labels: np.ndarray, source: str
) -> tuple[Pair, Pair, str]:
    """Divides images into training and test set by class; also returns a new source."""
    rng, held = np.random.default_rng(0), np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        held[members[: max(1, round(TEST_SHARE * len(members)))]] = True
    if held.all():
        raise UserError(f"{source} has too few images: none is left to train on")
    hint = f"{held.sum():,} of {len(held):,} images held out as the test set"
    train, test = ((images[part], labels[part]) for part in (~held, held))
    return train, test, f"{source}, {hint}"


def _memory() -> int | None:
    """Returns the machine's memory in bytes; None if the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None
