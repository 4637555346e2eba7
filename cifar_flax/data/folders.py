"""Finds the pictures of a folder: its splits, its classes, and what is left out.

``PATH/train/CLASS/`` and ``PATH/test/CLASS/``, or ``PATH/CLASS/``. The splits may also
have the other names of ``SPLITS``, in upper or lower case.
"""

import dataclasses
import difflib
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from cifar_flax.errors import UserError, one_line
from cifar_flax.files import printable

# Names of the folder of each split; of two for validation the first is used.
SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation"),
}

# File name endings of pictures.
SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif"),
    *(".avifs", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
)

MAX_CLASSES = 10_000

logger = logging.getLogger(__name__)


class LeftOut:
    """What is left out of a folder, by the reason."""

    def __init__(self):
        self._names: dict[str, list[str]] = {}

    def add(self, why: str, path: pathlib.Path) -> None:
        """Adds a file or a folder."""
        self._names.setdefault(why, []).append(path.name)

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each reason, with the first names."""
        lines = []
        for why, names in sorted(self._names.items()):
            shown = ", ".join(
                one_line(printable(name), 60) for name in sorted(set(names))[:3]
            )
            more = ", ..." if len(set(names)) > 3 else ""
            lines.append(f"left out: {why}: {len(names):,} ({shown}{more})")
        return tuple(lines)


@dataclasses.dataclass(frozen=True)
class Listing:
    """The pictures of a folder.

    Attributes:
      folder: where they are.
      splits: the files of 'train' and, if there are any, 'test' and 'val', each with
        its label.
      names: of the classes.
      notes: what was left out and why.
    """

    folder: pathlib.Path
    splits: dict[str, list[tuple[pathlib.Path, int]]]
    names: list[str]
    notes: tuple[str, ...]

    @property
    def paths(self) -> list[pathlib.Path]:
        """All files."""
        return [path for files in self.splits.values() for path, _ in files]

    def checksum(self) -> str:
        """Returns a checksum of the names and contents of all files, in hex."""
        about = (self.folder.name, self.names, self.notes)
        digest = hashlib.sha256(repr(about).encode())
        for split, files in self.splits.items():
            for path, label in files:
                name = os.fsencode(path.relative_to(self.folder))
                digest.update(name + repr((split, label)).encode())
                if not path.is_file():  # reading a pipe would block
                    raise UserError(f"{path} is not a plain file; give a picture")
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


def list_folder(folder: pathlib.Path) -> Listing:
    """Returns the pictures of each split, and the classes.

    Raises:
      UserError: there is no folder, or it does not tell what the classes are.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give folder:PATH")
    left_out = LeftOut()
    splits = _find_splits(folder, left_out)
    train = splits["train"]
    names = [path.name for path in _folders(train)]
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{train} has {len(names)} folders; there must be one for each "
            f"class, 2 to {MAX_CLASSES}"
        )
    found: dict[str, list[tuple[pathlib.Path, int]]] = {}
    seen: dict[str, tuple[str, str]] = {}
    for split, place in splits.items():
        if unknown := [p.name for p in _folders(place) if p.name not in names]:
            raise UserError(f"{place / unknown[0]} is not a class of {train}")
        found[split] = []
        for label, name in enumerate(names):
            if (place / name).is_dir():
                _refuse_splits_inside(place / name)
                paths = _pictures_in(place / name, (split, name), left_out, seen)
                found[split] += [(path, label) for path in paths]
        if not found[split]:
            raise UserError(
                f"{place} has no pictures in folders of its classes; add them, or "
                "move it away"
            )
    for place in {folder, *splits.values()}:
        _leave_out(place, left_out)
    with_pictures = {label for _, label in found["train"]}
    for label, name in enumerate(names):
        if label not in with_pictures:
            raise UserError(
                f"{train / name} has no picture in it ({', '.join(SUFFIXES)}); add "
                "some, or remove the folder"
            )
    return Listing(folder, found, names, left_out.notes)


def list_labelled(
    folder: pathlib.Path, names: Sequence[str]
) -> tuple[list[tuple[pathlib.Path, int]], tuple[str, ...]]:
    """Returns the pictures of a folder of known classes, of all or of some of them.

    They are in ``test/CLASS/``, else in the folder for validation, else in ``CLASS/``.

    Args:
      folder: where to look.
      names: of the classes, in the order of their labels.

    Returns:
      The files with their labels, and what was left out and why.

    Raises:
      UserError: there is no folder, no picture, or a folder that is not of a class.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give folder:PATH")
    held = [path for split in ("test", "val") for path in _splits_in(folder, split)]
    place = next((path for path in held if path.name not in names), folder)
    left_out, seen = LeftOut(), dict[str, tuple[str, str]]()
    found: list[tuple[pathlib.Path, int]] = []
    for path in _folders(place):
        if path.name not in names:
            near = difflib.get_close_matches(path.name, names, n=3, cutoff=0)
            raise UserError(
                f"{path} is not a class of the training images; the most similar are "
                f"{', '.join(near)}"
            )
        pictures = _pictures_in(path, ("test", path.name), left_out, seen)
        found += [(picture, names.index(path.name)) for picture in pictures]
    if not found:
        raise UserError(
            f"{place} has no pictures in folders of the classes {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}"
        )
    _leave_out(place, left_out)
    return found, left_out.notes


def _splits_in(folder: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Returns the folders of a split, in the order of its names."""
    inside = _folders(folder)
    return [p for name in SPLITS[split] for p in inside if p.name.lower() == name]


def find_images(places: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the given files, and all pictures in the given folders at any depth.

    Raises:
      UserError: a place does not exist, or a folder has no picture.
    """
    found: list[pathlib.Path] = []
    for place in places:
        if not os.path.exists(place):  # False if the name is too long
            raise UserError(f"there is no file or folder {place}")
        if not place.is_dir():
            found.append(place)
            continue
        inside = _pictures_in(place, ("", ""), LeftOut(), {})
        if not inside:
            raise UserError(f"{place} has no picture in it ({', '.join(SUFFIXES)})")
        found += inside
    return found


def _pictures_in(
    folder: pathlib.Path,
    role: tuple[str, str],
    left_out: LeftOut,
    seen: dict[str, tuple[str, str]],
) -> list[pathlib.Path]:
    """Returns the pictures in a folder at any depth, also in linked folders.

    Args:
      folder: where to look.
      role: split and class of the folder.
      left_out: gets what is not a picture.
      seen: the folders that were read with the role of each; gets those of this call.

    Raises:
      UserError: a folder was read as training images, or as another class.
    """

    def fail(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    found = []
    for at, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        place, real = pathlib.Path(at), os.path.realpath(at)
        before = seen.get(real)
        seen[real] = role
        if before == role:
            left_out.add("links to a folder that is read anyway", place)
            folders.clear()
            continue
        # Test images may be the validation images, too, but nothing else.
        if before and ("train" in {before[0], role[0]} or before[1] != role[1]):
            raise UserError(
                f"{place} is the folder {real}, which is read as {' '.join(before)}, "
                "too; remove the link"
            )
        for name in [name for name in folders if _is_hidden(name)]:
            left_out.add("hidden files and folders", place / name)
            folders.remove(name)
        folders.sort()
        for name in files:
            if _is_hidden(name):
                left_out.add("hidden files and folders", place / name)
            elif os.path.splitext(name)[1].lower() in SUFFIXES:
                found.append(place / name)
            else:
                left_out.add("files with other endings", place / name)
    return sorted(found)


def _refuse_splits_inside(folder: pathlib.Path) -> None:
    """Raises a UserError if the folder of a class is divided into splits."""
    inside = {path.name.lower() for path in _folders(folder)}
    if all(inside.intersection(SPLITS[split]) for split in ("train", "test")):
        raise UserError(
            f"{folder} has training and test images inside a class; put the splits "
            "outside, as PATH/train/CLASS/ and PATH/test/CLASS/"
        )


def _find_splits(folder: pathlib.Path, left_out: LeftOut) -> dict[str, pathlib.Path]:
    """Returns the folders of 'train' and, if there are any, of 'test' and 'val'.

    Without a folder of training images, the folder itself has them.
    """
    inside = _folders(folder)
    found = {split: _splits_in(folder, split) for split in SPLITS}
    others = [p for p in inside if not any(p in places for places in found.values())]
    trains, held = found["train"], found["test"] + found["val"]
    if not trains:
        _refuse_unclear(folder, inside, held)
        return {"train": folder}
    for split in ("train", "test"):
        if len(found[split]) > 1:
            one, other = (path.name for path in found[split][:2])
            raise UserError(f"{folder} has {one} and {other}; leave one of them")
    train = trains[0]
    if not _folders(train):
        if held:
            raise UserError(
                f"{train} has no folders in it; there must be one for each class"
            )
        return {"train": folder}  # a class of that name, such as a vehicle
    if not held:
        unclear = f", and {others[0].name} beside it" if others else ""
        raise UserError(
            f"{folder} has {train.name} but no test or {' or '.join(SPLITS['val'])}"
            f"{unclear}; add one, or put the folders of the classes directly into it"
        )
    for path in others:
        left_out.add("folders beside those of the splits", path)
    used = {split: places[0] for split, places in found.items() if places}
    for path in found["val"][1:]:
        role = "validation" if "test" in used else "test"
        logger.warning("%s is not used: %s is the %s set", path, used["val"], role)
        left_out.add(f"other {role} sets", path)
    return used


def _refuse_unclear(
    folder: pathlib.Path, inside: list[pathlib.Path], held: list[pathlib.Path]
) -> None:
    """Raises a UserError if folders seem to be splits, but not of a name we know."""
    if held:
        raise UserError(
            f"{held[0]} seems to be a split, and {folder} has no train; add it, or "
            f"rename {held[0].name} if it is a class"
        )
    words = [set(re.split(r"[^a-z]+", path.name.lower())) for path in inside]
    is_split = {
        split: [bool(word.intersection(names)) for word in words]
        for split, names in SPLITS.items()
    }
    if any(is_split["train"]) and any(is_split["test"] + is_split["val"]):
        found = ", ".join(path.name for path in inside[:5])
        raise UserError(
            f"{folder} has {found}, which seem to be splits; call them train, test "
            "and val"
        )


def _leave_out(place: pathlib.Path, left_out: LeftOut) -> None:
    """Adds what lies beside the folders of the classes."""
    for path in sorted(place.iterdir()):
        if _is_hidden(path.name):
            left_out.add("hidden files and folders", path)
        elif not path.is_dir():
            left_out.add("files outside the folders of the classes", path)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and not _is_hidden(path.name)
    )


def _is_hidden(name: str) -> bool:
    """Whether a system or an editor made a file or folder, not the user."""
    return name.startswith(".") or name == "__MACOSX"
