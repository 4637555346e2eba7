import hashlib
import logging
import pathlib
import shutil
import time

import pytest

from cifar_flax.data import (
    default_data_dir,
    download,
    load,
    load_dataset,
    make_dataset,
    prepare_cifar,
    tfds_source,
)
from cifar_flax.data.cifar import CIFARS
from cifar_flax.errors import UserError
from tests import archives
from tests.archives import both_kinds
from tests.data.conftest import NOWHERE, needs_array_record


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def shapes(monkeypatch, arrays):
    """Replaces the built-in data set, which takes a second to make."""
    dataset = make_dataset(
        "shapes",
        arrays.train_images[::-1],
        arrays.train_labels[::-1],
        arrays.test_images,
        arrays.test_labels,
        arrays.kind.class_names,
        source="built in",
    )
    monkeypatch.setattr(load, "_load_shapes", lambda _: dataset)
    return dataset


@pytest.fixture
def fetched(monkeypatch, data_dir, official_archive):
    """Allows a fake download; returns the calls of fetch_cifar."""
    calls = []

    def fetch(name, folder, *, max_seconds):
        calls.append((name, folder, max_seconds))
        path = pathlib.Path(folder, "downloads", "manual", official_archive.name)
        path.parent.mkdir(parents=True)
        return shutil.copy(official_archive, path)

    monkeypatch.setattr(download, "fetch_cifar", fetch)
    return calls


@pytest.fixture
def no_decoding(monkeypatch):
    """Returns a function after whose call only the cache can provide a data set."""

    def refuse(*_):
        raise AssertionError("decoded again")

    def forbid():
        monkeypatch.setattr(load, "read_archive", refuse)
        monkeypatch.setattr(tfds_source, "read_prepared", refuse)

    return forbid


class TestArchive:
    @both_kinds
    @pytest.mark.parametrize("name", ["auto", None])
    def test_is_used(self, data_dir, official_archive, arrays, kind, name):
        name = name or kind.name
        dataset = load_dataset(name, data_dir=data_dir, archive=official_archive)
        archives.assert_holds(dataset, arrays)
        assert dataset.name == kind.name

    @both_kinds
    def test_is_decoded_once(
        self, data_dir, official_archive, arrays, kind, no_decoding
    ):
        first = load_dataset(data_dir=data_dir, archive=official_archive)
        no_decoding()
        second = load_dataset(
            kind.name, data_dir=str(data_dir), archive=str(official_archive)
        )
        archives.assert_holds(second, arrays)
        assert second.name == kind.name
        assert second.fingerprint == first.fingerprint
        assert second.source == first.source

    @both_kinds
    @pytest.mark.parametrize("vouched", [False, True])
    def test_of_the_other_set_is_refused_in_a_line(
        self, data_dir, official_archive, kind, vouched
    ):
        checksum = archives.sha256(official_archive) if vouched else None
        (other,) = {*archives.KINDS} - {kind.name}
        with pytest.raises(UserError, match=f"--dataset={kind.name}") as error:
            load_dataset(
                other,
                data_dir=data_dir,
                archive=official_archive,
                archive_sha256=checksum,
            )
        assert f"--dataset={other} is another" in str(error.value)
        assert "\n" not in str(error.value)

    def test_checksum_is_verified_on_every_load(self, data_dir, official_archive):
        load_dataset(data_dir=data_dir, archive=official_archive)
        content = official_archive.read_bytes()
        official_archive.write_bytes(content + b"x")
        with pytest.raises(UserError, match="sha256"):
            load_dataset(data_dir=data_dir, archive=official_archive)

    def test_another_archive_is_another_cache(self, data_dir, tmp_path):
        for seed in (1, 2):
            arrays = archives.make_arrays(seed=seed)
            path = archives.write_binary_archive(tmp_path / "c.tar.gz", arrays)
            checksum = archives.sha256(path)
            dataset = load_dataset(
                data_dir=data_dir, archive=path, archive_sha256=checksum
            )
            archives.assert_holds(dataset, arrays)

    def test_what_a_checksum_vouched_for_is_not_trusted_without_it(
        self, data_dir, tmp_path, arrays
    ):
        files = archives.binary_files(arrays)
        folder = archives.write_folder(tmp_path / "f", files)
        checksum = archives.batches_sha256(files)
        given = load_dataset(data_dir=data_dir, archive=folder, archive_sha256=checksum)
        assert "checksum given" in given.source
        with pytest.raises(UserError, match="--archive_sha256"):
            load_dataset(data_dir=data_dir, archive=folder)

    def test_source_is_that_of_this_load(self, data_dir, official_archive):
        checksum = archives.sha256(official_archive)
        load_dataset(
            data_dir=data_dir, archive=official_archive, archive_sha256=checksum
        )
        again = load_dataset(data_dir=data_dir, archive=official_archive)
        assert again.source == f"official archive {official_archive.name}"

    def test_an_unpacked_binary_archive_has_equal_classes(
        self, monkeypatch, data_dir, tmp_path, arrays
    ):
        """Its sizes are the official ones, and no checksum of it is published."""
        archives.change(monkeypatch, "cifar10", sizes=(50, 10))
        files = archives.binary_files(arrays)
        folder = archives.write_folder(tmp_path / "f", files)
        dataset = load_dataset(data_dir=data_dir, archive=folder)
        archives.assert_holds(dataset, arrays)
        assert dataset.source == "unverified folder f"
        with pytest.raises(UserError, match="cannot be verified"):
            prepare_cifar("cifar10", folder, tmp_path / "data")
        test = bytearray((folder / "test_batch.bin").read_bytes())
        test[0] = (test[0] + 1) % 10
        (folder / "test_batch.bin").write_bytes(test)
        with pytest.raises(UserError, match=r"from 0 to 2 images.* --archive_sha256="):
            load_dataset(data_dir=data_dir, archive=folder)

    def test_an_unpacked_binary_archive_is_found(self, monkeypatch, data_dir, arrays):
        archives.change(monkeypatch, "cifar10", sizes=(50, 10))
        files = archives.binary_files(arrays)
        archives.write_folder(data_dir / "cifar-10-batches-bin", files)
        found = load_dataset("cifar10", data_dir=data_dir)
        assert found.source == "unverified folder cifar-10-batches-bin"

    def test_is_never_fallen_back_from(self, data_dir, tmp_path, shapes):
        with pytest.raises(UserError, match="there is no archive"):
            load_dataset("auto", data_dir=data_dir, archive=tmp_path / "none.tar.gz")

    @pytest.mark.parametrize("name", ["shapes", "svhn_cropped"])
    def test_of_another_data_set_is_a_contradiction(
        self, data_dir, official_archive, name
    ):
        with pytest.raises(UserError, match=f"dataset={name}"):
            load_dataset(name, data_dir=data_dir, archive=official_archive)

    @pytest.mark.parametrize("name", ["auto", "cifar10", "shapes"])
    def test_checksum_without_archive_is_an_error(self, data_dir, name):
        with pytest.raises(UserError, match="without an archive"):
            load_dataset(name, data_dir=data_dir, archive_sha256="0" * 64)

    def test_home_is_expanded(self, monkeypatch, data_dir, official_archive, arrays):
        monkeypatch.setenv("HOME", str(official_archive.parent))
        dataset = load_dataset(data_dir=data_dir, archive=f"~/{official_archive.name}")
        archives.assert_holds(dataset, arrays)


class ByName:
    """Tests of the data set that a name means without an archive."""

    @pytest.fixture
    def kind(self, name):
        return archives.KINDS["cifar10" if name == "auto" else name]


@pytest.mark.parametrize("name", ["auto", "cifar100"])
class TestOnDisk(ByName):
    @needs_array_record
    def test_prepared(self, data_dir, official_archive, arrays, name, no_decoding):
        prepare_cifar(arrays.kind.name, official_archive, data_dir)
        for _ in range(2):
            dataset = load_dataset(name, data_dir=data_dir)
            archives.assert_holds(dataset, arrays)
            assert dataset.source.startswith("tensorflow-datasets")
            no_decoding()

    @needs_array_record
    def test_prepared_anew(self, data_dir, official_archive, arrays, name):
        folder = prepare_cifar(arrays.kind.name, official_archive, data_dir)
        load_dataset(name, data_dir=data_dir)
        (path,) = folder.glob("*test.array_record*")
        path.write_bytes(b"")
        with pytest.raises(UserError, match="delete that folder"):
            load_dataset(name, data_dir=data_dir)
        shutil.rmtree(folder)
        prepare_cifar(arrays.kind.name, official_archive, data_dir)
        archives.assert_holds(load_dataset(name, data_dir=data_dir), arrays)

    @pytest.mark.parametrize("place", [".", "downloads/manual"])
    def test_archive(self, data_dir, official_archive, arrays, name, place):
        (data_dir / place).mkdir(parents=True)
        shutil.copy(official_archive, data_dir / place)
        dataset = load_dataset(name, data_dir=data_dir)
        archives.assert_holds(dataset, arrays)
        assert dataset.source == f"official archive {official_archive.name}"

    @pytest.mark.parametrize("place", [".", "downloads/manual"])
    def test_unpacked_archive(self, monkeypatch, data_dir, arrays, kind, name, place):
        files = archives.python_files(arrays)
        archives.write_folder(data_dir / place / kind.python_folder, files)
        published = CIFARS[kind.name].python.md5
        md5 = {name: hashlib.md5(files[name]).hexdigest() for name in published}
        archives.change_layout(monkeypatch, kind.name, "python", md5=md5)
        dataset = load_dataset(name, data_dir=data_dir)
        archives.assert_holds(dataset, arrays)
        assert dataset.source == f"official folder {kind.python_folder}"

    def test_python_archive(self, monkeypatch, data_dir, arrays, kind, name):
        data_dir.mkdir()
        path = data_dir / f"{kind.title.lower()}-python.tar.gz"
        archives.write_python_archive(path, arrays)
        archives.make_official(monkeypatch, path, arrays)
        archives.assert_holds(load_dataset(name, data_dir=data_dir), arrays)

    def test_broken_archive_is_an_error(
        self, data_dir, official_archive, name, shapes, fetched
    ):
        data_dir.mkdir()
        content = official_archive.read_bytes()
        (data_dir / official_archive.name).write_bytes(content[:-1])
        with pytest.raises(UserError, match="incomplete download"):
            load_dataset(name, data_dir=data_dir)
        assert not fetched

    def test_data_dir_may_come_from_the_environment(
        self, monkeypatch, data_dir, official_archive, arrays, name
    ):
        monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
        data_dir.mkdir()
        shutil.copy(official_archive, data_dir)
        archives.assert_holds(load_dataset(name), arrays)


@needs_array_record
class TestFetched(ByName):
    @pytest.mark.parametrize(
        ("name", "max_seconds"),
        [("auto", 15 * 60), ("cifar10", None), ("cifar100", None)],
    )
    def test_is_prepared_and_read(
        self, data_dir, arrays, fetched, caplog, name, max_seconds
    ):
        dataset = load_dataset(name, data_dir=data_dir)
        archives.assert_holds(dataset, arrays)
        assert dataset.source.startswith("tensorflow-datasets")
        assert fetched == [(arrays.kind.name, data_dir, max_seconds)]
        assert not caplog.records
        load_dataset(name, data_dir=data_dir)
        assert len(fetched) == 1

    @pytest.mark.parametrize("name", ["auto"])
    def test_is_read_where_it_cannot_be_prepared(
        self, monkeypatch, data_dir, arrays, fetched, caplog, name
    ):
        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(tfds_source, "_prepare", fail)
        dataset = load_dataset("auto", data_dir=data_dir)
        archives.assert_holds(dataset, arrays)
        assert dataset.source == "official archive cifar-10-binary.tar.gz"
        (record,) = caplog.records
        assert "No space left on device" in record.getMessage()


class TestNotFetched:
    REASONS = ("127.0.0.1 does not answer within 5 s", "about 47 minutes")

    @pytest.fixture(params=REASONS)
    def reason(self, monkeypatch, request):
        def fail(*_, **__):
            raise UserError(request.param)

        monkeypatch.setattr(download, "fetch_cifar", fail)
        return request.param

    def test_auto_takes_shapes_with_a_warning(self, data_dir, shapes, reason, caplog):
        assert load_dataset("auto", data_dir=data_dir) is shapes
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert record.name.startswith("cifar_flax")
        message = record.getMessage()
        for part in (reason, "'shapes'", "--data_archive", str(data_dir)):
            assert part in message
        assert "\n" not in message

    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_the_others_are_an_error(self, data_dir, shapes, reason, name):
        with pytest.raises(UserError) as error:
            load_dataset(name, data_dir=data_dir)
        for part in (reason, "--data_archive", NOWHERE, str(data_dir)):
            assert part in str(error.value)
        assert str(error.value).startswith(archives.KINDS[name].title)
        assert "shapes" not in str(error.value)

    @pytest.mark.parametrize("rate", [60_000.0, 180_000.0, 200_000.0, 1e7])
    def test_auto_downloads_what_takes_up_to_fifteen_minutes(
        self, monkeypatch, data_dir, shapes, rate
    ):
        begun = []

        def begin(*_, **__):
            begun.append(rate)
            raise UserError("broke off")

        monkeypatch.setattr(download, "measure_rate", lambda url: rate)
        monkeypatch.setattr(download, "download", begin)
        assert load_dataset("auto", data_dir=data_dir) is shapes
        # 170,052,171 bytes in 900 seconds are 188,947 bytes per second.
        assert bool(begun) == (rate > 188_947)

    def test_no_network_is_noticed_within_seconds(self, data_dir, shapes, caplog):
        start = time.monotonic()
        assert load_dataset("auto", data_dir=data_dir) is shapes
        with pytest.raises(UserError, match="cannot be reached"):
            load_dataset("cifar10", data_dir=data_dir)
        assert time.monotonic() - start < 4
        assert "refused" in caplog.text


class TestNames:
    def test_shapes_is_built_in(self, data_dir, shapes):
        assert load_dataset("shapes", data_dir=data_dir) is shapes

    def test_a_known_set_that_is_not_prepared(self, data_dir):
        with pytest.raises(UserError, match="is not prepared") as error:
            load_dataset("svhn_cropped", data_dir=data_dir)
        assert str(data_dir / "svhn_cropped") in str(error.value)
        assert "TensorFlow" in str(error.value)

    def test_an_unknown_set(self, data_dir):
        with pytest.raises(UserError, match="there is no data set nonesuch"):
            load_dataset("nonesuch", data_dir=data_dir)

    @pytest.mark.parametrize(
        "name",
        ["../cifar10", "/etc", "cifar10/3.0.2", "", "huggingface:cifar10", "a\\b", "Ä"],
    )
    def test_names_that_are_none(self, data_dir, name):
        with pytest.raises(UserError, match="not the name of a data set"):
            load_dataset(name, data_dir=data_dir)


def test_unreadable_data_dir_is_a_user_error(monkeypatch, data_dir):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "a file")

    monkeypatch.setattr(tfds_source, "prepared_folder", refuse)
    with pytest.raises(UserError, match=r"a file.*Permission denied"):
        load_dataset("cifar10", data_dir=data_dir)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("/some/where", "/some/where"), ("~/data", "{home}/data")]
    + [(unset, "{home}/tensorflow_datasets") for unset in ("", None)],
)
def test_default_data_dir(monkeypatch, tmp_path, variable, expected):
    monkeypatch.setenv("HOME", str(tmp_path))
    if variable is None:
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
    assert default_data_dir() == pathlib.Path(expected.format(home=tmp_path))
