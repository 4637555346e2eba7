"""Files that are replaced as a whole, and locks."""

import errno
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from cifar_flax import files
from cifar_flax.errors import UserError


def test_a_lock_is_held_by_one(tmp_path, caplog):
    entered = threading.Event()

    def enter():
        with files.locked(tmp_path / "lock", wait=True):
            entered.set()

    with files.locked(tmp_path / "lock", wait=True):
        assert "process" in files.lock_holder(tmp_path / "lock")
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(0.2)
        with (
            pytest.raises(files.InUseError, match="process"),
            files.locked(tmp_path / "lock", wait=False),
        ):
            pass
    thread.join()
    assert entered.is_set()
    assert "waiting for another process" in caplog.text
    assert files.lock_holder(tmp_path / "lock") is None


@pytest.fixture
def no_locks(monkeypatch):
    """Simulates a file system without locks, and leases that expire soon."""

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(files, "LEASE_SECONDS", 0.8)


def test_a_lease_stands_in_where_files_cannot_be_locked(no_locks, tmp_path, caplog):
    path = tmp_path / "lock"
    with files.locked(path, wait=False) as lock:
        assert "No locks available" in caplog.text
        time.sleep(1.2)  # it is renewed
        assert not lock.keep()
        begin = time.monotonic()
        with (
            pytest.raises(files.InUseError, match=f"process {os.getpid()} on"),
            files.locked(path, wait=False),
        ):
            pass
        assert time.monotonic() - begin < 0.8  # it is renewed
        assert f"process {os.getpid()} on" in files.lock_holder(path)
    assert files.lock_holder(path) is None


def test_a_lease_of_a_machine_that_is_gone_runs_out(no_locks, tmp_path):
    """As after a loss of power, when nobody can tell whether the process lives."""
    path = tmp_path / "lock"
    with files.locked(path, wait=False):
        (lease,) = tmp_path.glob("lock.lease")
        record = lease.read_text()
    lease.write_text(record.replace("host=", "host=elsewhere-"))
    begin = time.monotonic()
    with files.locked(path, wait=False) as lock:
        assert time.monotonic() - begin > 0.7
        assert not lock.keep()


def test_who_stood_still_too_long_learns_that_the_lease_is_lost(no_locks, tmp_path):
    path = tmp_path / "lock"
    code = (
        "import errno, fcntl, pathlib, sys\n"
        "from cifar_flax import files\n"
        "def flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock, files.LEASE_SECONDS = flock, 0.8\n"
        "with files.locked(pathlib.Path(sys.argv[1]), wait=False) as lock:\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
        "    try: lock.keep()\n"
        "    except files.InUseError as error: print('lost to', error)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        with files.locked(path, wait=False):
            process.send_signal(signal.SIGCONT)
            output, _ = process.communicate("go on\n")
    assert output.startswith(f"lost to process {os.getpid()} on")


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with files.replacing(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    with files.replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_lock_whose_file_is_removed_is_taken_anew(tmp_path):
    path = tmp_path / "lock"
    with files.locked(path, wait=False) as lock:
        assert not lock.keep()
        path.unlink()
        assert lock.keep()
        assert f"process {os.getpid()} on" in files.lock_holder(path)
        path.unlink()
        with files.locked(path, wait=False), pytest.raises(files.InUseError):
            lock.keep()
    assert files.lock_holder(path) is None


def test_no_folder_is_made_again_for_a_lock(tmp_path):
    with files.locked(tmp_path / "run" / "lock", wait=False) as lock:
        (tmp_path / "run" / "lock").unlink()
        (tmp_path / "run").rmdir()
        with pytest.raises(FileNotFoundError):
            lock.keep()
    assert not (tmp_path / "run").exists()


def test_what_a_killed_writer_left_of_a_file_is_removed(tmp_path):
    path = tmp_path / "a[1].npz"
    others = [".a1.npz.cifar_flax-1.partial", ".a[1].npz.partial", "a[1].npz"]
    for name in (".a[1].npz.cifar_flax-0123.partial", *others):
        (tmp_path / name).touch()
    files.remove_partial(path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    "text",
    ["plain", "it's", "a b", "$HOME `ls` \\n", "gr\u00fcn", "\x1b[2J", "\udcff", ""],
)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_shell_reads_a_word_as_it_was(text, encoding):
    word = files.shell_word(text, encoding)
    assert word.isprintable()
    assert encoding == "utf-8" or word.isascii()
    command = ["bash", "-c", f"printf %s {word}"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stdout == os.fsencode(text)


def test_what_a_terminal_would_obey_is_written_out():
    assert files.printable("gr\u00fcn \u8f66\n") == "gr\u00fcn \u8f66\n"
    assert files.printable("\x1b[2J\x07\u202e\udcff") == r"\x1b[2J\x07\u202e\udcff"


@pytest.mark.parametrize(
    ("home", "caches", "expected"),
    [
        ("/home/me", None, "/home/me/.cache/cifar_flax"),
        ("/home/me", "relative", "/home/me/.cache/cifar_flax"),
        ("/home/me", "/caches", "/caches/cifar_flax"),
        ("", None, None),
    ],
)
def test_the_cache_is_in_a_home_folder_or_nowhere(monkeypatch, home, caches, expected):
    monkeypatch.setenv("HOME", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if caches is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", caches)
    assert files.cache_folder() == (expected and pathlib.Path(expected))


def test_a_home_folder_that_is_not_known_is_an_error(monkeypatch):
    monkeypatch.setenv("HOME", "")
    for path in ("~/data", "~", "~nobody_of_this_name/data"):
        with pytest.raises(UserError, match="HOME"):
            files.expand_user(path)
    assert files.expand_user("/a/~b") == pathlib.Path("/a/~b")


@pytest.mark.parametrize("text", ["gs://bucket/runs", "s3://b", "file:///tmp/x"])
def test_an_address_is_no_path(text):
    with pytest.raises(UserError, match=f"^{text} is an address"):
        files.expand_user(text)
    assert files.expand_user("a:b/c") == pathlib.Path("a:b/c")
