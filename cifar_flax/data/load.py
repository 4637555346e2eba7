"""Finding a data set by its name: on disk, from the network, or built in."""

import dataclasses
import logging
import os
import pathlib
import re

from cifar_flax.data import cache, download, own, tfds_source
from cifar_flax.data.archive import (
    OFFICIAL_SHA256,
    check_contents,
    open_archive,
    read_archive,
)
from cifar_flax.data.dataset import Dataset, make_dataset
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user

# With name='auto' a longer download is not begun.
MAX_AUTO_SECONDS = 15 * 60

logger = logging.getLogger(__name__)


def default_data_dir() -> pathlib.Path:
    """The folder that tensorflow-datasets uses, too: TFDS_DATA_DIR, or its default."""
    return expand_user(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def load_dataset(
    name: str = "auto",
    *,
    data_dir: str | pathlib.Path | None = None,
    archive: str | pathlib.Path | None = None,
    archive_sha256: str | None = None,
    image_size: int | None = None,
    fetch: bool = True,
) -> Dataset:
    """Loads a data set.

    Args:
      name: 'cifar10'; 'shapes', which is built in; 'auto', CIFAR-10 where it is on disk
        or quickly fetched, else 'shapes' with a warning; the name of a prepared data
        set of tensorflow-datasets, of images of one size with class labels;
        'folder:PATH' or 'npz:PATH', see ``data.own``.
      data_dir: where prepared data sets, archives and this project's cache are;
        ``default_data_dir()`` where it is not given.
      archive: the official CIFAR-10 archive (binary or Python version, a .tar.gz or
        unpacked), to be read instead of what is in ``data_dir``.
      archive_sha256: the checksum, in hex, of an ``archive`` that is not the official
        one but laid out like it, for example a small part of it.
      image_size: height and width that the images get; None: they keep theirs.
      fetch: whether CIFAR-10 may be downloaded.

    Returns:
      The data set. CIFAR-10 takes about half a second once it is in the cache.

    Raises:
      UserError: it cannot be had, is damaged, or is of another kind.
    """
    if name == "shapes" and not (archive or archive_sha256):
        return _fit(_make_shapes(), image_size)
    folder = expand_user(data_dir) if data_dir else default_data_dir()
    try:
        if own.is_own(name) and not (archive or archive_sha256):
            return own.load_own(name, folder, image_size)
        dataset = _load(name, folder, archive or None, archive_sha256 or None, fetch)
        return _fit(dataset, image_size)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error}") from error


def _fit(dataset: Dataset, size: int | None) -> Dataset:
    """The same with images of another size."""
    if size is None or dataset.train_images.shape[1:3] == (size, size):
        return dataset
    from cifar_flax.data.images import fit_array  # Pillow takes a while to load

    return make_dataset(
        dataset.name,
        fit_array(dataset.train_images, size),
        dataset.train_labels,
        fit_array(dataset.test_images, size),
        dataset.test_labels,
        dataset.class_names,
        source=f"{dataset.source}, resized to {size} x {size}",
    )


def _load(
    name: str,
    folder: pathlib.Path,
    archive: str | pathlib.Path | None,
    archive_sha256: str | None,
    fetch: bool,
) -> Dataset:
    if archive is not None:
        if name not in ("auto", "cifar10"):
            raise UserError(
                f"an archive of CIFAR-10 was given ({archive}) with dataset={name}; "
                f"use dataset=cifar10, or leave the archive out"
            )
        return _load_archive(pathlib.Path(archive), folder, archive_sha256)
    if archive_sha256 is not None:
        raise UserError(
            "archive_sha256 was given without an archive; give --data_archive, too"
        )
    if name in ("auto", "cifar10"):
        return _load_cifar10(folder, fall_back=name == "auto", fetch=fetch)
    check_name(name)
    dataset = _load_prepared(folder, name)
    if dataset is None:
        raise _not_prepared(folder, name)
    return dataset


def check_name(name: str) -> None:
    """Raises a UserError for what is not the name of a data set, known or not."""
    if own.is_own(str(name)):
        return
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,99}", str(name)):
        raise UserError(
            f"dataset is {str(name)[:100]!r}, which is not the name of a data set, "
            "such as cifar10, svhn_cropped, folder:PATH or npz:PATH"
        )


def _load_cifar10(data_dir: pathlib.Path, fall_back: bool, fetch: bool) -> Dataset:
    dataset = _load_prepared(data_dir, "cifar10")
    if dataset is not None:
        return dataset
    for folder in (data_dir, data_dir / "downloads" / "manual"):
        for name in OFFICIAL_SHA256:
            if (folder / name).exists():
                return _load_archive(folder / name, data_dir)
    if not fetch:
        raise UserError(f"CIFAR-10 is not in {data_dir}")
    try:
        path = download.fetch_cifar10(
            data_dir,
            url=download.ARCHIVE_URL,
            max_seconds=MAX_AUTO_SECONDS if fall_back else None,
        )
    except UserError as error:
        message = f"CIFAR-10 is not in {data_dir} and could not be fetched ({error})"
        remedy = (
            f"to get it, save {download.ARCHIVE_URL} in {data_dir} or pass "
            f"--data_archive=PATH"
        )
        if not fall_back:
            raise UserError(f"{message}; {remedy}") from error
        logger.warning(
            "%s: using the built-in data set 'shapes' instead; %s", message, remedy
        )
        return _make_shapes()
    try:
        tfds_source.prepare_cifar10(path, data_dir)
    except UserError as error:
        logger.warning("%s; reading the archive itself", error)
    return _load_prepared(data_dir, "cifar10") or _load_archive(path, data_dir)


def _load_archive(
    path: pathlib.Path, data_dir: pathlib.Path, sha256: str | None = None
) -> Dataset:
    archive = open_archive(path, sha256)
    dataset = cache.load_or_build(
        data_dir, "cifar10", archive.cache_key, lambda: read_archive(archive)
    )
    check_contents(archive, dataset)
    return dataclasses.replace(dataset, source=archive.source)


def _load_prepared(data_dir: pathlib.Path, name: str) -> Dataset | None:
    folder = tfds_source.prepared_folder(data_dir, name)
    if folder is None:
        return None
    return cache.load_or_build(
        data_dir,
        name,
        tfds_source.prepared_key(folder),
        lambda: tfds_source.read_prepared(folder, name),
    )


def _not_prepared(data_dir: pathlib.Path, name: str) -> UserError:
    if tfds_source.is_known(name):
        return UserError(
            f"{name} is not prepared in {data_dir / name}; prepare it with "
            f"tensorflow-datasets, which for most data sets needs TensorFlow, or give "
            f"its --data_dir"
        )
    return UserError(
        f"there is no data set {name}; use auto, cifar10, shapes, or one that "
        f"tensorflow-datasets has prepared in {data_dir}"
    )


def _make_shapes() -> Dataset:
    from cifar_flax.data.shapes import make_shapes

    return make_shapes()
