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
from collections.abc import Generator, Iterable, Iterator
from typing import IO, Any, Literal

import numpy as np

from cifar_flax.data.batches import read_batch, read_class_names
from cifar_flax.data.cifar import CIFARS, Cifar, Layout
from cifar_flax.data.dataset import Dataset, make_dataset
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user

# Limits on what is read from an archive, which may unpack to terabytes.
_MAX_OTHER = 2**20  # bytes of a member that is not one of the files to read
_MAX_TOTAL = 512 * 2**20  # bytes altogether; the official archives have 187 MB
_MAX_MEMBERS = 1000


Trust = Literal["official", "given", "unverified"]


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
        user's checksum; 'unverified': an unpacked binary version, which has no
        published checksum.
    """

    path: pathlib.Path
    cifar: Cifar
    layout: Layout
    checksum: str
    cache_key: str
    trust: Trust

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


def read_contents(archive: Archive) -> Contents:
    """Decodes an archive, with every kind of label; see ``read_archive``."""
    path, cifar, layout = archive.path, archive.cifar, archive.layout
    with _reading(path):
        if path.is_dir():
            limits = cifar.limits(layout)
            files = {name: _read_file(path / name, limits[name]) for name in limits}
        else:
            files = _read_tar(path, cifar, layout)
    batches = []
    for name in layout.batches:
        content = files.pop(name)  # popped, since the images need its memory
        batches.append(read_batch(cifar, layout, f"{path}: {name}", content))
        del content
    splits = {"train": batches[:-1], "test": batches[-1:]}
    features = [kind.feature for kind in cifar.labels]
    return Contents(
        {split: _join([x for x, _ in parts]) for split, parts in splits.items()},
        {
            split: {name: _join([y[name] for _, y in parts]) for name in features}
            for split, parts in splits.items()
        },
        {
            kind.feature: read_class_names(kind, layout, f"{path}: {name}", files[name])
            for kind, name in zip(cifar.labels, layout.names, strict=True)
        },
    )


def read_archive(archive: Archive) -> Dataset:
    """Decodes an archive.

    Args:
      archive: from ``open_archive``.

    Returns:
      The data set 'cifar10' or 'cifar100', in the order of the files.

    Raises:
      UserError: the archive is damaged, hostile, or has another layout.
    """
    return as_dataset(archive, read_contents(archive))


def as_dataset(archive: Archive, contents: Contents) -> Dataset:
    """Makes a data set from an archive's contents, with the labels to train on."""
    return make_dataset(
        archive.cifar.name,
        contents.images["train"],
        contents.labels["train"]["label"],
        contents.images["test"],
        contents.labels["test"]["label"],
        contents.class_names["label"],
        source=archive.source,
        mean=archive.cifar.mean,
        std=archive.cifar.std,
    )


def check_contents(archive: Archive, dataset: Dataset) -> None:
    """Checks that the data are the official ones, unless the user gave the checksum.

    Args:
      archive: the archive that was read.
      dataset: its data set, decoded now or taken from the cache.

    Raises:
      UserError: sizes or class names are not the official ones, or the classes of an
        unverified folder differ in size.
    """
    if archive.trust == "given":
        return
    cifar = archive.cifar
    hint = f"for another set pass --archive_sha256={archive.checksum}"
    if dataset.class_names != cifar.class_names:
        raise UserError(
            f"{archive.path} has the classes {_some(dataset.class_names)}, which are "
            f"not {cifar.title}'s; {hint}"
        )
    for split, expected, labels in (
        ("training", cifar.sizes[0], dataset.train_labels),
        ("test", cifar.sizes[1], dataset.test_labels),
    ):
        counts = np.bincount(labels, minlength=dataset.num_classes)
        even = len(set(counts)) == 1 or archive.trust == "official"
        if len(labels) != expected or not even:
            raise UserError(
                f"{archive.path} has {len(labels)} {split} images, by class "
                f"{_some(counts)}; {cifar.title} has {expected}, equally many of each; "
                f"{hint}"
            )


def _some(values: Iterable[Any]) -> str:
    """Joins up to ten values, to fit in a line."""
    words = [str(value) for value in values]
    return ", ".join(words if len(words) <= 10 else [*words[:9], "..."])


def _join(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


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
    # The first file shows which version it is.
    with contextlib.closing(_members(path)) as members:
        for cifar, layout, _, _ in members:
            return Archive(path, cifar, layout, checksum, checksum, "given")
    raise _not_one_folder(path, [])


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
    limits = cifar.limits(layout)
    sha, md5, sizes = hashlib.sha256(), {}, []
    checksum = ""
    for file, limit in limits.items():
        content = _read_file(path / file, limit)
        if file in layout.batches:
            sizes.append(len(content))
        elif not checksum:  # the class names come after the batches
            checksum = sha.hexdigest()
        sha.update(content)
        if file in layout.md5 and sha256 is None:
            md5[file] = hashlib.md5(content, usedforsecurity=False).hexdigest()
    trust: Trust = "given"
    if md5 and md5 == layout.md5:
        trust = "official"
    elif sha256 is None and sizes == _official_sizes(cifar, layout):
        trust = "unverified"
    else:
        _require_given(path, checksum, sha256)
    return Archive(path, cifar, layout, checksum, sha.hexdigest(), trust)


def _official_sizes(cifar: Cifar, layout: Layout) -> list[int]:
    """Returns the sizes of the official batches; none for pickles, which may vary."""
    if layout.pickled:
        return []
    (train, test), parts = cifar.sizes, len(layout.batches) - 1
    return [*[train // parts * cifar.record] * parts, test * cifar.record]


def _read_file(path: pathlib.Path, limit: int) -> bytes:
    if not path.is_file():
        raise UserError(f"{path.parent} has no {path.name}; unpack the archive again")
    _check_size(str(path), path.stat().st_size, limit)
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


def _members(
    path: pathlib.Path,
) -> Generator[tuple[Cifar, Layout, str, IO[bytes]], None, None]:
    """Yields the files to read of a .tar.gz, in its order; refuses hostile members."""
    known = {of.folder: (cifar, of) for cifar, of in _versions()}
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(gzip.open(path))
        bounded: Any = _Bounded(path, stream)  # tarfile only reads from it
        # "r|": a stream, read once and in order.
        tar = stack.enter_context(
            tarfile.open(fileobj=bounded, mode="r|", bufsize=2**20)
        )
        for count, member in enumerate(tar):
            where = f"{path}: {member.name[:200]!r}"
            folder, name = _safe_path(where, member)
            limits = {}
            if folder in known:
                cifar, layout = known[folder]
                limits = cifar.limits(layout)
            _check_size(where, member.size, limits.get(name, _MAX_OTHER))
            if count >= _MAX_MEMBERS:
                raise UserError(f"{path} has over {_MAX_MEMBERS} members; refused")
            content = tar.extractfile(member)
            if name in limits and content is not None:  # not a folder or readme.html
                yield cifar, layout, name, content


def _read_tar(path: pathlib.Path, cifar: Cifar, layout: Layout) -> dict[str, bytes]:
    """Returns the files of a .tar.gz by name."""
    files: dict[str, bytes] = {}
    with contextlib.closing(_members(path)) as members:
        for _, of, name, content in members:
            if of.folder != layout.folder:
                raise _not_one_folder(path, [layout.folder, of.folder])
            if name in files:
                where = f"{layout.folder}/{name}"
                raise UserError(f"{path}: {where!r} is there twice; refused")
            files[name] = content.read()
    for name in cifar.limits(layout):
        if name not in files:
            raise UserError(
                f"{path} has no {layout.folder}/{name}; get the archive again"
            )
    return files


def _not_one_folder(path: pathlib.Path, found: list[str]) -> UserError:
    folders = [layout.folder for _, layout in _versions()]
    return UserError(
        f"{path} must hold one of the folders {', '.join(folders)}, as the official "
        f"archives do, but holds {' and '.join(found) or 'none of them'}"
    )


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
