"""Data on systems for which array_record, the format of prepared data, is not made."""

import shutil
import sys

import pytest

from cifar_flax.data import load_dataset, prepare_cifar
from cifar_flax.errors import UserError
from tests import archives
from tests.data.conftest import needs_array_record
from tests.data.test_tfds_source import as_tfrecord


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def blocked(monkeypatch):
    """Makes the import of array_record fail."""

    def block():
        for name in ("array_record", "array_record.python"):
            monkeypatch.setitem(sys.modules, name, None)

    return block


def test_an_archive_is_read_and_found(blocked, data_dir, official_archive, arrays):
    blocked()
    archives.assert_holds(
        load_dataset(archive=official_archive, data_dir=data_dir), arrays
    )
    (data_dir / "downloads" / "manual").mkdir(parents=True)
    shutil.copy(official_archive, data_dir / "downloads" / "manual")
    archives.assert_holds(load_dataset("cifar10", data_dir=data_dir), arrays)


def test_a_download_is_read_without_a_warning(
    blocked, monkeypatch, data_dir, official_archive, arrays, caplog
):
    from cifar_flax.data import download

    blocked()
    monkeypatch.setattr(download, "fetch_cifar", lambda *_, **__: official_archive)
    archives.assert_holds(load_dataset("cifar10", data_dir=data_dir), arrays)
    assert not caplog.records


def test_preparing_names_the_way_that_works(blocked, data_dir, official_archive):
    blocked()
    with pytest.raises(UserError, match=r"without array_record, .*--data_archive"):
        prepare_cifar("cifar10", official_archive, data_dir)
    assert not (data_dir / "cifar10").exists()


@needs_array_record
@pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
def test_prepared_data(blocked, data_dir, official_archive, arrays, file_format):
    folder = prepare_cifar("cifar10", official_archive, data_dir)
    if file_format == "tfrecord":
        as_tfrecord(folder)
    blocked()
    if file_format == "tfrecord":
        archives.assert_holds(load_dataset("cifar10", data_dir=data_dir), arrays)
        return
    with pytest.raises(UserError, match="without array_record") as error:
        load_dataset("cifar10", data_dir=data_dir)
    assert "delete" not in str(error.value)
    assert str(folder) in str(error.value)
