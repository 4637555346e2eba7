"""Event files hold the metrics of the log points."""

import contextlib
import resource
import shutil
import struct
import sys
import types

import pytest

from cifar_flax.errors import UserError
from cifar_flax.records import LogPoint
from cifar_flax.show.tensorboard import FOLDER, TensorBoard

LINE = LogPoint(
    step=7,
    epoch=1,
    learning_rate=0.25,
    train_loss=[1.5, 2.5],
    train_accuracy=[0.5, 0.5],
    val_loss=None,
    val_accuracy=None,
    val_metrics={"ece": [0.125, 0.5]},
    images_per_second=100.0,
    seconds=3.0,
)


@contextlib.contextmanager
def opened(folder):
    """The observer of a run of two seeds."""
    trainer = types.SimpleNamespace(seeds=(3, 5))
    events = TensorBoard()
    events.started(
        types.SimpleNamespace(kind="run", folder=folder, trainer=trainer, step=0)
    )
    yield events
    events.ended(None)


def test_every_figure_of_every_seed_is_written(tmp_path):
    with opened(tmp_path) as events:
        events.epoch_done(LINE, None)
    (file,) = (tmp_path / FOLDER).iterdir()
    content = file.read_bytes()
    for tag, value in [
        (b"learning_rate", 0.25),
        (b"train_loss/seed_3", 1.5),
        (b"train_loss/seed_5", 2.5),
        (b"val_ece/seed_5", 0.5),
    ]:
        # In protocol buffers: the tag, then field 2 (0x15), a little-endian float.
        assert tag + b"\x15" + struct.pack("<f", value) in content
    assert b"val_loss" not in content
    assert b"\x07seconds" not in content


def test_on_a_full_disk_it_gives_up_and_says_so(tmp_path, caplog):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened(tmp_path) as events:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limit[1]))
        try:
            for _ in range(30):
                events.epoch_done(LINE, None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        events.epoch_done(LINE, None)
    (record,) = caplog.records
    assert "cannot write events for TensorBoard (File too large)" in record.getMessage()


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match="pip install"):
        TensorBoard()


def test_a_folder_that_is_removed_is_made_again(tmp_path, caplog):
    with opened(tmp_path) as events:
        events.epoch_done(LINE, None)
        shutil.rmtree(tmp_path / FOLDER)
        events.epoch_done(LINE, None)
    (file,) = (tmp_path / FOLDER).iterdir()
    assert b"train_loss/seed_5" in file.read_bytes()
    assert "was removed and is created again" in caplog.text
