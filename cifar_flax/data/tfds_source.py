"""Data sets prepared by tensorflow-datasets (tfds), without TensorFlow.

The import of tfds takes a second or two. So it is imported only where it is used, and
the search for a prepared data set does without it.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import logging
import pathlib
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from cifar_flax.data import archive
from cifar_flax.data.cifar import CIFARS
from cifar_flax.data.dataset import Dataset, Pair, as_it_is, by_field, make_dataset
from cifar_flax.data.splits import with_test_set
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import expand_user, locked

CIFAR_VERSION = "3.0.2"  # of the stock builders of CIFAR-10 and CIFAR-100

# Names of the splits in tfds.
_SPLITS = {"train": "train", "test": "test", "val": "validation"}

_INFO = "dataset_info.json"
_FEATURES = "tensorflow_datasets.core.features."


def prepared_folder(data_dir: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the folder where tfds has prepared a data set, or None.

    Args:
      data_dir: tfds's folder.
      name: name of the data set, or name/configuration; of CIFAR-10 and CIFAR-100 the
        stock version counts, of others the newest version in the folder.

    Returns:
      A folder ``data_dir/name/version``.

    Raises:
      UserError: there are configurations, and none is named.
    """
    versions = {}
    for folder in (data_dir / name).glob("*.*.*"):
        # An interrupted one is in incomplete.<random>_<version>, which does not match.
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name) and (folder / _INFO).is_file():
            versions[tuple(map(int, folder.name.split(".")))] = folder
    if name in CIFARS:
        return versions.get(tuple(map(int, CIFAR_VERSION.split("."))))
    if versions:
        return versions[max(versions)]
    infos = (data_dir / name).glob(f"*/*.*.*/{_INFO}")
    if names := sorted({f"{name}/{info.parent.parent.name}" for info in infos}):
        raise UserError(
            f"{name} has configurations; give one of those in {data_dir}: "
            f"{', '.join(names)}"
        )
    return None


def prepared_key(folder: pathlib.Path) -> str:
    """Returns the sha256, in hex, of the names and contents of a prepared set's files.

    Raises:
      UserError: a file is not a plain one.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            continue
        if not path.is_file():  # reading a pipe would block
            raise UserError(f"{path} is not a plain file; refused")
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def is_known(name: str) -> bool:
    """Returns whether tfds has a data set of that name."""
    import tensorflow_datasets as tfds

    known = tfds.list_builders(with_community_datasets=False)
    return name.partition("/")[0] in known


def can_prepare() -> bool:
    """Returns whether array_record, which some systems lack, is installed."""
    return importlib.util.find_spec("array_record") is not None


def read_prepared(folder: pathlib.Path, name: str) -> Dataset:
    """Reads an image classification set that tfds has prepared.

    If it has a validation split, so does the data set. Without a test split, see
    ``splits.with_test_set``.

    Args:
      folder: from ``prepared_folder``; array_record or tfrecord files.
      name: name of the data set.

    Returns:
      The data set. Examples with an ``id`` are in the order of their ids, which for
      CIFAR is that of the official files; others are in the shuffled order of tfds.

    Raises:
      UserError: the data set is damaged or of another kind.
    """
    with _quiet_tfds(), _reading(folder):
        import tensorflow_datasets as tfds

        _refuse_hostile(folder)
        builder = tfds.builder_from_directory(folder)
        image_key, label_key = _check_features(name, builder.info)
        _check_splits(folder, name, builder.info.splits)
        pairs = {
            ours: _read_split(builder, theirs, image_key, label_key)
            for ours, theirs in _SPLITS.items()
            if theirs in builder.info.splits
        }
        others = set(builder.info.splits) - set(_SPLITS.values())
        notes = [f"the split {split} is left out" for split in sorted(others)]
        file_format = builder.info.file_format.value
        source = f"tensorflow-datasets {name}/{folder.name} ({file_format})"
        pairs, source = with_test_set(pairs, source)
        cifar = CIFARS.get(name)
        return make_dataset(
            name.replace("/", "_"),
            class_names=builder.info.features[label_key].names,
            source=source,
            reading=dataclasses.replace(as_it_is(pairs), notes=tuple(notes)),
            mean=cifar.mean if cifar else None,
            std=cifar.std if cifar else None,
            **by_field(pairs),
        )


def prepare_cifar(
    name: str, archive_path: str | pathlib.Path, data_dir: str | pathlib.Path
) -> pathlib.Path:
    """Prepares an official archive for tfds, as ``tfds.builder(name)`` does.

    Other programs then load it with ``tfds.data_source(name, data_dir=data_dir)``. The
    preparation takes about half a minute and 150 MB; it is skipped if already done.

    Args:
      name: name of the data set, 'cifar10' or 'cifar100'.
      archive_path: the official archive or folder, see ``archive.open_archive``.
      data_dir: tfds's folder.

    Returns:
      The folder of the prepared data set.

    Raises:
      UserError: the archive is not the official one, the folder cannot be written, or
        array_record is not installed.
    """
    cifar, data_dir = CIFARS[name], expand_user(data_dir)
    folder = data_dir / name / CIFAR_VERSION
    try:
        with locked(data_dir / "cifar_flax" / f"{name}.lock", wait=True):
            if prepared_folder(data_dir, name):
                return folder
            source = archive.open_archive(archive_path, name=name)
            if source.trust != "official":
                raise UserError(
                    f"{source.path} cannot be verified, and only an official archive "
                    f"is prepared; give {cifar.binary.archive}"
                )
            if not can_prepare():
                raise UserError(
                    f"{cifar.title} cannot be prepared without array_record, which is "
                    "not installed; --data_archive reads the archive itself"
                )
            contents = archive.read_contents(source)
            with _quiet_tfds():
                _prepare(name, contents, data_dir)
    except UserError:
        raise
    except Exception as error:  # tfds may raise anything, and the disk may be full
        raise UserError(
            f"cannot prepare {cifar.title} in {folder} ({type(error).__name__}: "
            f"{one_line(error)}); give another --data_dir, or make space"
        ) from error
    return folder


def _prepare(dataset: str, contents: archive.Contents, data_dir: pathlib.Path) -> None:
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.core import registered

    stock: Any = tfds.builder_cls(dataset)

    # Name, version, features and order are those of the stock builder. Its own versions
    # of these two methods unpack the archive and encode the images with TensorFlow.
    with registered.skip_registration():

        class Builder(stock):
            name = dataset

            def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
                for feature, names in contents.class_names.items():
                    self.info.features[feature].names = list(names)
                splits = contents.images
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
                labels = contents.labels[split]
                for index, image in enumerate(contents.images[split]):
                    example: dict[str, Any] = {"id": f"{split}_{index:05d}"}
                    example |= {name: int(labels[name][index]) for name in labels}
                    yield index, {**example, "image": Image.fromarray(image)}

    builder = Builder(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )


def _refuse_hostile(folder: pathlib.Path) -> None:
    """Refuses features that name a module, which tfds would import and so run."""
    for path in folder.iterdir():
        if not (path.is_file() or path.is_dir()):  # reading a pipe would block
            raise UserError(f"{path} is not a plain file; refused")

    def look_at(fields: dict[str, Any]) -> None:
        for key in ("pythonClassName", "python_class_name", "type"):
            name = fields.get(key)
            if isinstance(name, str) and not name.startswith(_FEATURES):
                raise UserError(
                    f"{folder / 'features.json'} names {name[:100]!r}, which is not in "
                    f"{_FEATURES[:-1]}; refused, since it could run a program"
                )
        for value in fields.values():
            with contextlib.suppress(ValueError):  # a text may be JSON itself
                json.loads(
                    value if isinstance(value, str) else "0", object_hook=look_at
                )

    text = (folder / "features.json").read_text(encoding="utf-8")
    json.loads(text, object_hook=look_at)


def _check_features(name: str, info: Any) -> tuple[str, str]:
    """Returns the keys of image and label, and checks that both have a valid type."""
    import tensorflow_datasets as tfds

    features = info.features
    keys = info.supervised_keys or ("image", "label")
    image, label = (
        features[key] if isinstance(key, str) and key in features else None
        for key in keys[:2]
    )
    if not isinstance(image, tfds.features.Image) or not isinstance(
        label, tfds.features.ClassLabel
    ):
        raise UserError(
            f"{name} is not an image classification set: its features are "
            f"{', '.join(features)}; an image and a class label are needed"
        )
    if None in image.shape or image.np_dtype != np.uint8:
        raise UserError(
            f"{name} has images {np.dtype(image.np_dtype)}{list(image.shape)}; they "
            f"must be uint8 and all of one size"
        )
    return keys[0], keys[1]


def _check_splits(folder: pathlib.Path, name: str, splits: Any) -> None:
    cifar = CIFARS.get(name)
    needed = ("train",) if cifar is None else ("train", "test")
    if missing := [split for split in needed if split not in splits]:
        raise UserError(
            f"{name} has no {missing[0]} split, only {', '.join(splits) or 'none'}"
        )
    sizes = tuple(splits[split].num_examples for split in needed)
    if cifar is not None and sizes != cifar.sizes:
        # tfds accepts a preparation that was shortened on purpose as complete.
        raise UserError(
            f"{folder} has {sizes[0]} training and {sizes[1]} test images, not "
            f"{cifar.title}'s {cifar.sizes[0]} and {cifar.sizes[1]}; delete that "
            f"folder and prepare it again"
        )


def _read_split(builder: Any, split: str, image_key: str, label_key: str) -> Pair:
    """Returns images uint8 [N, H, W, C] and labels int64 [N] of a split."""
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *builder.info.features[image_key].shape), np.uint8)
    labels = np.empty(count, np.int64)  # as tfds has them, until they are checked
    ids = []
    index = -1
    for index, example in enumerate(_examples(builder, split)):
        images[index] = example[image_key]
        labels[index] = example[label_key]
        if "id" in example:
            ids.append(example["id"])
    if index + 1 != count:
        raise ValueError(f"{index + 1} examples in the {split} split, not {count}")
    if ids:
        order = sorted(range(count), key=ids.__getitem__)
        images, labels = images[order], labels[order]
    return images, labels


def _examples(builder: Any, split: str) -> Iterator[dict[str, Any]]:
    from tensorflow_datasets.core.file_adapters import FileFormat

    info = builder.info
    formats = info.available_file_formats()
    if FileFormat.ARRAY_RECORD in formats and can_prepare():
        source = builder.as_data_source(split, file_format=FileFormat.ARRAY_RECORD)
        for start in range(0, len(source), 1000):
            stop = min(start + 1000, len(source))
            yield from source.__getitems__(list(range(start, stop)))
    elif info.file_format == FileFormat.TFRECORD:
        for path in info.splits[split].filepaths:
            for record in _tfrecords(pathlib.Path(path)):
                yield info.features.deserialize_example_np(record)
    elif FileFormat.ARRAY_RECORD in formats:
        raise UserError(
            f"{builder.data_path} cannot be read without array_record, which is not "
            "installed; give another --data_dir, or prepare it as tfrecord"
        )
    else:
        raise UserError(
            f"{builder.data_path} is in the format {info.file_format.value}; prepare "
            f"it as array_record or tfrecord"
        )


def _tfrecords(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the records of a TFRecord file.

    A record is its length (uint64, little-endian), a CRC of that (4 bytes), the data,
    and a CRC of the data (4 bytes). The CRCs are not checked: Python has no CRC-32C,
    and the PNG images have checksums of their own.
    """
    whole = path.stat().st_size
    with path.open("rb") as file:
        while header := file.read(12):
            length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else 0
            if not 0 < length <= whole:
                raise ValueError(f"{path.name} is damaged")
            record = file.read(length + 4)
            if len(record) != length + 4:
                raise ValueError(f"{path.name} is cut short")
            yield record[:-4]


@contextlib.contextmanager
def _reading(folder: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if str(folder) in str(error):
            raise
        raise UserError(f"{folder}: {error}") from error
    except Exception as error:  # tfds may raise anything for damaged files
        raise UserError(
            f"cannot read {folder} ({type(error).__name__}: {one_line(error)}); "
            f"delete that folder and prepare it again"
        ) from error


# Warnings of tfds that are wrong here: about a data set that is about to be prepared,
# and about a library that is not faster for such small images.
_WRONG_WARNINGS = ("Variant folder", "OpenCV is not installed")


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Hides the progress bars, prints and notes of tfds, but not its warnings."""
    import absl.logging
    import tensorflow_datasets as tfds

    def allow(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_WRONG_WARNINGS)

    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(min(verbosity, absl.logging.WARNING))
    absl.logging.get_absl_logger().addFilter(allow)
    tfds.display_progress_bar(False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.display_progress_bar(True)
        absl.logging.get_absl_logger().removeFilter(allow)
        absl.logging.set_verbosity(verbosity)
