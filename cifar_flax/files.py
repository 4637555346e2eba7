"""Atomic writes of files, locks between processes, and names of files."""

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
import stat
import unicodedata
import uuid
from collections.abc import Iterator
from typing import BinaryIO

import filelock

from cifar_flax.errors import UserError

logger = logging.getLogger(__name__)


def _partial(name: str, key: str) -> str:
    """Returns a name that no other program gives a file."""
    return f".{name}.cifar_flax-{key}.partial"


# Pattern of the files that a killed writer leaves behind.
PARTIAL = _partial("*", "*")

PRINTABLE = "non-empty text of printable characters"

# Control characters, separators of lines and paragraphs, and bytes that are not UTF-8.
_UNUSABLE = ("Cc", "Zl", "Zp", "Cs")


# The different errors of file systems that cannot lock files.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

# Such a file system uses a lease instead, which its holder renews four times in this
# time.
LEASE_SECONDS = 60.0


def check_text(text: str) -> str:
    """Returns text that can be a name; raises a ValueError if it cannot."""
    kinds = map(unicodedata.category, text)
    if not text.strip() or any(kind in _UNUSABLE for kind in kinds):
        raise ValueError(f"give {PRINTABLE}")
    return text


def check_local(path: str | pathlib.Path) -> None:
    """Raises a UserError for an address such as gs://bucket/runs."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(path)):
        raise UserError(
            f"{path} is an address; give a folder of this machine, such as a mounted "
            "bucket"
        )


def expand_user(path: str | pathlib.Path) -> pathlib.Path:
    """Replaces a leading ~ of a path by the home folder.

    Raises:
      UserError: the home folder is not known, or the path is an address.
    """
    check_local(path)
    try:
        expanded = pathlib.Path(path).expanduser()
    except RuntimeError:
        expanded = None
    # With an empty HOME, expanduser returns a path at the root of the file system.
    empty = pathlib.Path(path).parts[:1] == ("~",) and os.environ.get("HOME") == ""
    if expanded is None or empty:
        raise UserError(
            f"{path} begins with an unknown home folder; set HOME, or give the whole "
            "path"
        )
    return expanded


def cache_folder() -> pathlib.Path | None:
    """Returns the folder for cached files; None if there is no home folder."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # the XDG specification ignores relative paths
        return pathlib.Path(given, "cifar_flax")
    try:
        return expand_user("~/.cache/cifar_flax")
    except UserError:
        return None


def open_plain(path: str | pathlib.Path) -> BinaryIO:
    """Opens a file that the user or a record names, without ever waiting.

    Opening or reading a pipe would wait for its writer, and a device may never end.

    Raises:
      UserError: the path is not a plain file.
      OSError: the file cannot be opened.
    """
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    file = open(  # noqa: SIM115 (the caller closes it)
        path, "rb", opener=lambda name, how: os.open(name, how | nonblocking)
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is not a plain file, but a pipe or a device")
    return file


def private_folder(*names: str) -> pathlib.Path | None:
    """Returns a folder for cached programs, which run with the rights of the user.

    Nobody else may write to it. So a program that another user has put into a shared
    cache does not run.

    Args:
      *names: of the folder below ``cache_folder``; it is made if it is missing.

    Returns:
      The folder; None if there is none, or if it belongs to another user.
    """
    cache = cache_folder()
    if cache is None:
        return None
    folder = cache.joinpath(*names)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if not hasattr(os, "getuid"):
            return folder
        user = os.getuid()
        if {folder.lstat().st_uid, folder.stat().st_uid} != {user}:
            return None
        if folder.stat().st_mode & 0o022:
            folder.chmod(0o700)
            for path in folder.iterdir():
                if path.lstat().st_uid != user or path.lstat().st_mode & 0o022:
                    path.unlink()
    except OSError:
        return None
    return folder


def printable(text: str) -> str:
    """Escapes characters that a terminal would interpret or hide."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def shell_word(text: str, encoding: str = "utf-8") -> str:
    """Quotes text as one word for a shell.

    Args:
      text: any text, also the name of a file that is not UTF-8.
      encoding: encoding of the output. Other characters are written as $'...', which
        bash, zsh, ksh and POSIX 2024 understand.
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
    """Replaces a file atomically: a reader sees either the old or the new content.

    Args:
      path: of the file; its folder must exist.

    Yields:
      A temporary file, which replaces the file if the block ends without an error.

    Raises:
      OSError: the file cannot be written. The old file is kept.
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
    """Removes files that killed writers of a file left; no writer may be alive."""
    for leftover in path.parent.glob(_partial(glob.escape(path.name), "*")):
        leftover.unlink(missing_ok=True)


class InUseError(Exception):
    """Another process holds a lock; the message names the process."""


class Lock:
    """A lock between processes and threads, which ends with the process that holds it.

    Its file names the holder. If the file system cannot lock files, which happens on
    some shared file systems, a lease of the package filelock replaces the lock, in a
    file beside it. The holder renews the lease, and others may take it if it was not
    renewed for ``LEASE_SECONDS``. ``keep`` tells a process that was suspended for
    longer that it has lost the lease.
    """

    def __init__(self, path: pathlib.Path):
        """Makes the lock without taking it."""
        self._path = path
        self._use_lock()

    def take(self, wait: bool) -> None:
        """Takes the lock.

        Args:
          wait: whether to wait, with a warning, until the lock is free. A lease is
            always waited for, until its holder renews it or it expires.

        Raises:
          InUseError: another process or thread holds the lock.
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
        """Takes the lock again if its file was removed.

        Returns:
          Whether the file was removed.

        Raises:
          InUseError: another process has taken the lock.
          OSError: the file cannot be made.
        """
        try:
            there = os.path.samestat(os.stat(self._lock.lock_file), self._file)
        except FileNotFoundError:
            there = False
        if not there:
            self._path.parent.stat()  # raises if the folder was removed, too
            self.release()
            self._use_lock()
            self.take(wait=False)
        return not there

    def release(self) -> None:
        """Releases the lock; its file stays."""
        self._lock.release(force=True)

    def _use_lock(self) -> None:
        if issubclass(filelock.FileLock, filelock.SoftFileLock):
            # A system without locks; there is no open file to write into.
            self._lock: filelock.BaseFileLock = _lease(self._path)
            return
        self._lock = filelock.FileLock(
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
    """Holds a lock within a block; see ``Lock.take``."""
    lock = Lock(path)
    try:
        lock.take(wait)
        yield lock
    finally:
        lock.release()


def lock_holder(path: pathlib.Path) -> str | None:
    """Returns the living process that holds a lock, or None."""
    if not path.exists():
        return None
    try:
        with filelock.FileLock(path, blocking=False):
            return None
    except filelock.Timeout:
        return _read_holder(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:  # the file cannot be written, so nobody has it
            return None
    try:
        with locked(path, wait=False):
            return None
    except InUseError as error:
        return str(error)


def is_lock(name: str, lock: str) -> bool:
    """Returns whether a file name belongs to a lock or to its lease."""
    return name == lock or name.startswith(f"{lock}{_LEASE}")


_LEASE = ".lease"  # suffix of the name; more suffixes follow during a takeover


def _lease(path: pathlib.Path) -> filelock.SoftFileLease:
    return filelock.SoftFileLease(
        f"{path}{_LEASE}",
        lease_duration=LEASE_SECONDS,
        heartbeat_interval=LEASE_SECONDS / 4,
        poll_interval=min(1.0, LEASE_SECONDS / 20),
        thread_local=False,
    )


def _beat(lease: filelock.SoftFileLease) -> tuple[int, int] | None:
    """Returns the time of the last renewal of a lease and its file; None if free."""
    try:
        # Opening the file makes a shared file system refresh its attributes.
        with open(lease.lock_file, "rb") as file:
            found = os.fstat(file.fileno())
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


@functools.cache
def _warn_of_lease(folder: pathlib.Path, reason: str) -> None:
    """Warns once per folder."""
    logger.warning(
        "%s cannot lock files (%s); a lease is used instead, which another machine can "
        "take over %.0f s after its holder is gone",
        folder,
        reason,
        LEASE_SECONDS,
    )


def _read_holder(path: pathlib.Path) -> str:
    owner = _lease(path).owner
    if owner is not None:
        return f"process {owner.pid} on {owner.hostname}"
    try:  # Windows does not allow reading a locked file
        with open_plain(path) as file:
            text = file.read(1000).decode(errors="replace")
    except (OSError, UserError):
        text = ""
    return text or "another process"
