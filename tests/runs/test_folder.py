"""The folder of a run."""

import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.runs import folder
from tests.test_records import make_config


def test_new_folders_take_the_next_free_number(tmp_path):
    parent = tmp_path / "runs"
    names = [folder.new_folder(parent, "convbn-shapes").name for _ in range(3)]
    assert names == ["convbn-shapes-1", "convbn-shapes-2", "convbn-shapes-3"]


def test_a_folder_in_use_is_refused(tmp_path):
    folder.claim_folder(tmp_path / "new" / "run")
    folder.claim_folder(tmp_path / "new" / "run")  # empty: nothing is lost
    records.write_config(tmp_path, make_config())
    with pytest.raises(UserError, match=r"holds a run; .*--resume"):
        folder.claim_folder(tmp_path)
    with pytest.raises(UserError, match="not empty and has no run"):
        folder.claim_folder(tmp_path / "new")
    with pytest.raises(UserError, match="cannot make the folder"):
        folder.claim_folder(tmp_path / records.CONFIG / "run")


def test_a_refused_folder_is_left_as_it_is(tmp_path):
    """Even files that look like leftovers of a run are kept."""
    names = (".movie.mp4.partial", ".lock", "notes.txt")
    for name in names:
        (tmp_path / name).write_text(name)
    with pytest.raises(UserError, match="not empty and has no run"):
        folder.claim_folder(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {n: n for n in names}


def test_what_a_killed_writer_left_is_removed_and_no_hindrance(tmp_path):
    (tmp_path / ".config.json.cifar_flax-0123456789ab.partial").touch()
    (tmp_path / folder.LOCK).touch()
    folder.claim_folder(tmp_path)
    with folder.locked_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [folder.LOCK]
