"""Files that are replaced as a whole, and locks."""

import threading

import pytest

from cifar_flax import files


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
