"""Pipes and devices in the place of files: named at once, and never waited for."""

import contextlib
import os
import pathlib
import shutil
import signal
import sys

import numpy as np
import pytest
from absl import flags

from cifar_flax import records
from cifar_flax.commands import cli
from cifar_flax.data.load import load_dataset
from cifar_flax.errors import UserError
from cifar_flax.files import open_plain
from cifar_flax.own_code import source_of
from cifar_flax.reports.page import report
from cifar_flax.runs.checkpoint import MANIFEST, open_checkpoints
from cifar_flax.runs.inference import Run
from cifar_flax.runs.settings import Settings
from cifar_flax.show.figures import new_figure, save_figure
from cifar_flax.training.recipe_files import read_recipe
from tests.runs.test_session import SETTINGS, TinyNet, make_tiny, run

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs pipes with names")


@pytest.fixture(autouse=True)
def alarm():
    """Ends a test that waits."""

    def ring(*_):
        raise TimeoutError("it waits")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def pipe_at(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def read_flags(path):
    cli._check_flag_files(["command", f"--flagfile={path}"])


READERS = {
    "recipe": lambda path: read_recipe(path),
    "recipe of settings": lambda path: Settings(recipe=str(path)),
    "flags": read_flags,
    "flags in flags": lambda path: read_flags(nested(path)),
    "pictures": lambda path: load_dataset(f"npz:{path}"),
    "archive": lambda path: load_dataset(archive=path),
    "model": lambda path: source_of(f"{path}.py:Net"),
    "run": lambda path: Run.load(path),
    "origin": lambda path: Settings.continuing(path),
}


def nested(path):
    outer = path.with_name("outer.txt")
    outer.write_text(f"--lr=1\n--flagfile={path}\n")
    return outer


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("place", ["pipe", "/dev/zero"])
def test_what_a_user_names_is_not_waited_for(tmp_path, name, place):
    path = pathlib.Path(place) if place[0] == "/" else pipe_at(tmp_path / place)
    if name == "flags in flags" and place[0] == "/":
        pytest.skip("its folder is not ours")
    if name == "model" and place == "pipe":
        pipe_at(tmp_path / "pipe.py")
    with pytest.raises(UserError, match=str(path)):
        READERS[name](path)


def test_a_command_names_the_pipe_of_its_flags(tmp_path, monkeypatch, capsys):
    path = pipe_at(tmp_path / "pipe")
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(sys, "argv", ["command", f"--flagfile={path}"])
    with pytest.raises(SystemExit) as end:
        cli._parse_flags(sys.argv)
    assert end.value.code == cli.USAGE_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} is not a plain file")


def test_a_picture_replaces_a_pipe(tmp_path):
    path = pipe_at(tmp_path / "figure.PNG")
    save_figure(new_figure(1, 1), path, "it")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    run(SETTINGS, folder, model=TinyNet(), dataset=make_tiny())
    return folder


@pytest.mark.slow
def test_a_pipe_in_a_run_is_not_waited_for(trained, tmp_path):
    """Each file of it in turn."""
    names = [p.relative_to(trained) for p in trained.rglob("*") if p.is_file()]
    manifests = [name for name in names if name.name == MANIFEST]
    kept = [name for name in names if len(name.parts) == 1]
    assert len(manifests) > 1
    for number, name in enumerate([*kept, *manifests]):
        folder = tmp_path / str(number) / "run"
        shutil.copytree(trained, folder)
        if name == pathlib.Path(".cifar_flax.lock"):
            continue
        pipe_at(folder / name)
        for act in (
            lambda folder=folder: report(folder.parent),
            lambda folder=folder: Run.load(folder, model=TinyNet()),
            lambda folder=folder: records.read_steps(folder),
        ):
            with contextlib.suppress(UserError):
                act()


@pytest.mark.slow
def test_a_manifest_that_is_a_pipe_is_no_checkpoint(trained, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(trained / records.CHECKPOINTS, folder)
    pipe_at(folder / "12" / MANIFEST)
    with open_checkpoints(folder, owner=False) as checkpoints:
        assert not checkpoints.is_sound(12)
        assert checkpoints.latest_step == 9
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.latest_step == 9
    assert (folder / "12.damaged-1").is_dir()


def test_a_plain_file_is_opened(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "link").symlink_to("a.npy")
    with open_plain(tmp_path / "link") as file:
        assert np.load(file).tolist() == [0, 1, 2]
