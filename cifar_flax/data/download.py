"""Fetches an official archive, with a quick check and a download that can resume.

Both use requests, so that the proxies and certificates of the environment apply.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from cifar_flax.data import archive
from cifar_flax.data.cifar import CIFARS
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import expand_user, locked

_SAMPLE_BYTES = 400_000
_CHUNK = 2**14  # bytes per read; a broken connection loses the last read

logger = logging.getLogger(__name__)


def fetch_cifar(
    name: str,
    data_dir: str | pathlib.Path,
    *,
    url: str | None = None,
    max_seconds: float | None = None,
) -> pathlib.Path:
    """Downloads an official binary archive, unless it already exists.

    Args:
      name: name of the data set, 'cifar10' or 'cifar100'.
      data_dir: the archive goes to its folder ``downloads/manual``, where tfds also
        looks. An interrupted download is resumed.
      url: address of the archive; None: the official one.
      max_seconds: longest expected duration of the download; None: no limit.

    Returns:
      The archive's path; its checksum is the official one.

    Raises:
      UserError: the server does not answer within seconds, is too slow or breaks off,
        or the file cannot be written.
    """
    cifar = CIFARS[name]
    url = url or cifar.url
    path = expand_user(data_dir) / "downloads" / "manual" / cifar.binary.archive
    if path.exists():
        archive.open_archive(path, name=name)
        return path
    seconds = cifar.num_bytes / measure_rate(url)
    duration = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{seconds:.0f} s"
    if max_seconds is not None and seconds > max_seconds:
        raise UserError(
            f"{urlsplit(url).hostname} is slow: the download would take about "
            f"{duration}"
        )
    logger.info(
        "downloading %s to %s, which takes about %s", cifar.title, path, duration
    )
    return download(url, path, size=cifar.num_bytes, sha256=cifar.binary.sha256)


def measure_rate(
    url: str, *, seconds: float = 5.0, sample_seconds: float = 2.0
) -> float:
    """Measures how fast a server sends the first few hundred kilobytes of a file.

    Args:
      url: address of the file.
      seconds: time limit of the call, even if names are not resolved.
      sample_seconds: time limit of the measurement.

    Returns:
      Bytes per second.

    Raises:
      UserError: the server does not answer in time, or does not send the file.
    """
    started, received, errors = 0.0, 0, list[str]()

    def fetch_sample() -> None:
        nonlocal started, received
        try:
            with _get(url, 0, (seconds, seconds)) as response:
                started = time.monotonic()
                # Small pieces: a slow server takes seconds to fill a large one.
                for chunk in response.raw.stream(4096, decode_content=False):
                    received += len(chunk)
                    is_late = time.monotonic() - started > sample_seconds
                    if received >= _SAMPLE_BYTES or is_late:
                        break
        except Exception as error:  # reported by the other thread
            errors.append(_reason(error))

    # A thread, because a name look-up has no time limit, and a daemon, so that the
    # program does not wait for it.
    thread = threading.Thread(target=fetch_sample, daemon=True)
    thread.start()
    thread.join(seconds)
    host = urlsplit(url).hostname
    if errors:
        raise UserError(f"{host} cannot be reached: {errors[0]}")
    if not received:
        raise UserError(f"{host} does not answer within {seconds:g} s")
    return received / max(time.monotonic() - started, 1e-3)


def download(
    url: str,
    path: pathlib.Path,
    *,
    size: int,
    sha256: str,
    timeout: tuple[float, float] = (5.0, 30.0),
    slowest: tuple[float, float] = (2_000.0, 60.0),
    attempts: int = 5,
    pause: float = 1.0,
) -> pathlib.Path:
    """Downloads a file, and resumes where an attempt broke off.

    The part that has arrived is kept next to ``path`` as ``.part``, also for the next
    run. The file gets its name after its checksum has been verified.

    Args:
      url: address of the file.
      path: the file to write; its folder is created.
      size: size of the file in bytes; no more are written.
      sha256: expected checksum of the file, in hex.
      timeout: time limits in seconds for the connection and for each piece.
      slowest: lowest rate in bytes per second, and seconds over which it is averaged.
      attempts: number of attempts in a row without new data before it gives up.
      pause: seconds before the second attempt, doubled for each further one.

    Returns:
      ``path``.

    Raises:
      UserError: the server refuses, breaks off or is too slow; size or checksum differ
        (the part that has arrived is then deleted); or the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        # Two processes that write to one .part would corrupt it.
        with locked(path.with_name(path.name + ".lock"), wait=True):
            if path.exists():  # fetched by the process that had the lock
                return path
            _Download(url, part, size, timeout, slowest).fetch(attempts, pause)
            with part.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                part.unlink()
                raise UserError(
                    f"{url} gave a file with the sha256 {found} instead of {sha256}; "
                    f"the file was deleted; try again"
                )
            os.replace(part, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; give another --data_dir"
        ) from error
    return path


class _Download:
    """A download to ``part``; the arguments are those of ``download``."""

    def __init__(
        self,
        url: str,
        part: pathlib.Path,
        size: int,
        timeout: tuple[float, float],
        slowest: tuple[float, float],
    ) -> None:
        self._url, self._part, self._size = url, part, size
        self._timeout, self._slowest = timeout, slowest
        self._since, self._from = time.monotonic(), 0  # of the measurement of the rate

    def fetch(self, attempts: int, pause: float) -> None:
        """Downloads the file, with new attempts while they make progress."""
        import requests
        import urllib3

        furthest = failures = 0
        while True:
            try:
                return self._fetch_rest()
            except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
                size = self._done()
                failures = 1 if size > furthest else failures + 1
                furthest = max(furthest, size)
                if failures >= attempts:
                    raise UserError(
                        f"{self._url} broke off after {size} bytes, {attempts} times "
                        f"in a row: {_reason(error)}; run it again to continue from "
                        "there"
                    ) from error
                logger.warning(
                    "the download broke off after %d bytes (%s); continuing",
                    size,
                    _reason(error),
                )
                time.sleep(pause * 2 ** (failures - 1))

    def _done(self) -> int:
        return self._part.stat().st_size if self._part.exists() else 0

    def _fetch_rest(self) -> None:
        """Downloads the rest, or everything if the server cannot resume."""
        done = self._done()
        with _get(self._url, done, self._timeout) as response:
            if response.status_code == 416:
                return  # no bytes are left; the checksum is tested later
            span = response.headers.get("Content-Range", "")
            resumed = span.startswith(f"bytes {done}-")  # not every server can
            if not resumed:
                done = 0
            length = response.headers.get("Content-Length", "")
            if length.isdigit() and done + int(length) != self._size:
                raise UserError(
                    f"{self._url} has {done + int(length)} bytes instead of "
                    f"{self._size}: it is another file; save the archive yourself and "
                    "pass --data_archive=PATH"
                )
            with (
                self._part.open("ab" if resumed else "wb") as file,
                _progress(self._part.stem, self._size) as show,
            ):
                # The raw stream: requests would unpack a .gz that is declared as
                # encoded.
                while chunk := response.raw.read1(_CHUNK, decode_content=False):
                    done += len(chunk)
                    self._check(done)
                    file.write(chunk)
                    show(done)

    def _check(self, done: int) -> None:
        """Raises a UserError if too much has arrived, or recently too little."""
        if done > self._size:
            self._part.unlink(missing_ok=True)
            raise UserError(
                f"{self._url} sends more than the {self._size} bytes of the file; the "
                "part that had arrived was deleted; try again"
            )
        lowest, over = self._slowest
        seconds = time.monotonic() - self._since
        if seconds < over:
            return
        rate = (done - self._from) / seconds
        if rate < lowest:
            raise UserError(
                f"{self._url} sends {rate:.0f} bytes a second, which is too slow; run "
                "it again later to continue from there, or save the archive yourself "
                "and pass --data_archive=PATH"
            )
        self._since, self._from = time.monotonic(), done


def _get(url: str, start: int, timeout: tuple[float, float]) -> Any:
    """Requests a file from byte ``start`` on; the caller must close the response.

    Raises:
      UserError: the server refuses, and another attempt would not help.
      requests.RequestException: any other failure.
    """
    import requests

    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    response = requests.get(url, headers=headers, stream=True, timeout=timeout)
    status = response.status_code
    if status in (200, 206) or (status == 416 and start):
        return response
    response.close()
    message = f"{url} answers {status} {response.reason}"
    if 400 <= status < 500 and status not in (408, 429):
        raise UserError(message)
    raise requests.HTTPError(message)


def _reason(error: BaseException) -> str:
    """Returns the root cause of a chain of network errors, in one line."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return one_line(error)


@contextlib.contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a download's progress: a bar on a terminal, else a log line every 10 %."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

        columns = (*Progress.get_default_columns(), DownloadColumn())
        console = Console(stderr=True)
        with Progress(*columns, TransferSpeedColumn(), console=console) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done: bar.update(task, completed=done)
        return

    tenths = 0

    def show(done: int) -> None:
        nonlocal tenths
        if done * 10 // total > tenths:
            tenths = done * 10 // total
            logger.info("downloaded %d %% of %.0f MB", tenths * 10, total / 1e6)

    yield show
