"""Files that are replaced as a whole, locks between processes, and names of files."""

import contextlib
import errno
import functools
import glob
import logging
import os
import pathlib
import re
import shlex
import socket
import unicodedata
import uuid
from collections.abc import Iterator
from typing import BinaryIO

import filelock

from cifar_flax.errors import UserError

logger = logging.getLogger(__name__)


def _partial(name: str, key: str) -> str:
    """A name that nobody else gives a file."""
    return f".{name}.cifar_flax-{key}.partial"


# What a writer that was killed leaves behind.
PARTIAL = _partial("*", "*")

PRINTABLE = "a text that is not empty, of characters that can be printed"

# Control characters, separators of lines and paragraphs, bytes that are no UTF-8.
_UNUSABLE = ("Cc", "Zl", "Zp", "Cs")


# Where a file system cannot lock a file; the system's words for it differ.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# What stands in there: a lease, which its holder renews four times in this time.
LEASE_SECONDS = 60.0


def check_text(text: str) -> str:
    """A text that can name something; ValueError where it can name nothing."""
    kinds = map(unicodedata.category, text)
    if not text.strip() or any(kind in _UNUSABLE for kind in kinds):
        raise ValueError(f"give {PRINTABLE}")
    return text


def check_local(path: str | pathlib.Path) -> None:
    """UserError for an address such as gs://bucket/runs, which is no path."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
        raise UserError(
            f"{path} is an address; files are read and written in folders alone: give "
            "one of this machine, such as a bucket that is mounted"
        )


def expand_user(path: str | pathlib.Path) -> pathlib.Path:
    """A path with its ~ replaced.

    Raises:
      UserError: there is no home folder, or it is an address.
    """
    check_local(path)
    try:
        expanded = pathlib.Path(path).expanduser()
    except RuntimeError:
        expanded = None
    # An empty HOME would make it the root of the file system.
    empty = pathlib.Path(path).parts[:1] == ("~",) and os.environ.get("HOME") == ""
    if expanded is None or empty:
        raise UserError(
            f"{path} begins with a home folder that is not known; set HOME, or write "
            "the whole path"
        )
    return expanded


def cache_folder() -> pathlib.Path | None:
    """The folder for what can be made again; None where there is no home folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # else it is to be ignored, says the XDG specification
        return pathlib.Path(given, "cifar_flax")
    try:
        return expand_user("~/.cache/cifar_flax")
    except UserError:
        return None


def printable(text: str) -> str:
    """A text as a terminal may show it: what it would obey or hide is written out."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def shell_word(text: str, encoding: str = "utf-8") -> str:
    """A text as one word for a shell.

    Args:
      text: any, also the name of a file that is no UTF-8.
      encoding: that can be shown; other characters are written as $'...', which bash,
        zsh, ksh and POSIX 2024 know.
    """
    try:
        shown = text.isprintable() and bool(text.encode(encoding))
    except UnicodeEncodeError:
        shown = False
    if shown or not text:
        return shlex.quote(text)
    return "$'" + "".join(map(_shell_byte, os.fsencode(text))) + "'"


def _shell_byte(byte: int) -> str:
    plain = byte < 128 and (chr(byte).isalnum() or chr(byte) in "-_=./ ")
    return chr(byte) if plain else f"\\{byte:03o}"


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
    temporary = path.with_name(_partial(path.name, uuid.uuid4().hex[:12]))
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


def remove_partial(path: pathlib.Path) -> None:
    """Removes what writers of a file that were killed have left; none may be alive."""
    for leftover in path.parent.glob(_partial(glob.escape(path.name), "*")):
        leftover.unlink(missing_ok=True)


class InUseError(Exception):
    """Another process, which the message names, holds a lock."""


class Lock:
    """A lock between processes, and threads, which ends with the process that holds it.

    Its file says who that is. Where the file system cannot lock files, as some that
    machines share, a lease of the package filelock stands in, in a file beside it: its
    holder renews it, and others may take it once it was not renewed for
    ``LEASE_SECONDS``. A process that stood still for longer learns from ``keep`` that
    it has lost it.
    """

    def __init__(self, path: pathlib.Path):
        """Takes nothing yet."""
        self._path = path
        self._use_lock()

    def take(self, wait: bool) -> None:
        """Takes it.

        Args:
          wait: until it is free, with a warning. A lease is waited for in any case,
            until its holder renews it or it runs out.

        Raises:
          InUseError: another process, or another thread, holds it.
          OSError: the file cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._acquire()
        except filelock.Timeout as error:
            if not wait:
                raise InUseError(_read_holder(self._path)) from error
            logger.warning("waiting for another process that holds %s", self._path)
            self._lock.acquire()

    def keep(self) -> bool:
        """Takes it anew where its file was removed, and with it the lock.

        Returns:
          Whether that was so.

        Raises:
          InUseError: another process was faster.
          OSError: the file cannot be made.
        """
        try:
            there = os.path.samestat(os.stat(self._lock.lock_file), self._file)
        except FileNotFoundError:
            there = False
        if not there:
            self._path.parent.stat()  # else it would be made again
            self.release()
            self._use_lock()
            self.take(wait=False)
        return not there

    def release(self) -> None:
        """Gives it back; the file of a lock stays."""
        self._lock.release(force=True)

    def _use_lock(self) -> None:
        self._lock: filelock.BaseFileLock = filelock.FileLock(
            self._path, thread_local=False, on_acquired=self._sign
        )

    def _acquire(self) -> None:
        try:
            self._lock.acquire(blocking=False)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            _warn_of_lease(self._path.parent, error.strerror or str(error))
            self._lock = lease = _lease(self._path)
            seen = _beat(lease)
            lease.acquire(
                timeout=2 * LEASE_SECONDS,
                cancel_check=lambda: _beat(lease) not in (seen, None),
            )
            self._file = os.stat(lease.lock_file)

    def _sign(self, file: int) -> None:
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._file = os.fstat(file)


@contextlib.contextmanager
def locked(path: pathlib.Path, wait: bool) -> Iterator[Lock]:
    """Holds a lock; see ``Lock.take``."""
    lock = Lock(path)
    try:
        lock.take(wait)
        yield lock
    finally:
        lock.release()


def lock_holder(path: pathlib.Path) -> str | None:
    """Which process holds a lock; None where no living one does."""
    if not path.exists():
        return None
    try:
        with filelock.FileLock(path, blocking=False):
            return None
    except filelock.Timeout:
        return _read_holder(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # it cannot be written: nobody can hold it
            return None
    try:
        with locked(path, wait=False):
            return None
    except InUseError as error:
        return str(error)


def is_lock(name: str, lock: str) -> bool:
    """Whether a file of that name is a lock's, or of the lease that stands in."""
    return name == lock or name.startswith(f"{lock}{_LEASE}")


_LEASE = ".lease"  # the ending of its name; others follow while it is taken over


def _lease(path: pathlib.Path) -> filelock.SoftFileLease:
    return filelock.SoftFileLease(
        f"{path}{_LEASE}",
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=LEASE_SECONDS / 4,
        poll_interval=min(1.0, LEASE_SECONDS / 20),
        thread_local=False,
    )


def _beat(lease: filelock.SoftFileLease) -> tuple[int, int] | None:
    """When a lease was renewed last, by whom; None where nobody holds it."""
    try:
        # Opened, so that a file system that others write to, too, looks again.
        with open(lease.lock_file, "rb") as file:
            found = os.fstat(file.fileno())
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


@functools.cache
def _warn_of_lease(folder: pathlib.Path, reason: str) -> None:
    """Once for a folder."""
    logger.warning(
        "%s cannot lock files (%s): a lease stands in, and another machine takes it "
        "over %.0f s after its holder is gone",
        folder,
        reason,
        LEASE_SECONDS,
    )


def _read_holder(path: pathlib.Path) -> str:
    owner = _lease(path).owner
    if owner is not None:
        return f"process {owner.pid} on {owner.hostname}"
    try:  # Windows lets nobody read what is locked
        text = path.read_bytes()[:1000].decode(errors="replace")
    except OSError:
        text = ""
    return text or "another process"
