"""CIFAR-10 and CIFAR-100: their official archives and sizes."""

import dataclasses

from cifar_flax.data.dataset import Statistics

PIXELS = 3 * 32 * 32  # bytes of an image: the red, the green, then the blue plane

_MAX_NAMES = 2**16  # largest file of class names that is read, in bytes


@dataclasses.dataclass(frozen=True)
class Labels:
    """One kind of label, which every image has.

    Attributes:
      feature: its name in tensorflow-datasets; 'label' is the one to train on.
      num_classes: labels are from 0 to ``num_classes`` - 1.
      key: key of the labels in a pickled batch.
      names_key: key of the class names in a pickled file.
    """

    feature: str
    num_classes: int
    key: str
    names_key: str


@dataclasses.dataclass(frozen=True)
class Layout:
    """A version of an archive, with the names of its files.

    Attributes:
      archive: name of the .tar.gz.
      sha256: checksum of the official .tar.gz, in hex.
      folder: folder in the archive that holds the files.
      batches: the training files in their order, and the test file.
      names: for each kind of label, the file that holds its class names.
      pickled: True for the Python version, False for the binary one.
      md5: published checksums of unpacked files; the binary versions have none.
    """

    archive: str
    sha256: str
    folder: str
    batches: tuple[str, ...]
    names: tuple[str, ...]
    pickled: bool
    md5: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Cifar:
    """A data set with official archives.

    Attributes:
      name: name for ``load_dataset``, the same as in tensorflow-datasets.
      title: name to display.
      url: address of the binary archive.
      num_bytes: size of the binary archive.
      python: layout of the Python version.
      binary: layout of the binary version.
      labels: kinds of labels, in the order of their bytes in a binary record.
      sizes: numbers of training and of test images.
      max_batch: largest batch file that is read, in bytes; the official ones have about
        half this size.
      mean: per channel, of pixels / 255; None: computed from the training images.
      std: per channel, as ``mean``.
    """

    name: str
    title: str
    url: str
    num_bytes: int
    python: Layout
    binary: Layout
    labels: tuple[Labels, ...]
    sizes: tuple[int, int]
    max_batch: int
    mean: Statistics | None = None
    std: Statistics | None = None

    @property
    def layouts(self) -> tuple[Layout, Layout]:
        """Both layouts, Python first: only its unpacked files have checksums."""
        return self.python, self.binary

    @property
    def record(self) -> int:
        """Bytes of a record in the binary version: the labels and an image."""
        return len(self.labels) + PIXELS

    def limits(self, layout: Layout) -> dict[str, int]:
        """Returns the largest size of each file that is read, in bytes."""
        batches = dict.fromkeys(layout.batches, self.max_batch)
        return batches | dict.fromkeys(layout.names, _MAX_NAMES)


_CIFAR10 = Cifar(
    name="cifar10",
    title="CIFAR-10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    num_bytes=170_052_171,
    python=Layout(
        archive="cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        folder="cifar-10-batches-py",
        batches=(*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
        names=("batches.meta",),
        pickled=True,
        md5={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
        },
    ),
    binary=Layout(
        archive="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        batches=(*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
        names=("batches.meta.txt",),
        pickled=False,
    ),
    labels=(Labels("label", 10, "labels", "label_names"),),
    sizes=(50_000, 10_000),
    max_batch=64 * 2**20,
    mean=(0.4914, 0.48216, 0.44653),
    std=(0.24703, 0.24349, 0.26159),
)

_CIFAR100 = Cifar(
    name="cifar100",
    title="CIFAR-100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    num_bytes=168_513_733,
    python=Layout(
        archive="cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        folder="cifar-100-python",
        batches=("train", "test"),
        names=("meta", "meta"),
        pickled=True,
        md5={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
    binary=Layout(
        archive="cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        batches=("train.bin", "test.bin"),
        names=("coarse_label_names.txt", "fine_label_names.txt"),
        pickled=False,
    ),
    labels=(
        Labels("coarse_label", 20, "coarse_labels", "coarse_label_names"),
        Labels("label", 100, "fine_labels", "fine_label_names"),
    ),
    sizes=(50_000, 10_000),
    max_batch=320 * 2**20,
)

CIFARS = {cifar.name: cifar for cifar in (_CIFAR10, _CIFAR100)}
