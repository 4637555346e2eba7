"""The official archives of CIFAR-10 and CIFAR-100, packed or unpacked.

Nothing is extracted to disk. An archive is read only if its checksum is the official
one or one that the user gives. Even then it may be hostile, so sizes are limited, and
members that point outside the archive are refused.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import pathlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np

from cifar_flax.data.batches import read_batch, read_class_names
from cifar_flax.data.cifar import CIFARS, Cifar, Layout
from cifar_flax.data.dataset import Dataset, by_field, make_dataset
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user

# Limits on what is read from an archive, which may unpack to terabytes.
_MAX_OTHER = 2**20  # bytes of a member that is not one of the files to read
_MAX_TOTAL = 512 * 2**20  # bytes altogether; the official archives have 187 MB
_MAX_MEMBERS = 1000


@dataclasses.dataclass(frozen=True)
class Archive:
    """An archive whose checksum has been verified as far as it can be.

    Attributes:
      path: the .tar.gz, or the folder that holds the files themselves.
      cifar: the data set that it holds.
      layout: the version of the archive.
      checksum: sha256, in hex, of the .tar.gz, or of the batches one after the other
        (training batches in their order, then the test batch).
      cache_key: identifies all that is read; for a folder also the class names.
      trust: 'official': verified by a published checksum; 'given': verified by the
        user's checksum; 'unverified': an unpacked binary version of the official sizes,
        which has no published checksum.
    """

    path: pathlib.Path
    cifar: Cifar
    layout: Layout
    checksum: str
    cache_key: str
    trust: Literal["official", "given", "unverified"]

    @property
    def source(self) -> str:
        """Where the data come from, in words."""
        kind = "folder" if self.path.is_dir() else "archive"
        if self.trust == "given":
            return f"{kind} {self.path.name}, verified by the checksum given"
        return f"{self.trust} {kind} {self.path.name}"


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """What an archive holds, in the order of its files.

    Attributes:
      images: images of 'train' and of 'test', uint8 [N, 32, 32, 3].
      labels: labels of both, by feature (see ``cifar.Labels``), uint8 [N].
      class_names: class names of each kind of label, by feature.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, dict[str, np.ndarray]]
    class_names: dict[str, tuple[str, ...]]


def open_archive(
    path: str | pathlib.Path, sha256: str | None = None, name: str | None = None
) -> Archive:
    """Finds an archive and verifies its checksum.

    Args:
      path: the .tar.gz, the unpacked folder, or the folder that contains the unpacked
        folder.
      sha256: checksum that the archive must have, in hex; None: an official one.
      name: name of the data set that the archive must hold; None: any.

    Returns:
      The archive, for ``read_archive``.

    Raises:
      UserError: the archive is missing or unreadable, has another checksum, or holds
        another data set.
    """
    path = expand_user(path)
    if sha256 is not None:
        sha256 = check_sha256(sha256)
    with _reading(path):
        if path.is_dir():
            archive = _open_folder(path, sha256, name)
        elif path.is_file():
            archive = _open_packed(path, sha256)
        else:
            raise UserError(
                f"there is no archive {path}; give the path of an official one, such "
                f"as {CIFARS[name or 'cifar10'].binary.archive}, or of its unpacked "
                f"folder"
            )
    if name is not None and name != archive.cifar.name:
        raise UserError(
            f"{path} is an archive of {archive.cifar.title}, and --dataset={name} is "
            f"another data set; use --dataset={archive.cifar.name}, or give an archive "
            f"of {CIFARS[name].title}"
        )
    return archive


def check_sha256(sha256: str) -> str:
    """Returns a checksum as hashlib writes it; raises a UserError if it is invalid."""
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
      The data set 'cifar10' or 'cifar100', in the order of the files, with the labels
      to train on.

    Raises:
      UserError: the archive is damaged, hostile, or has another layout.
    """
    contents, cifar = read_contents(archive), archive.cifar
    for of_split in contents.labels.values():
        _check_classes(archive, of_split["label"])
    pairs = {
        split: (images, contents.labels[split]["label"])
        for split, images in contents.images.items()
    }
    return make_dataset(
        cifar.name,
        class_names=contents.class_names["label"],
        source=archive.source,
        mean=cifar.mean,
        std=cifar.std,
        **by_field(pairs),
    )


def read_contents(archive: Archive) -> Contents:
    """Decodes an archive, with every kind of label; see ``read_archive``."""
    path, cifar, layout = archive.path, archive.cifar, archive.layout
    with _reading(path):
        if path.is_dir():
            files = _read_folder(path, cifar.limits(layout))
        else:
            _, _, files = _read_tar(path)
    batches = [  # popped, since the images need the memory
        read_batch(cifar, layout, f"{path}: {name}", files.pop(name))
        for name in layout.batches
    ]
    splits = {"train": batches[:-1], "test": batches[-1:]}
    return Contents(
        {
            split: np.concatenate([images for images, _ in parts])
            for split, parts in splits.items()
        },
        {
            split: {
                kind.feature: np.concatenate([of[kind.feature] for _, of in parts])
                for kind in cifar.labels
            }
            for split, parts in splits.items()
        },
        {
            kind.feature: read_class_names(kind, layout, f"{path}: {name}", files[name])
            for kind, name in zip(cifar.labels, layout.names, strict=True)
        },
    )


@contextlib.contextmanager
def _reading(path: pathlib.Path) -> Iterator[None]:
    """Turns the errors of damaged and unreadable files into a UserError."""
    try:
        yield
    except (
        *(gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError),
        *(ValueError, RecursionError),  # from tarfile, for invalid headers
    ) as error:
        raise UserError(
            f"{path} is not a complete .tar.gz archive ({error}); get it again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _require_given(path: pathlib.Path, checksum: str, sha256: str | None) -> None:
    """Raises a UserError unless the user gave this checksum."""
    if sha256 is None:
        raise UserError(
            f"{path} has the sha256 {checksum}, which is not an official one; the "
            f"file may be an incomplete download; if you trust it, pass "
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
            f"{where} has {size} bytes, more than the limit of {limit}; refused"
        )


def _versions() -> list[tuple[Cifar, Layout]]:
    """Returns every archive that can be read."""
    return [(cifar, layout) for cifar in CIFARS.values() for layout in cifar.layouts]


def _open_packed(path: pathlib.Path, sha256: str | None) -> Archive:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    for cifar, layout in _versions():
        if sha256 is None and checksum == layout.sha256:
            return Archive(path, cifar, layout, checksum, checksum, "official")
    _require_given(path, checksum, sha256)
    cifar, layout, _ = _read_tar(path, only_version=True)
    return Archive(path, cifar, layout, checksum, checksum, "given")


def _find_folder(
    path: pathlib.Path, name: str | None
) -> tuple[pathlib.Path, Cifar, Layout]:
    """Finds the folder with the files, preferably of the data set ``name``."""
    for cifar, layout in sorted(_versions(), key=lambda pair: pair[0].name != name):
        for folder in (path, path / layout.folder):
            if any((folder / batch).is_file() for batch in layout.batches):
                return folder, cifar, layout
    cifar = CIFARS[name or "cifar10"]
    raise UserError(
        f"{path} holds no files of an official archive; give the path of a folder such "
        f"as {cifar.binary.folder} or {cifar.python.folder}, or of the .tar.gz"
    )


def _open_folder(path: pathlib.Path, sha256: str | None, name: str | None) -> Archive:
    path, cifar, layout = _find_folder(path, name)
    contents = _read_folder(path, cifar.limits(layout))
    sha = hashlib.sha256()
    for file in layout.batches:
        sha.update(contents[file])
    checksum = sha.hexdigest()
    for file in dict.fromkeys(layout.names):
        sha.update(contents[file])
    md5 = {
        file: hashlib.md5(contents[file], usedforsecurity=False).hexdigest()
        for file in layout.md5
    }
    trust: Literal["official", "given", "unverified"] = "given"
    if sha256 is None and md5 and md5 == layout.md5:
        trust = "official"
    elif sha256 is None and _has_official_sizes(cifar, layout, contents):
        trust = "unverified"
    else:
        _require_given(path, checksum, sha256)
    return Archive(path, cifar, layout, checksum, sha.hexdigest(), trust)


def _has_official_sizes(
    cifar: Cifar, layout: Layout, contents: dict[str, bytes]
) -> bool:
    """Returns whether batches have the official sizes; those of pickles may vary."""
    (train, test), parts = cifar.sizes, len(layout.batches) - 1
    sizes = [*[train // parts * cifar.record] * parts, test * cifar.record]
    found = [len(contents[batch]) for batch in layout.batches]
    return not layout.pickled and found == sizes


def _check_classes(archive: Archive, labels: np.ndarray) -> None:
    """Raises a UserError unless the classes of an unverified folder are equally large.

    Random bytes of the right size, or another data set, would be noticed here.
    """
    counts = np.bincount(labels)
    if archive.trust == "unverified" and len(set(counts)) > 1:
        raise UserError(
            f"{archive.path} has from {counts.min()} to {counts.max()} images of a "
            f"class; {archive.cifar.title} has equally many of each; for another set "
            f"pass --archive_sha256={archive.checksum}"
        )


def _read_folder(folder: pathlib.Path, limits: dict[str, int]) -> dict[str, bytes]:
    """Reads files of a folder, each up to its limit in bytes."""
    files = {}
    for name, limit in limits.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{folder} has no {name}; unpack the archive again")
        _check_size(str(path), path.stat().st_size, limit)
        files[name] = path.read_bytes()
    return files


class _Bounded(gzip.GzipFile):
    """A .gz file of which up to ``_MAX_TOTAL`` bytes are unpacked."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.tell() > _MAX_TOTAL:
            raise UserError(
                f"{self.name} unpacks to more than {_MAX_TOTAL} bytes; refused"
            )
        return data


def _read_tar(
    path: pathlib.Path, only_version: bool = False
) -> tuple[Cifar, Layout, dict[str, bytes]]:
    """Reads the files of a .tar.gz; refuses hostile members.

    Args:
      path: of the archive.
      only_version: whether to stop at the first file, which shows the version.
    """
    known = {of.folder: (cifar, of) for cifar, of in _versions()}
    files: dict[str, bytes] = {}
    folders: list[str] = []
    # "r|": a stream, read once and in order.
    with (
        _Bounded(path) as stream,
        tarfile.open(fileobj=stream, mode="r|", bufsize=2**20) as tar,
    ):
        for count, member in enumerate(tar):
            where = f"{path}: {member.name[:200]!r}"
            folder, name = _safe_path(where, member)
            cifar, layout = known.get(folder, (None, None))
            limits = cifar.limits(layout) if cifar and layout else {}
            _check_size(where, member.size, limits.get(name, _MAX_OTHER))
            if count >= _MAX_MEMBERS:
                raise UserError(f"{path} has over {_MAX_MEMBERS} members; refused")
            content = tar.extractfile(member)
            if name not in limits or content is None:  # a folder or readme.html
                continue
            if folder not in folders:
                folders.append(folder)
            if only_version or len(folders) > 1:
                break
            if name in files:
                raise UserError(f"{path}: '{folder}/{name}' is there twice; refused")
            files[name] = content.read()
    if len(folders) != 1:
        raise UserError(
            f"{path} must hold one of the folders {', '.join(known)}, as the official "
            f"archives do, but holds {' and '.join(folders) or 'none of them'}"
        )
    cifar, layout = known[folders[0]]
    missing = [name for name in cifar.limits(layout) if name not in files]
    if missing and not only_version:
        raise UserError(
            f"{path} has no {layout.folder}/{missing[0]}; get the archive again"
        )
    return cifar, layout, files


def _safe_path(where: str, member: tarfile.TarInfo) -> tuple[str, str]:
    """Returns a member's folder and name; refuses links, devices and outside paths."""
    name = pathlib.PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts:
        raise UserError(f"{where} points outside the archive; refused")
    if not (member.isdir() or member.isreg()) or member.issparse():
        raise UserError(
            f"{where} is not a plain file or folder but a link or device; refused"
        )
    return str(name.parent), name.name
