import contextlib
import hashlib
import http.server
import logging
import pathlib
import socket
import sys
import threading
import time

import numpy as np
import pytest

from cifar_flax.data import archive, download
from cifar_flax.errors import UserError
from tests import archives
from tests.archives import both_kinds
from tests.data.conftest import NOWHERE

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """A file server on the loopback whose faults a test can choose.

    Attributes:
      content: what it serves.
      ranges: whether it knows Range.
      drops: for each request to come, the bytes after which the connection breaks off.
      stall: bytes after which it sends nothing more.
      rate: bytes per second; None for all at once.
      statuses: for each request to come, an error status to answer.
      encoding: a Content-Encoding to declare.
      length: a Content-Length to declare; "" for none.
      requests: the Range header of each request so far.
      sent: bytes of files sent so far.
    """

    def __init__(self):
        self.content = CONTENT
        self.ranges = True
        self.drops, self.statuses = [], []
        self.stall = self.rate = self.encoding = self.length = None
        self.requests = []
        self.sent = 0
        self.closing = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.serve(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # the client may leave early
        self.url = f"http://127.0.0.1:{self._server.server_port}/cifar.tar.gz"
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()

    def serve(self, handler):
        span = handler.headers.get("Range")
        self.requests.append(span)
        if self.statuses:
            handler.send_error(self.statuses.pop(0))
            return
        start = 0
        if span and self.ranges:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                handler.send_error(416)
                return
            end = len(self.content)
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{end}")
        else:
            handler.send_response(200)
        length = str(len(self.content) - start) if self.length is None else self.length
        if length:
            handler.send_header("Content-Length", length)
        if self.encoding:
            handler.send_header("Content-Encoding", self.encoding)
        handler.end_headers()
        body = self.content[start:]
        if self.drops:
            body = body[: self.drops.pop(0)]
        if self.stall is not None:
            body = body[: self.stall]
        step = len(body) if self.rate is None else max(self.rate // 20, 1)
        for place in range(0, len(body), max(step, 1)):
            if self.closing.wait(0 if self.rate is None else 0.05):
                return
            handler.wfile.write(body[place : place + step])
            self.sent += step
        if self.stall is not None:
            handler.wfile.flush()
            self.closing.wait()

    def close(self):
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "downloads" / "cifar.tar.gz"


def fetch(server, path, **changes):
    arguments = {"size": len(CONTENT), "sha256": SHA256} | changes
    arguments = {"timeout": (1.0, 0.3), "pause": 0.0} | arguments
    return download.download(server.url, path, **arguments)


def left_over(path):
    """Returns the files beside ``path`` except the lock."""
    if not path.parent.exists():
        return []
    return [p.name for p in path.parent.iterdir() if p.suffix != ".lock"]


class TestDownload:
    def test_a_file_arrives_whole(self, server, path):
        assert fetch(server, path) == path
        assert path.read_bytes() == CONTENT
        assert left_over(path) == [path.name]
        assert server.requests == [None]

    def test_a_dropped_connection_is_taken_up_where_it_broke(
        self, server, path, caplog
    ):
        server.drops = [400_000, 300_000]
        fetch(server, path)
        assert path.read_bytes() == CONTENT
        first, second, third = server.requests
        assert first is None
        # At most one piece, which was not yet written, may be sent again.
        assert 400_000 - 2**14 <= int(second[6:-1]) <= 400_000
        assert 700_000 - 2**15 <= int(third[6:-1]) <= 700_000
        assert "broke off after" in caplog.text

    def test_an_interrupted_run_is_taken_up_by_the_next(self, server, path):
        path.parent.mkdir()
        path.with_name(path.name + ".part").write_bytes(CONTENT[:123_456])
        fetch(server, path)
        assert path.read_bytes() == CONTENT
        assert server.requests == ["bytes=123456-"]

    def test_a_part_that_is_already_whole(self, server, path):
        path.parent.mkdir()
        path.with_name(path.name + ".part").write_bytes(CONTENT)
        fetch(server, path)
        assert path.read_bytes() == CONTENT

    def test_a_server_without_ranges_starts_over(self, server, path):
        server.ranges = False
        server.drops = [400_000]
        fetch(server, path)
        assert path.read_bytes() == CONTENT
        assert len(server.requests) == 2
        assert server.requests[1].startswith("bytes=")

    def test_a_stalled_server_times_out(self, server, path):
        server.stall = 0
        start = time.monotonic()
        with pytest.raises(UserError, match=r"broke off after 0 bytes, 2 times"):
            fetch(server, path, attempts=2)
        assert time.monotonic() - start < 3
        assert left_over(path) == [path.name + ".part"]

    def test_a_server_that_never_answers_times_out(self, path):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
            start = time.monotonic()
            with pytest.raises(UserError, match="timed out"):
                download.download(
                    url,
                    path,
                    size=len(CONTENT),
                    sha256=SHA256,
                    timeout=(1, 0.2),
                    attempts=2,
                    pause=0,
                )
        assert time.monotonic() - start < 3

    def test_a_refused_connection_is_an_error(self, path):
        with pytest.raises(UserError, match="refused"):
            download.download(NOWHERE, path, size=1, sha256=SHA256, attempts=2, pause=0)
        assert not path.exists()

    def test_a_server_that_always_breaks_off_is_given_up(self, server, path):
        server.ranges = False
        server.drops = [50_000] * 20
        with pytest.raises(UserError, match="3 times in a row"):
            fetch(server, path, attempts=3)
        assert len(server.requests) == 3

    def test_a_server_that_gets_further_each_time_is_not(self, server, path):
        server.drops = [150_000] * 6
        fetch(server, path, attempts=2)
        assert path.read_bytes() == CONTENT
        assert len(server.requests) > 6

    def test_a_missing_file_is_not_asked_for_again(self, server, path):
        server.statuses = [404]
        with pytest.raises(UserError, match="answers 404"):
            fetch(server, path)
        assert len(server.requests) == 1
        assert left_over(path) == []

    def test_a_busy_server_is_asked_again(self, server, path):
        server.statuses = [503, 429]
        fetch(server, path)
        assert path.read_bytes() == CONTENT

    def test_another_content_is_deleted(self, server, path):
        server.content = CONTENT[:-1] + b"x"
        with pytest.raises(UserError, match="was deleted") as error:
            fetch(server, path)
        assert hashlib.sha256(server.content).hexdigest() in str(error.value)
        assert left_over(path) == []

    def test_a_declared_encoding_is_not_undone(self, server, path):
        server.encoding = "gzip"
        fetch(server, path)
        assert path.read_bytes() == CONTENT

    def test_a_folder_that_cannot_be_made(self, server, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match=r"cannot write .*--data_dir"):
            fetch(server, tmp_path / "file" / "cifar.tar.gz")

    def test_a_full_disk(self, monkeypatch, server, path):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(download.os, "replace", full)
        with pytest.raises(UserError, match="No space left on device"):
            fetch(server, path)
        assert not path.exists()

    def test_two_processes_fetch_once(self, server, path):
        server.rate = 4_000_000
        errors = []

        def run():
            try:
                fetch(server, path)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert path.read_bytes() == CONTENT
        assert len(server.requests) == 1

    def test_progress_is_logged(self, server, path, caplog):
        caplog.set_level(logging.INFO)
        fetch(server, path)
        lines = [r.getMessage() for r in caplog.records if "%" in r.getMessage()]
        assert lines[0] == "downloaded 10 % of 1 MB"
        assert len(lines) == 10

    def test_progress_is_drawn_on_a_terminal(self, monkeypatch, server, path, capsys):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        fetch(server, path)
        captured = capsys.readouterr()
        assert path.name in captured.err
        assert captured.out == ""


class TestMeasureRate:
    def test_a_slow_server_is_measured(self, server):
        server.rate = 100_000
        start = time.monotonic()
        rate = download.measure_rate(server.url, sample_seconds=0.6)
        assert time.monotonic() - start < 4  # the file takes ten seconds
        assert 30_000 < rate < 200_000

    def test_a_fast_server_is_measured_at_once(self, server):
        start = time.monotonic()
        rate = download.measure_rate(server.url)
        assert time.monotonic() - start < 3
        assert rate > 1_000_000

    def test_the_beginning_is_enough(self, server):
        server.rate = 1_000_000
        assert 100_000 < download.measure_rate(server.url) < 2_000_000
        assert server.sent < len(CONTENT)

    def test_a_refused_connection_is_known_at_once(self):
        start = time.monotonic()
        with pytest.raises(UserError, match=r"127\.0\.0\.1 cannot be reached.*refused"):
            download.measure_rate(NOWHERE)
        assert time.monotonic() - start < 3

    def test_a_missing_file(self, server):
        server.statuses = [404]
        with pytest.raises(UserError, match="answers 404"):
            download.measure_rate(server.url)

    def test_a_stalled_server_is_given_up(self, server):
        server.stall = 0
        start = time.monotonic()
        with pytest.raises(UserError, match=r"does not answer within 0\.5 s"):
            download.measure_rate(server.url, seconds=0.5)
        assert time.monotonic() - start < 3

    def test_a_name_that_is_not_resolved_in_time(self, monkeypatch):
        released = threading.Event()

        def hang(*_, **__):
            released.wait(10)
            raise socket.gaierror("released")

        monkeypatch.setattr(socket, "getaddrinfo", hang)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"nowhere\.invalid does not answer"):
            download.measure_rate("http://nowhere.invalid/file", seconds=0.3)
        assert time.monotonic() - start < 3
        released.set()

    def test_a_proxy_of_the_environment_is_used(self, monkeypatch, server):
        monkeypatch.delenv("NO_PROXY")
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/cifar.tar.gz"))
        download.measure_rate("http://nowhere.invalid/file")
        assert server.requests


@both_kinds
class TestFetchCifar:
    @pytest.fixture
    def served(self, server, official_archive, monkeypatch, kind):
        server.content = official_archive.read_bytes()
        archives.change(monkeypatch, kind.name, num_bytes=len(server.content))
        return server

    def test_the_archive_comes_to_where_tfds_looks(
        self, served, tmp_path, arrays, kind
    ):
        path = download.fetch_cifar(kind.name, tmp_path / "data", url=served.url)
        assert path == pathlib.Path(
            *(tmp_path, "data", "downloads", "manual"),
            f"{kind.title.lower()}-binary.tar.gz",
        )
        archives.assert_holds(archive.read_archive(archive.open_archive(path)), arrays)

    def test_it_is_fetched_once(self, served, tmp_path, kind):
        first = download.fetch_cifar(kind.name, tmp_path, url=served.url)
        count = len(served.requests)
        assert download.fetch_cifar(kind.name, tmp_path, url=served.url) == first
        assert len(served.requests) == count

    def test_a_broken_archive_there_is_an_error(self, served, tmp_path, kind):
        path = download.fetch_cifar(kind.name, tmp_path, url=served.url)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(UserError, match="sha256"):
            download.fetch_cifar(kind.name, tmp_path, url=served.url)

    def test_a_slow_server_is_left_alone(self, monkeypatch, tmp_path, kind):
        monkeypatch.setattr(download, "measure_rate", lambda url: 60_000.0)
        with pytest.raises(UserError, match="about 47 minutes"):
            download.fetch_cifar(kind.name, tmp_path, max_seconds=900)
        assert not list(tmp_path.iterdir())

    def test_a_slow_server_will_do_without_a_limit(
        self, monkeypatch, served, tmp_path, kind
    ):
        monkeypatch.setattr(download, "measure_rate", lambda url: 0.5)
        assert download.fetch_cifar(kind.name, tmp_path, url=served.url).exists()

    def test_no_network(self, tmp_path, kind):
        start = time.monotonic()
        with pytest.raises(UserError, match="cannot be reached"):
            download.fetch_cifar(kind.name, tmp_path)
        assert time.monotonic() - start < 3


def test_no_more_is_written_than_the_file_has(server, path):
    server.content, server.length = bytes(40_000_000), ""
    with pytest.raises(UserError, match=f"more than the {len(CONTENT)} bytes"):
        fetch(server, path)
    assert server.sent < 20_000_000
    assert left_over(path) == []


@pytest.mark.parametrize("length", ["10000000000", "20"])
def test_another_length_is_refused_before_anything_is_written(server, path, length):
    """The server may answer with a login page, or with a huge file of another kind."""
    server.length = length
    with pytest.raises(UserError, match=f"{length} bytes instead of {len(CONTENT)}"):
        fetch(server, path)
    assert left_over(path) == []


@pytest.mark.parametrize("fault", ["slow", "breaks off"])
def test_a_server_that_is_too_slow_is_left_in_the_end(server, path, fault):
    """Otherwise it would take forever. The received part is kept for the next try."""
    if fault == "slow":
        server.rate = 100
    else:
        server.drops = [1] * 1000
    start = time.monotonic()
    with pytest.raises(UserError, match="bytes a second, which is too slow"):
        fetch(server, path, slowest=(1e6, 0.4), pause=0.01)
    assert 0.4 < time.monotonic() - start < 5
    server.rate, server.drops = None, []
    assert fetch(server, path).read_bytes() == CONTENT
    assert server.requests[-1] is not None


def test_a_lock_that_cannot_be_had_is_a_user_error(monkeypatch, server, path):
    @contextlib.contextmanager
    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")
        yield

    monkeypatch.setattr(download, "locked", locked)
    with pytest.raises(UserError, match="Permission denied"):
        fetch(server, path)
