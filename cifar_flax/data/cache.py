"""Keeps decoded data sets on disk, so that the next run does not decode them again.

A file of this cache is an uncompressed .npz with the arrays and a line of JSON. The zip
format stores a CRC of each, so that reading detects damage.
"""

import contextlib
import contextvars
import logging
import pathlib
from collections.abc import Callable, Iterator

import msgspec
import numpy as np

from cifar_flax.data.dataset import Dataset, Statistics, by_field, make_dataset
from cifar_flax.data.values import Reading
from cifar_flax.files import InUseError, locked, remove_partial, replacing

# Increase it when decoding changes, so that files of older versions are not read.
VERSION = 1

_STORES = contextvars.ContextVar("stores", default=True)

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def only_read() -> Iterator[None]:
    """Stores nothing within a block, for a folder that somebody else has named."""
    before = _STORES.set(False)
    try:
        yield
    finally:
        _STORES.reset(before)


class _Details(msgspec.Struct):
    """The fields of a data set other than its arrays."""

    name: str
    class_names: tuple[str, ...]
    mean: Statistics
    std: Statistics
    fingerprint: str
    source: str
    reading: Reading | None = None  # older files lack it


def load_or_build(
    data_dir: pathlib.Path, name: str, key: str, build: Callable[[], Dataset]
) -> Dataset:
    """Loads the data set under ``key`` from the cache, or builds and stores it.

    The cache never makes loading fail: a damaged file is built again, and a file that
    cannot be written only causes a warning.

    Args:
      data_dir: the cache is its folder ``cifar_flax``.
      name: the data set's name.
      key: identifies the exact source by its content, for example by its checksum.
        Names, sizes and times of files do not: other files may have the same.
      build: reads and decodes the source.

    Returns:
      The data set, with the ``source`` of the run that stored it.
    """
    path = data_dir / "cifar_flax" / f"{name.replace('/', '_')}-v{VERSION}-{key}.npz"
    dataset = _load(path)
    if dataset is None:
        dataset = build()
        if _STORES.get():
            _store(path, dataset)
    return dataset


def _load(path: pathlib.Path) -> Dataset | None:
    try:
        if path.exists() and not path.is_file():
            raise ValueError("not a plain file")  # reading a pipe would block
        # Opened here, since np.load leaves the file of a damaged zip open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if any(member.compress_type for member in stored.zip.infolist()):
                raise ValueError("compressed, but files of this cache are not")
            arrays = dict(stored)
        details = msgspec.json.decode(arrays.pop("details").item(), type=_Details)
        return make_dataset(**arrays, **msgspec.structs.asdict(details))
    except FileNotFoundError:
        return None
    except Exception as error:  # after any damage, the source is still there
        logger.warning(
            "cannot read the cache %s (%s: %s); decoding again",
            path,
            type(error).__name__,
            error,
        )
        return None


def _store(path: pathlib.Path, dataset: Dataset) -> None:
    arrays = by_field(dataset.pairs)
    names = _Details.__struct_fields__
    details = _Details(**{name: getattr(dataset, name) for name in names})
    try:
        with locked(path.with_suffix(".lock"), wait=False):
            remove_partial(path)
            with replacing(path) as file:
                text = msgspec.json.encode(details).decode()
                np.savez(file, details=np.array(text), **arrays)
    except InUseError:
        pass  # another process stores the same file
    except OSError as error:
        logger.warning(
            "cannot write the cache %s (%s); it will be decoded again next time",
            path,
            error.strerror or error,
        )
