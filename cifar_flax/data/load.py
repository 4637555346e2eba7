"""Loads a data set by its name: from disk, from the network, or built in."""

import dataclasses
import logging
import os
import pathlib
import re

from cifar_flax.data import cache, download, own, tfds_source
from cifar_flax.data.archive import open_archive, read_archive
from cifar_flax.data.cifar import CIFARS, Cifar
from cifar_flax.data.dataset import Dataset, by_field, make_dataset
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user

# With name='auto' a longer download is not started.
MAX_AUTO_SECONDS = 15 * 60

# Name of a set of tensorflow-datasets, and a configuration, but not a version.
_NAME = r"[a-z][a-z0-9_]{0,99}(/(?!\d+\.\d+\.\d+$)[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})?"

logger = logging.getLogger(__name__)


def default_data_dir() -> pathlib.Path:
    """Returns the folder of tensorflow-datasets: TFDS_DATA_DIR, or its default."""
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
      name: 'cifar10' or 'cifar100' (with its 100 fine labels); 'shapes', which is
        built in; 'auto', which is the data set of ``archive`` if that is given, else
        CIFAR-10 if it is on disk or quickly downloaded, else 'shapes' with a warning;
        the name of a data set that tensorflow-datasets has prepared, with class labels
        and images of one size, if need be as name/configuration; 'folder:PATH' or
        'npz:PATH', see ``data.own``.
      data_dir: folder of prepared data sets, archives and this project's cache; None:
        ``default_data_dir()``.
      archive: an official archive of CIFAR-10 or CIFAR-100 (binary or Python version,
        a .tar.gz or unpacked), which is read instead of ``data_dir``.
      archive_sha256: checksum, in hex, of an ``archive`` that is not official but has
        the same layout, for example a small part of it.
      image_size: height and width to resize images to; None: they keep their size.
      fetch: whether CIFAR-10 may be downloaded.

    Returns:
      The data set. CIFAR-10 takes about half a second once it is in the cache.

    Raises:
      UserError: the data set is not available, is damaged, or is of another kind.
    """
    given = archive or archive_sha256
    if name == "shapes" and not given:
        return _fit(_load_shapes(data_dir), image_size)
    folder = expand_user(data_dir) if data_dir else default_data_dir()
    try:
        if own.is_own(name) and not given:
            return own.load_own(name, folder, image_size)
        dataset = _load(name, folder, archive or None, archive_sha256 or None, fetch)
        return _fit(dataset, image_size)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or folder}: {error}") from error


def _fit(dataset: Dataset, size: int | None) -> Dataset:
    """Returns the data set with images of another size."""
    if size is None or dataset.train_images.shape[1:3] == (size, size):
        return dataset
    from cifar_flax.data.images import fit_array  # Pillow takes a while to load

    pairs = {
        split: (fit_array(images, size), labels)
        for split, (images, labels) in dataset.pairs.items()
    }
    return make_dataset(
        dataset.name,
        class_names=dataset.class_names,
        source=f"{dataset.source}, resized to {size} x {size}",
        reading=dataset.reading,
        **by_field(pairs),
    )


def _load(
    name: str,
    folder: pathlib.Path,
    archive: str | pathlib.Path | None,
    archive_sha256: str | None,
    fetch: bool,
) -> Dataset:
    if archive is not None:
        if name not in ("auto", *CIFARS):
            raise UserError(
                f"an archive was given ({archive}) with dataset={name}; use "
                f"dataset={' or '.join(CIFARS)}, or leave the archive out"
            )
        wanted = None if name == "auto" else name
        return _load_archive(pathlib.Path(archive), folder, archive_sha256, wanted)
    if archive_sha256 is not None:
        raise UserError(
            "archive_sha256 was given without an archive; also give --data_archive"
        )
    if name in ("auto", *CIFARS):
        cifar = CIFARS["cifar10" if name == "auto" else name]
        return _load_cifar(cifar, folder, fall_back=name == "auto", fetch=fetch)
    check_name(name)
    dataset = _load_prepared(folder, name)
    if dataset is None:
        raise _not_prepared(folder, name)
    return dataset


def check_name(name: str) -> None:
    """Raises a UserError for an invalid name; an unknown data set is not an error."""
    if own.is_own(str(name)):
        return
    if not re.fullmatch(_NAME, str(name)):
        raise UserError(
            f"dataset is {str(name)[:100]!r}, which is not the name of a data set, "
            "such as cifar10, svhn_cropped, emnist/letters, folder:PATH or npz:PATH"
        )


def _load_cifar(
    cifar: Cifar, data_dir: pathlib.Path, fall_back: bool, fetch: bool
) -> Dataset:
    dataset = _load_prepared(data_dir, cifar.name)
    if dataset is not None:
        return dataset
    names = [layout.archive for layout in (cifar.binary, cifar.python)]
    names += [layout.folder for layout in cifar.layouts]
    for folder in (data_dir, data_dir / "downloads" / "manual"):
        for name in names:
            if (folder / name).exists():
                return _load_archive(folder / name, data_dir, name=cifar.name)
    if not fetch:
        raise UserError(f"{cifar.title} is not in {data_dir}")
    try:
        path = download.fetch_cifar(
            cifar.name, data_dir, max_seconds=MAX_AUTO_SECONDS if fall_back else None
        )
    except UserError as error:
        what = f"{cifar.title} is not in {data_dir} and could not be fetched ({error})"
        remedy = f"save {cifar.url} in {data_dir} or pass --data_archive=PATH"
        if not fall_back:
            raise UserError(f"{what}; to get it, {remedy}") from error
        logger.warning(
            "%s: using the built-in data set 'shapes' instead; to get it, %s",
            what,
            remedy,
        )
        return _load_shapes(data_dir)
    if tfds_source.can_prepare():
        try:
            tfds_source.prepare_cifar(cifar.name, path, data_dir)
        except UserError as error:
            logger.warning("%s; reading the archive itself", error)
    dataset = _load_prepared(data_dir, cifar.name)
    return dataset or _load_archive(path, data_dir, name=cifar.name)


def _load_archive(
    path: pathlib.Path,
    data_dir: pathlib.Path,
    sha256: str | None = None,
    name: str | None = None,
) -> Dataset:
    archive = open_archive(path, sha256, name)
    dataset = cache.load_or_build(
        data_dir, archive.cifar.name, archive.cache_key, lambda: read_archive(archive)
    )
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
        f"there is no data set {name}; use auto, {', '.join(CIFARS)}, shapes, or one "
        f"that tensorflow-datasets has prepared in {data_dir}"
    )


def _load_shapes(data_dir: str | pathlib.Path | None) -> Dataset:
    from cifar_flax.data import shapes

    try:
        folder = expand_user(data_dir) if data_dir else default_data_dir()
    except UserError:
        if data_dir:
            raise
        return shapes.make_shapes()  # without a home folder there is no cache
    return cache.load_or_build(folder, "shapes", shapes.cache_key(), shapes.make_shapes)
