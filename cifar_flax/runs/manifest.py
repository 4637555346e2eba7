"""Information about a checkpoint: its step, what it holds, and its checksums."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import msgspec

from cifar_flax.files import replacing

# This file is written into a checkpoint's folder after Orbax has finished.
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Information about a checkpoint that is needed before Orbax reads it.

    Attributes:
      step: number of steps done.
      seconds: time spent on training so far.
      val_accuracy: mean validation accuracy of the replicas that had not diverged; None
        if it was not measured.
      finite: whether no replica had diverged.
      structure: the arrays of each part with their dtypes and shapes.
      files: SHA-256 of each file, by its path.
      run: checksum of the run, see ``identity.run_of``; None if it is not known.
      lost: whether each replica had diverged; None in older checkpoints.
    """

    step: int
    seconds: float
    val_accuracy: float | None
    finite: bool
    structure: dict[str, list[str]]
    files: dict[str, str]
    run: str | None = None
    lost: list[bool] | None = None

    @property
    def number_lost(self) -> int:
        """How many replicas had diverged, at least."""
        return int(not self.finite) if self.lost is None else sum(self.lost)


def best_step(manifests: Mapping[int, Manifest], steps: Sequence[int]) -> int | None:
    """Returns the step with the best validation accuracy; None if none was measured.

    Steps at which fewer replicas had diverged come first, because means over different
    replicas cannot be compared.
    """
    known = [(manifests[s], s) for s in steps if s in manifests]
    measured = [
        (-one.number_lost, one.val_accuracy, step)
        for one, step in known
        if one.val_accuracy is not None
    ]
    return max(measured)[-1] if measured else None


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
    """Writes the manifest of a checkpoint with the checksums of its files."""
    complete = dataclasses.replace(manifest, files=checksums(folder))
    text = msgspec.json.encode(complete).decode()
    # The first line is the checksum of the second.
    with replacing(folder / MANIFEST) as file:
        file.write(f"{_sha256(text.encode())}\n{text}\n".encode())


def read_manifest(folder: pathlib.Path) -> Manifest:
    """Reads the manifest of a checkpoint; raises any type of error if damaged."""
    content = (folder / MANIFEST).read_text(encoding="utf-8")
    digest, _, text = content.rstrip("\n").partition("\n")
    if _sha256(text.encode()) != digest:
        raise ValueError(f"{MANIFEST} has changed since it was saved")
    return msgspec.json.decode(text, type=Manifest)


def checksums(folder: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of each file of a checkpoint except its manifest."""
    return {
        path.relative_to(folder).as_posix(): _sha256(path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file() and MANIFEST not in path.name
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
