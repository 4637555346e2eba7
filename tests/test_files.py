"""Files that are replaced as a whole, and locks."""

import os
import pathlib
import subprocess
import threading

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
