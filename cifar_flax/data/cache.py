"""Decoded data sets kept on disk, so that the next run need not decode them again.

A file of this cache is an uncompressed .npz: the arrays, and a line of JSON. The zip
format keeps a CRC of each, which finds damage while it reads.
"""

import logging
import pathlib
from collections.abc import Callable

import msgspec
import numpy as np

from cifar_flax.data.dataset import Dataset, Statistics, make_dataset
from cifar_flax.files import InUseError, locked, remove_partial, replacing

# Raise it when what is decoded changes, so that files of older versions are not read.
VERSION = 1

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_OPTIONAL = ("val_images", "val_labels")

logger = logging.getLogger(__name__)


class _Details(msgspec.Struct):
    """What a data set is beside its arrays."""

    name: str
    class_names: tuple[str, ...]
    mean: Statistics
    std: Statistics
    fingerprint: str
    source: str


def load_or_build(
    data_dir: pathlib.Path, name: str, key: str, build: Callable[[], Dataset]
) -> Dataset:
    """The data set under ``key`` in the cache; built, and stored, where it is not.

    The cache never makes loading fail: a damaged file is built again, and a file that
    cannot be written costs a warning.

    Args:
      data_dir: the cache is its folder ``cifar_flax``.
      name: the data set's name.
      key: identifies the exact source, for example by its checksum.
      build: reads and decodes the source.

    Returns:
      The data set. ``source`` is that of the run which stored it.
    """
    path = data_dir / "cifar_flax" / f"{name}-v{VERSION}-{key}.npz"
    dataset = _load(path)
    if dataset is None:
        dataset = build()
        _store(path, dataset)
    return dataset


def _load(path: pathlib.Path) -> Dataset | None:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a plain file")  # a pipe would be waited for
        # Opened here, since np.load leaves the file of a damaged zip open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if any(member.compress_type for member in stored.zip.infolist()):
                raise ValueError("compressed, which this cache never is")
            text = stored["details"].item()
            optional = [key for key in _OPTIONAL if key in stored.files]
            arrays = {key: stored[key] for key in (*_ARRAYS, *optional)}
        details = msgspec.json.decode(text, type=_Details)
        return make_dataset(**arrays, **msgspec.structs.asdict(details))
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever the damage is, the source is still there
        logger.warning(
            "cannot read the cache %s (%s: %s); decoding again",
            path,
            type(error).__name__,
            error,
        )
        return None


def _store(path: pathlib.Path, dataset: Dataset) -> None:
    optional = _OPTIONAL if dataset.has_validation else ()
    arrays = {key: getattr(dataset, key) for key in (*_ARRAYS, *optional)}
    names = _Details.__struct_fields__
    details = _Details(**{name: getattr(dataset, name) for name in names})
    try:
        with locked(path.with_suffix(".lock"), wait=False):
            remove_partial(path)
            with replacing(path) as file:
                text = msgspec.json.encode(details).decode()
                np.savez(file, details=np.array(text), **arrays)
    except InUseError:
        pass  # another process stores the same
    except OSError as error:
        logger.warning(
            "cannot write the cache %s (%s); it will be decoded again next time",
            path,
            error.strerror or error,
        )
