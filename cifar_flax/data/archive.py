"""The official CIFAR-10 archive: binary or Python version, packed or unpacked.

Nothing is extracted to disk. An archive is read only once its checksum is known: the
official one, or one that the user vouches for. Even then it is taken for hostile: sizes
are bounded, and members that point elsewhere are refused.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from cifar_flax.data.batches import (
    BINARY,
    PYTHON,
    RECORD,
    Layout,
    read_batch,
    read_class_names,
)
from cifar_flax.data.dataset import Dataset, make_dataset
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user

CLASS_NAMES = (
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
)
MEAN = (0.4914, 0.48216, 0.44653)
STD = (0.24703, 0.24349, 0.26159)
OFFICIAL_SIZES = (50_000, 10_000)  # training and test images

OFFICIAL_SHA256 = {
    "cifar-10-binary.tar.gz": (
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
    ),
    "cifar-10-python.tar.gz": (
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
    ),
}
# Of the unpacked Python version; none are published for the binary one.
OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}

# Bounds on what is read of an archive: it may be made to unpack to terabytes.
_MAX_OTHER = 2**20  # bytes of a member that is not one of CIFAR-10's files
_MAX_TOTAL = 512 * 2**20  # bytes altogether; the official archives have 184 MB
_MAX_MEMBERS = 1000


@dataclasses.dataclass(frozen=True)
class Archive:
    """An archive whose checksum has been verified as far as it can be.

    Attributes:
      path: the .tar.gz, or the folder that holds the files themselves.
      layout: of the folder; of a .tar.gz its members tell.
      checksum: sha256, in hex, of the .tar.gz, or of the six batches one after the
        other (training 1 to 5, test).
      cache_key: identifies all that is read: of a folder the class names, too.
      trust: 'official', by a published checksum; 'given', by the user's; or
        'unverified', an unpacked binary version, which has no published checksum.
    """

    path: pathlib.Path
    layout: Layout | None
    checksum: str
    cache_key: str
    trust: Literal["official", "given", "unverified"]

    @property
    def source(self) -> str:
        """Where the data come from, for a person to read."""
        kind = "folder" if self.layout else "archive"
        if self.trust == "given":
            return f"{kind} {self.path.name}, verified by the checksum given"
        return f"{self.trust} {kind} {self.path.name}"


def open_archive(path: str | pathlib.Path, sha256: str | None = None) -> Archive:
    """Finds an archive and verifies its checksum.

    Args:
      path: the .tar.gz, the unpacked folder, or the folder that holds that one.
      sha256: what the checksum must be, in hex; where it is not given, the official
        one.

    Returns:
      The archive, for ``read_archive``.

    Raises:
      UserError: it is missing, unreadable, or has another checksum.
    """
    path = expand_user(path)
    if sha256 is not None:
        sha256 = check_sha256(sha256)
    with _reading(path):
        if path.is_dir():
            return _open_folder(path, sha256)
        if not path.is_file():
            raise UserError(
                f"there is no archive {path}; give the path of "
                f"cifar-10-binary.tar.gz, cifar-10-python.tar.gz or the unpacked folder"
            )
        with path.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is None and checksum in OFFICIAL_SHA256.values():
        return Archive(path, None, checksum, checksum, "official")
    _require_given(path, checksum, sha256)
    return Archive(path, None, checksum, checksum, "given")


def check_sha256(sha256: str) -> str:
    """A checksum as hashlib writes it; UserError where it is none."""
    digits = sha256.strip().lower()
    if len(digits) != 64 or set(digits) - set("0123456789abcdef"):
        raise UserError(
            f"archive_sha256={sha256!r} is not a sha256; it must be 64 hex digits"
        )
    return digits


def read_archive(archive: Archive) -> Dataset:
    """Decodes an archive.

    Args:
      archive: from ``open_archive``.

    Returns:
      The data set 'cifar10', in the order of the files.

    Raises:
      UserError: it is damaged, refused as hostile, or not laid out as the official one.
    """
    path, layout = archive.path, archive.layout
    with _reading(path):
        if layout:
            files = {name: _read_file(path / name, layout) for name in layout.limits}
        else:
            layout, files = _read_tar(path)
    batches = []
    for name in layout.batches:
        content = files.pop(name)  # popped: its memory is needed for the images
        batches.append(read_batch(layout, f"{path}: {name}", content))
    *train, test = batches
    return make_dataset(
        "cifar10",
        np.concatenate([images for images, _ in train]),
        np.concatenate([labels for _, labels in train]),
        *test,
        read_class_names(layout, f"{path}: {layout.meta}", files[layout.meta]),
        source=archive.source,
        mean=MEAN,
        std=STD,
    )


def check_contents(archive: Archive, dataset: Dataset) -> None:
    """Checks that the data are CIFAR-10's as far as no checksum of the user's says so.

    Args:
      archive: what was read.
      dataset: what it gave, now or, kept in the cache, at another time.

    Raises:
      UserError: sizes or class names are not the official ones; or, in an unverified
        folder, the classes differ in size.
    """
    if archive.trust == "given":
        return
    hint = f"for another set pass --archive_sha256={archive.checksum}"
    if dataset.class_names != CLASS_NAMES:
        raise UserError(
            f"{archive.path} has the classes {', '.join(dataset.class_names)}, which "
            f"are not CIFAR-10's; {hint}"
        )
    for split, expected, labels in (
        ("training", OFFICIAL_SIZES[0], dataset.train_labels),
        ("test", OFFICIAL_SIZES[1], dataset.test_labels),
    ):
        counts = np.bincount(labels)
        even = len(set(counts)) == 1 or archive.trust == "official"
        if len(labels) != expected or not even:
            raise UserError(
                f"{archive.path} has {len(labels)} {split} images, of the classes "
                f"{counts.tolist()}; CIFAR-10 has {expected}, as many of each; {hint}"
            )


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns what damaged and unreadable files raise into a UserError."""
    try:
        yield
    except (
        *(gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError),
        *(ValueError, RecursionError),  # of tarfile, for headers that make no sense
    ) as error:
        raise UserError(
            f"{path} is not a whole .tar.gz archive ({error}); get it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _require_given(path: pathlib.Path, checksum: str, sha256: str | None) -> None:
    """Raises a UserError unless the user has vouched for this very checksum."""
    if sha256 is None:
        raise UserError(
            f"{path} has the sha256 {checksum}, which is not CIFAR-10's official one: "
            f"an incomplete download gives that, too; if you trust the file, pass "
            f"--data_archive={path} --archive_sha256={checksum}"
        )
    if sha256 != checksum:
        raise UserError(
            f"{path} has the sha256 {checksum}, not {sha256} as archive_sha256 says; "
            f"get it again, or correct archive_sha256"
        )


def _check_size(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(
            f"{where} has {size} bytes, more than the {limit} that are read; refused"
        )


def _find_folder(path: pathlib.Path) -> tuple[pathlib.Path, Layout]:
    # Python first: of an unpacked folder, that version alone can be verified.
    for layout in (PYTHON, BINARY):
        for folder in (path, path / layout.folder):
            if any((folder / name).is_file() for name in layout.batches):
                return folder, layout
    raise UserError(
        f"{path} does not hold CIFAR-10; give the path of the folder "
        f"{BINARY.folder} or {PYTHON.folder}, or of the .tar.gz"
    )


def _open_folder(path: pathlib.Path, sha256: str | None) -> Archive:
    path, layout = _find_folder(path)
    sha, md5, sizes = hashlib.sha256(), {}, []
    for name in layout.batches:
        content = _read_file(path / name, layout)
        sha.update(content)
        sizes.append(len(content))
        if layout is PYTHON and sha256 is None:
            md5[name] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    checksum = sha.hexdigest()
    sha.update(_read_file(path / layout.meta, layout))
    trust: Literal["official", "given", "unverified"] = "given"
    if md5 == OFFICIAL_MD5:
        trust = "official"
    elif sha256 is None and sizes == _official_binary_sizes():
        trust = "unverified"
    else:
        _require_given(path, checksum, sha256)
    return Archive(path, layout, checksum, sha.hexdigest(), trust)


def _official_binary_sizes() -> list[int]:
    train, test = OFFICIAL_SIZES
    return [*([train // 5 * RECORD] * 5), test * RECORD]


def _read_file(path: pathlib.Path, layout: Layout) -> bytes:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; unpack the archive again")
    _check_size(str(path), path.stat().st_size, layout.limits[path.name])
    return path.read_bytes()


class _Bounded:
    """Reads a stream, up to ``_MAX_TOTAL`` bytes in all."""

    def __init__(self, path: pathlib.Path, stream: gzip.GzipFile) -> None:
        self._path, self._stream, self._left = path, stream, _MAX_TOTAL

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(
                f"{self._path} unpacks to more than {_MAX_TOTAL} bytes; refused"
            )
        return data


def _read_tar(path: pathlib.Path) -> tuple[Layout, dict[str, bytes]]:
    """The files of a .tar.gz by name, and the layout they are of."""
    layouts = {layout.folder: layout for layout in (BINARY, PYTHON)}
    found: dict[str, dict[str, bytes]] = {}
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(gzip.open(path))
        bounded: Any = _Bounded(path, stream)  # reading is all that tarfile asks of it
        # "r|": a stream, read once and in order.
        tar = stack.enter_context(
            tarfile.open(fileobj=bounded, mode="r|", bufsize=2**20)
        )
        for count, member in enumerate(tar):
            where = f"{path}: {member.name[:200]!r}"
            folder, name = _safe_path(where, member)
            layout = layouts.get(folder)
            limit = layout.limits.get(name) if layout else None
            _check_size(where, member.size, _MAX_OTHER if limit is None else limit)
            if count >= _MAX_MEMBERS:
                raise UserError(f"{path} has over {_MAX_MEMBERS} members; refused")
            content = tar.extractfile(member)
            if limit is None or content is None:  # a folder, readme.html
                continue
            if name in found.setdefault(folder, {}):
                raise UserError(f"{where} is there twice; refused")
            found[folder][name] = content.read()
    if len(found) != 1:
        raise UserError(
            f"{path} must hold one of the folders {' and '.join(layouts)}, as the "
            f"official archives do, but holds {' and '.join(found) or 'neither'}"
        )
    ((folder, files),) = found.items()
    for name in layouts[folder].limits:
        if name not in files:
            raise UserError(f"{path} has no {folder}/{name}; get the archive again")
    return layouts[folder], files


def _safe_path(where: str, member: tarfile.TarInfo) -> tuple[str, str]:
    """Folder and name of a member, once it is a plain file or folder in its place."""
    name = pathlib.PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{where} points outside the archive; refused")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise UserError(
            f"{where} is not a plain file or folder but a link or device; refused"
        )
    return str(name.parent), name.name
