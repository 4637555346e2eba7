"""Tiny archives in the official CIFAR-10 layouts, and what must be read from them.

The bytes are put together here from the formats' descriptions, not by the code under
test.
"""

import dataclasses
import hashlib
import io
import pathlib
import struct
import tarfile
from collections.abc import Mapping, Sequence

import numpy as np

from cifar_flax.data import archive

CLASS_NAMES = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]
BINARY_FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """The pixels and labels of a tiny CIFAR-10: five training batches and a test one.

    Each batch has ``n`` images, uint8 [n, 32, 32, 3], as many of each class.
    """

    batches: list[tuple[np.ndarray, np.ndarray]]

    @property
    def train_images(self):
        return np.concatenate([images for images, _ in self.batches[:5]])

    @property
    def train_labels(self):
        return np.concatenate([labels for _, labels in self.batches[:5]])

    @property
    def test_images(self):
        return self.batches[5][0]

    @property
    def test_labels(self):
        return self.batches[5][1]


def make_arrays(n: int = 10, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return Arrays(
        [
            (
                rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
                rng.permutation(np.arange(n) % 10),
            )
            for _ in range(6)
        ]
    )


def binary_files(arrays: Arrays) -> dict[str, bytes]:
    """The files of the binary version: records of a label and three colour planes."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    files = {"batches.meta.txt": "".join(f"{c}\n" for c in CLASS_NAMES).encode()}
    for name, (images, labels) in zip(names, arrays.batches, strict=True):
        files[name] = b"".join(
            bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
            for image, label in zip(images, labels, strict=True)
        )
    return files


def python_files(arrays: Arrays) -> dict[str, bytes]:
    """The files of the Python version, pickled as by Python 2, as the official are."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = {
        "batches.meta": python2_pickle(
            {
                b"num_cases_per_batch": 10_000,
                b"label_names": [name.encode() for name in CLASS_NAMES],
                b"num_vis": 3072,
            }
        )
    }
    for name, (images, labels) in zip(names, arrays.batches, strict=True):
        files[name] = python2_pickle(
            {
                b"batch_label": f"batch {name}".encode(),
                b"labels": labels.tolist(),
                b"data": planes(images),
                b"filenames": [f"{i}.png".encode() for i in range(len(images))],
            }
        )
    return files


def planes(images: np.ndarray) -> np.ndarray:
    """Rows of 1024 red, 1024 green and 1024 blue values, uint8 [N, 3072]."""
    return np.stack(
        [np.concatenate([image[:, :, c].ravel() for c in range(3)]) for image in images]
    )


def python2_pickle(value: object) -> bytes:
    """A protocol 2 pickle with the opcodes that Python 2 wrote (its text is bytes)."""
    return b"\x80\x02" + _pickled(value) + b"."


def _pickled(value: object) -> bytes:
    if isinstance(value, dict):
        items = b"".join(_pickled(k) + _pickled(v) for k, v in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(_pickled, value)) + b"e"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    assert isinstance(value, np.ndarray)
    return pickled_array(value.shape, b"u1", _pickled(value.tobytes()))


def pickled_array(shape: Sequence[int], code: bytes, content: bytes) -> bytes:
    """The opcodes of an ndarray; ``content`` are the opcodes of its data."""
    dtype = (
        b"cnumpy\ndtype\n(U" + bytes([len(code)]) + code + b"K\x00K\x01tR"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
        b"(K\x01(" + b"".join(map(_pickled, shape)) + b"t" + dtype + b"\x89"
        b"" + content + b"tb"
    )


def write_folder(folder: pathlib.Path, files: Mapping[str, bytes]) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(
    path: pathlib.Path,
    folder: str,
    files: Mapping[str, bytes],
    extra: Sequence[tuple[tarfile.TarInfo, bytes]] = (),
) -> pathlib.Path:
    """Packs ``files`` as the official archive does; ``extra`` members come first."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for member, content in extra:
            tar.addfile(member, io.BytesIO(content))
        for name, content in {**files, "readme.html": b"<html>"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_binary_archive(path: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    return write_tar(path, BINARY_FOLDER, binary_files(arrays))


def write_python_archive(path: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    return write_tar(path, PYTHON_FOLDER, python_files(arrays))


def tiny_data(folder: pathlib.Path) -> list[str]:
    """Flags of a run on 450 training, 50 validation and 100 test images."""
    path = write_binary_archive(folder / "cifar-10-binary.tar.gz", make_arrays(100))
    return [
        f"--data_archive={path}",
        f"--archive_sha256={sha256(path)}",
        f"--data_dir={folder}",
        "--val_size=50",
        "--batch_size=30",
    ]


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def batches_sha256(files: Mapping[str, bytes]) -> str:
    """Of the six batches one after the other, which is the checksum of a folder."""
    names = sorted(name for name in files if "data_batch" in name or "test" in name)
    return hashlib.sha256(b"".join(files[name] for name in names)).hexdigest()


def make_official(monkeypatch, path: pathlib.Path, arrays: Arrays) -> None:
    """Lets a tiny archive pass for the official one."""
    monkeypatch.setitem(archive.OFFICIAL_SHA256, "cifar-10-binary.tar.gz", sha256(path))
    sizes = (len(arrays.train_labels), len(arrays.test_labels))
    monkeypatch.setattr(archive, "OFFICIAL_SIZES", sizes)


def assert_holds(dataset, arrays: Arrays) -> None:
    """Asserts that a data set has exactly these images and labels, in this order."""
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(dataset, key), getattr(arrays, key))
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.class_names == tuple(CLASS_NAMES)
