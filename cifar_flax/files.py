"""Files that are replaced as a whole, locks between processes, and names of files."""

import contextlib
import fcntl
import logging
import os
import pathlib
import socket
import unicodedata
import uuid
from collections.abc import Iterator
from typing import BinaryIO

logger = logging.getLogger(__name__)

# What a writer that was killed leaves behind; nobody else gives files such names.
PARTIAL = ".*.cifar_flax-*.partial"

PRINTABLE = "a text that is not empty, of characters that can be printed"

# Control characters, separators of lines and paragraphs, bytes that are no UTF-8.
_UNUSABLE = ("Cc", "Zl", "Zp", "Cs")


def check_text(text: str) -> str:
    """A text that can name something; ValueError where it can name nothing."""
    kinds = map(unicodedata.category, text)
    if not text.strip() or any(kind in _UNUSABLE for kind in kinds):
        raise ValueError(f"give {PRINTABLE}")
    return text


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Writes a file so that a reader sees the old one or the new one, whole.

    Args:
      path: of the file; its folder is there.

    Yields:
      A file beside it, which takes its place when the block ends without an error.

    Raises:
      OSError: it cannot be written; what was there still is.
    """
    name = f".{path.name}.cifar_flax-{uuid.uuid4().hex[:12]}.partial"
    temporary = path.with_name(name)
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class InUseError(Exception):
    """Another process, which the message names, holds a lock."""


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool) -> Iterator[None]:
    """Holds a lock, which the system takes back from a process that is gone.

    Args:
      path: of its file, made where it is missing; it says who holds the lock.
      wait: whether to wait, with a warning, until it is free.

    Raises:
      InUseError: another process, or another thread, holds it.
      OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not wait:
                raise InUseError(_read_holder(lock)) from error
            logger.warning("waiting for another process that holds %s", path)
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.truncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(lock)


def lock_holder(path: pathlib.Path) -> str | None:
    """Which process holds a lock; None where no living one does."""
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read_holder(lock)
    finally:
        os.close(lock)
    return None


def _read_holder(lock: int) -> str:
    return os.pread(lock, 1000, 0).decode(errors="replace") or "another process"
