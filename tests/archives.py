"""Tiny archives in the official layouts, and their expected content.

The bytes are made from the descriptions of the formats, not by the code under
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
import pytest

from cifar_flax.data import cifar

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

# The classes of CIFAR-100 by superclass, from the page of the data set.
SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
COARSE_NAMES = list(SUPERCLASSES)
FINE_NAMES = sorted(" ".join(SUPERCLASSES.values()).split())


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of the two data sets, with the names of its files and classes."""

    name: str
    title: str
    class_names: list[str]
    binary_folder: str
    binary_names: list[str]
    python_folder: str
    python_names: list[str]

    @property
    def meta(self):
        """Name of the file with the class names in the Python version."""
        return "batches.meta" if self.name == "cifar10" else "meta"


CIFAR10 = Kind(
    "cifar10",
    "CIFAR-10",
    CLASS_NAMES,
    BINARY_FOLDER,
    [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"],
    PYTHON_FOLDER,
    [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"],
)
CIFAR100 = Kind(
    "cifar100",
    "CIFAR-100",
    FINE_NAMES,
    "cifar-100-binary",
    ["train.bin", "test.bin"],
    "cifar-100-python",
    ["train", "test"],
)
KINDS = {kind.name: kind for kind in (CIFAR10, CIFAR100)}
KIND_OF = {
    folder: kind
    for kind in KINDS.values()
    for folder in (kind.binary_folder, kind.python_folder)
}

both_kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """The pixels and labels of a tiny data set: training batches and a test batch.

    Each batch has ``n`` images, uint8 [n, 32, 32, 3], as many of each class.
    """

    batches: list[tuple[np.ndarray, np.ndarray]]
    kind: Kind = CIFAR10

    @property
    def train_images(self):
        return np.concatenate([images for images, _ in self.batches[:-1]])

    @property
    def train_labels(self):
        return np.concatenate([labels for _, labels in self.batches[:-1]])

    @property
    def test_images(self):
        return self.batches[-1][0]

    @property
    def test_labels(self):
        return self.batches[-1][1]


def coarse(labels: np.ndarray) -> np.ndarray:
    """The superclasses of CIFAR-100's labels."""
    lists = [names.split() for names in SUPERCLASSES.values()]
    of = [next(i for i, some in enumerate(lists) if n in some) for n in FINE_NAMES]
    return np.array(of)[labels]


def make_arrays(n: int | None = None, seed: int = 0, kind: Kind = CIFAR10) -> Arrays:
    """Makes ``n`` images per batch; None: one image of each class."""
    rng, classes = np.random.default_rng(seed), len(kind.class_names)
    n = classes if n is None else n
    return Arrays(
        [
            (
                rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8),
                rng.permutation(np.arange(n) % classes),
            )
            for _ in kind.binary_names
        ],
        kind,
    )


def binary_files(arrays: Arrays) -> dict[str, bytes]:
    """The files of the binary version: records of labels and three colour planes."""
    kind, files = arrays.kind, {}
    for name, (images, labels) in zip(kind.binary_names, arrays.batches, strict=True):
        columns = [labels] if kind is CIFAR10 else [coarse(labels), labels]
        files[name] = b"".join(
            bytes(first) + b"".join(image[:, :, c].tobytes() for c in range(3))
            for image, *first in zip(images, *columns, strict=True)
        )
    if kind is CIFAR10:
        files["batches.meta.txt"] = lines(CLASS_NAMES)
    else:
        files["coarse_label_names.txt"] = lines(COARSE_NAMES)
        files["fine_label_names.txt"] = lines(FINE_NAMES)
    return files


def lines(names: Sequence[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def python_files(arrays: Arrays) -> dict[str, bytes]:
    """The files of the Python version, pickled as by Python 2, as the official are."""
    kind = arrays.kind
    files = {kind.meta: python2_pickle(class_name_lists(kind))}
    for name, (images, labels) in zip(kind.python_names, arrays.batches, strict=True):
        files[name] = python2_pickle(
            {
                b"batch_label": f"batch {name}".encode(),
                **label_lists(kind, labels),
                b"data": planes(images),
                b"filenames": [f"{i}.png".encode() for i in range(len(images))],
            }
        )
    return files


def class_name_lists(kind: Kind) -> dict[bytes, object]:
    """Returns the content of the Python version's file of class names."""
    if kind is CIFAR10:
        return {
            b"num_cases_per_batch": 10_000,
            b"label_names": [name.encode() for name in CLASS_NAMES],
            b"num_vis": 3072,
        }
    return {
        b"fine_label_names": [name.encode() for name in FINE_NAMES],
        b"coarse_label_names": [name.encode() for name in COARSE_NAMES],
    }


def label_lists(kind: Kind, labels: np.ndarray) -> dict[bytes, list[int]]:
    """Returns the labels of a batch as in the Python version."""
    if kind is CIFAR10:
        return {b"labels": labels.tolist()}
    fine, superclasses = labels.tolist(), coarse(labels).tolist()
    return {b"fine_labels": fine, b"coarse_labels": superclasses}


def files_of(folder: str, arrays: Arrays) -> dict[str, bytes]:
    """Returns the files of the version with that folder."""
    is_binary = folder == arrays.kind.binary_folder
    return (binary_files if is_binary else python_files)(arrays)


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
    return write_tar(path, arrays.kind.binary_folder, binary_files(arrays))


def write_python_archive(path: pathlib.Path, arrays: Arrays) -> pathlib.Path:
    return write_tar(path, arrays.kind.python_folder, python_files(arrays))


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
    """Returns the checksum of all batches of a folder."""
    for kind in KINDS.values():
        for names in (kind.binary_names, kind.python_names):
            if names[0] in files:
                content = b"".join(files[name] for name in names)
    return hashlib.sha256(content).hexdigest()


def change(monkeypatch, name: str, **changes) -> None:
    """Changes the description of an official data set in the code."""
    changed = dataclasses.replace(cifar.CIFARS[name], **changes)
    monkeypatch.setitem(cifar.CIFARS, name, changed)


def change_layout(monkeypatch, name: str, version: str, **changes) -> None:
    """Changes the description of its 'binary' or 'python' version."""
    layout = dataclasses.replace(getattr(cifar.CIFARS[name], version), **changes)
    change(monkeypatch, name, **{version: layout})


def make_official(monkeypatch, path: pathlib.Path, arrays: Arrays) -> None:
    """Makes a tiny archive count as the official one of its version."""
    version = "python" if "python" in path.name else "binary"
    change_layout(monkeypatch, arrays.kind.name, version, sha256=sha256(path))
    sizes = (len(arrays.train_labels), len(arrays.test_labels))
    change(monkeypatch, arrays.kind.name, sizes=sizes)


def assert_holds(dataset, arrays: Arrays) -> None:
    """Asserts that a data set has exactly these images and labels, in this order."""
    for key in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(dataset, key), getattr(arrays, key))
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.class_names == tuple(arrays.kind.class_names)
