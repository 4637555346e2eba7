"""Decoded data sets kept on disk, so that the next run need not decode them again.

A file of this cache is an uncompressed .npz: the four arrays, and a line of JSON. The
zip format keeps a CRC of each, which finds damage while it reads.
"""

import json
import logging
import pathlib
from collections.abc import Callable

import numpy as np

from cifar_flax.data.dataset import Dataset, Statistics, make_dataset
from cifar_flax.files import replacing

# Raise it when what is decoded changes, so that files of older versions are not read.
VERSION = 1

_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_DETAILS = ("name", "class_names", "mean", "std", "fingerprint", "source")

logger = logging.getLogger(__name__)


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
            details = json.loads(stored["details"].item())
            arrays = {key: stored[key] for key in _ARRAYS}
        for key in ("class_names", "mean", "std"):
            details[key] = tuple(details[key])
        _check_details(**details)
        return make_dataset(**arrays, **details)
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


def _check_details(
    name: str,
    class_names: tuple[str, ...],
    mean: Statistics,
    std: Statistics,
    fingerprint: str,
    source: str,
) -> None:
    """Raises an error where they are not what was stored; the arrays have a check."""
    "\n".join([name, *class_names, fingerprint, source]).encode()
    if not (len(mean) == len(std) == 3 and np.isfinite([mean, std]).all()):
        raise ValueError("mean and std are not three numbers each")
    if not min(std) > 0:
        raise ValueError("a std is not above 0")


def _store(path: pathlib.Path, dataset: Dataset) -> None:
    arrays = {key: getattr(dataset, key) for key in _ARRAYS}
    details = json.dumps({key: getattr(dataset, key) for key in _DETAILS})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(file, details=np.array(details), **arrays)
    except OSError as error:
        logger.warning(
            "cannot write the cache %s (%s); it will be decoded again next time",
            path,
            error.strerror or error,
        )
