import hashlib
import json
import logging
import os
import pathlib
import shutil
import socket
import struct
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import logging as absl_logging
from PIL import Image
from tensorflow_datasets.core import registered

from cifar_flax.data import load_dataset, prepare_cifar, tfds_source
from cifar_flax.errors import UserError
from tests import archives
from tests.archives import both_kinds
from tests.data.conftest import needs_array_record

pytestmark = needs_array_record

RNG = np.random.default_rng(0)
IMAGE = tfds.features.Image(shape=(32, 32, 3))


@pytest.fixture
def prepared(tmp_path, official_archive, kind):
    """Prepares a tiny CIFAR set in ``tmp_path/data``; returns its folder."""
    return prepare_cifar(kind.name, official_archive, tmp_path / "data")


def read(folder, name="cifar10"):
    return tfds_source.read_prepared(folder, name)


def masked_crc32c(data):
    """Computes the checksum of TFRecord files, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def as_tfrecord(folder, shards=1):
    """Converts a prepared folder to the default format of tfds, with TensorFlow."""
    from array_record.python import array_record_module

    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        (path,) = folder.glob(f"*-{split['name']}.array_record-*")
        reader = array_record_module.ArrayRecordReader(str(path))
        records = reader.read_all()
        reader.close()
        path.unlink()
        parts = np.array_split(np.arange(len(records)), shards)
        split["shardLengths"] = [str(len(part)) for part in parts]
        for shard, part in enumerate(parts):
            name = f"{path.name.split('.')[0]}.tfrecord-{shard:05d}-of-{shards:05d}"
            with (folder / name).open("wb") as file:
                for index in part:
                    length = struct.pack("<Q", len(records[index]))
                    file.write(length + struct.pack("<I", masked_crc32c(length)))
                    file.write(records[index])
                    file.write(struct.pack("<I", masked_crc32c(records[index])))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def prepare(data_dir, name, splits, features, version="1.0.0", supervised=None):
    """Prepares a data set of any features with tfds; returns its folder."""
    pytest.importorskip("array_record", reason="it is not made for this system")
    with registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)

            def _info(self):
                return self.dataset_info_from_configs(
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=supervised,
                )

            def _split_generators(self, dl_manager):
                return {split: enumerate(rows) for split, rows in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

    Builder.name = name
    with tfds_source._quiet_tfds():
        builder = Builder(data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(try_download_gcs=False)
        )
    return pathlib.Path(builder.data_path)


def rows(images, labels, image_key="image", label_key="label"):
    return [
        {image_key: Image.fromarray(image), label_key: int(label)}
        for image, label in zip(images, labels, strict=True)
    ]


def by_content(images, labels):
    """Returns images and labels in an order that depends only on the images."""
    order = sorted(range(len(images)), key=lambda i: images[i].tobytes())
    return images[order], labels[order]


@both_kinds
class TestCifar:
    def test_round_trip(self, prepared, arrays, kind):
        dataset = read(prepared, kind.name)
        archives.assert_holds(dataset, arrays)
        assert dataset.name == kind.name
        if kind is archives.CIFAR10:
            assert dataset.mean == (0.4914, 0.48216, 0.44653)
        else:
            pixels = arrays.train_images / 255
            np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)))
        assert dataset.source == f"tensorflow-datasets {kind.name}/3.0.2 (array_record)"

    def test_fingerprint_is_that_of_the_archive(
        self, prepared, official_archive, tmp_path, kind
    ):
        from_archive = load_dataset(archive=official_archive, data_dir=tmp_path)
        assert read(prepared, kind.name).fingerprint == from_archive.fingerprint

    def test_tfrecord_is_read_as_well(self, prepared, arrays, kind):
        dataset = read(as_tfrecord(prepared, shards=3), kind.name)
        archives.assert_holds(dataset, arrays)
        assert dataset.source == f"tensorflow-datasets {kind.name}/3.0.2 (tfrecord)"

    def test_other_programs_find_it_by_the_stock_builder(
        self, tmp_path, prepared, arrays, kind
    ):
        builder = tfds.builder(kind.name, data_dir=tmp_path / "data")
        assert type(builder).__module__.startswith("tensorflow_datasets.")
        assert builder.is_prepared()
        assert pathlib.Path(builder.data_path) == prepared
        source = builder.as_data_source("train")
        assert len(source) == len(arrays.train_labels)
        superclasses = archives.coarse(arrays.train_labels % 100)
        for example in source:
            index = int(example["id"].decode().removeprefix("train_"))
            np.testing.assert_array_equal(example["image"], arrays.train_images[index])
            assert example["label"] == arrays.train_labels[index]
            if kind is archives.CIFAR100:
                assert example["coarse_label"] == superclasses[index]
        features = builder.info.features
        assert features["label"].names == kind.class_names
        if kind is archives.CIFAR100:
            assert set(features) == {"id", "image", "label", "coarse_label"}
            assert features["coarse_label"].names == archives.COARSE_NAMES

    def test_the_order_on_disk_is_another(self, tmp_path, prepared, arrays, kind):
        """Otherwise the test of the order above would be trivial."""
        source = tfds.data_source(kind.name, split="train", data_dir=tmp_path / "data")
        labels = [example["label"] for example in source]
        assert labels != arrays.train_labels.tolist()

    def test_preparing_again_does_nothing(self, prepared, tmp_path, kind):
        before = {path: path.stat().st_mtime_ns for path in prepared.iterdir()}
        again = prepare_cifar(kind.name, tmp_path / "not read", prepared.parent.parent)
        assert again == prepared
        assert {path: path.stat().st_mtime_ns for path in prepared.iterdir()} == before

    def test_only_the_official_archive_is_prepared(
        self, tmp_path, binary_archive, kind
    ):
        with pytest.raises(UserError, match="sha256"):
            prepare_cifar(kind.name, binary_archive, tmp_path / "data")
        assert tfds_source.prepared_folder(tmp_path / "data", kind.name) is None

    @pytest.mark.parametrize("lost", ["train", "test"])
    def test_a_cut_preparation_is_refused(self, prepared, lost, kind):
        info = json.loads((prepared / "dataset_info.json").read_text())
        for split in info["splits"]:
            if split["name"] == lost:
                split["shardLengths"] = ["7"]
        (prepared / "dataset_info.json").write_text(json.dumps(info))
        with pytest.raises(UserError, match="delete that folder") as error:
            read(prepared, kind.name)
        assert str(prepared) in str(error.value)

    def test_a_full_disk_is_a_user_error(
        self, monkeypatch, tmp_path, official_archive, kind
    ):
        from array_record.python import array_record_module

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(array_record_module.ArrayRecordWriter, "write", full)
        with pytest.raises(UserError, match="No space left") as error:
            prepare_cifar(kind.name, official_archive, tmp_path / "data")
        assert "\n" not in str(error.value)
        assert tfds_source.prepared_folder(tmp_path / "data", kind.name) is None

    def test_a_folder_that_cannot_be_written(self, tmp_path, official_archive, kind):
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="--data_dir"):
            prepare_cifar(kind.name, official_archive, tmp_path / "file")

    def test_no_network_is_asked_for(
        self, monkeypatch, tmp_path, official_archive, kind
    ):
        def refuse(*_, **__):
            raise AssertionError("network")

        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket.socket, "connect", refuse)
        read(prepare_cifar(kind.name, official_archive, tmp_path / "data"), kind.name)

    def test_nothing_is_printed(self, capfd, caplog, prepared, kind):
        read(prepared, kind.name)
        captured = capfd.readouterr()
        assert (captured.out, captured.err) == ("", "")
        assert not caplog.records


class TestFolder:
    def test_interrupted_preparations_are_not_taken(self, tmp_path, prepared):
        prepared.rename(prepared.parent / "incomplete.ABCDEF_3.0.2")
        assert tfds_source.prepared_folder(tmp_path / "data", "cifar10") is None

    def test_other_versions_of_cifar10_are_not_taken(self, tmp_path, prepared):
        prepared.rename(prepared.parent / "3.0.1")
        assert tfds_source.prepared_folder(tmp_path / "data", "cifar10") is None

    def test_the_newest_version_of_others_is_taken(self, tmp_path):
        for version in ("1.2.0", "1.10.0", "1.9.9", "2.0.0", "x.y.z"):
            folder = tmp_path / "other" / version
            folder.mkdir(parents=True)
            if version != "2.0.0":
                (folder / "dataset_info.json").write_text("{}")
        found = tfds_source.prepared_folder(tmp_path, "other")
        assert found == tmp_path / "other" / "1.10.0"

    def test_nothing_there(self, tmp_path):
        assert tfds_source.prepared_folder(tmp_path, "cifar10") is None

    def test_the_key_changes_with_one_byte_of_a_file_of_equal_size_and_time(
        self, prepared
    ):
        before = tfds_source.prepared_key(prepared)
        for path in prepared.iterdir():
            whole, times = path.read_bytes(), path.stat()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            assert tfds_source.prepared_key(prepared) != before
            path.write_bytes(whole)
        assert tfds_source.prepared_key(prepared) == before

    def test_the_key_changes_with_the_preparation(self, prepared):
        keys = {tfds_source.prepared_key(prepared)}
        assert {tfds_source.prepared_key(prepared)} == keys
        (path,) = prepared.glob("*train*")
        path.write_bytes(path.read_bytes() + b"x")
        keys.add(tfds_source.prepared_key(prepared))
        path.rename(path.with_name("renamed"))
        keys.add(tfds_source.prepared_key(prepared))
        (prepared / "dataset_info.json").write_text("{}")
        keys.add(tfds_source.prepared_key(prepared))
        assert len(keys) == 4


class TestDamage:
    @pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
    @pytest.mark.parametrize(
        "damage",
        [
            lambda content: content[: len(content) // 2],
            lambda content: b"",
            lambda content: content[:-10],
            lambda content: bytes(len(content)),
            lambda content: b"\xff" * len(content),
        ],
        ids=["half", "empty", "cut", "zeros", "ones"],
    )
    def test_damaged_records(self, prepared, file_format, damage):
        if file_format == "tfrecord":
            as_tfrecord(prepared)
        (path,) = prepared.glob("*test.*record*")
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError, match="delete that folder") as error:
            read(prepared)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
    def test_missing_records(self, prepared, file_format):
        if file_format == "tfrecord":
            as_tfrecord(prepared)
        (path,) = prepared.glob("*test.*record*")
        path.unlink()
        with pytest.raises(UserError, match="delete that folder"):
            read(prepared)

    def test_the_damage_is_named(self, prepared):
        as_tfrecord(prepared)
        (path,) = prepared.glob("*test.tfrecord*")
        content = path.read_bytes()
        path.write_bytes(content[:-1])
        with pytest.raises(UserError, match=f"{path.name} is cut short"):
            read(prepared)
        path.write_bytes(bytes([255]) * 8 + content[8:])
        with pytest.raises(UserError, match=f"{path.name} is damaged"):
            read(prepared)

    def test_a_lost_record(self, prepared):
        as_tfrecord(prepared)
        (path,) = prepared.glob("*test.tfrecord*")
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        path.write_bytes(content[length + 16 :])
        with pytest.raises(UserError, match="9 examples in the test split, not 10"):
            read(prepared)

    @pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
    def test_damaged_description(self, prepared, name):
        (prepared / name).write_text("{")
        with pytest.raises(UserError, match="delete that folder"):
            read(prepared)

    def test_another_format(self, prepared):
        path = prepared / "dataset_info.json"
        path.write_text(path.read_text().replace("array_record", "riegeli"))
        with pytest.raises(UserError, match="riegeli"):
            read(prepared)


class TestOtherSets:
    @pytest.fixture
    def splits(self, arrays):
        return {
            "train": rows(arrays.train_images, arrays.train_labels),
            "test": rows(arrays.test_images, arrays.test_labels),
        }

    @pytest.mark.parametrize("file_format", ["array_record", "tfrecord"])
    def test_is_loaded_by_its_name(self, tmp_path, arrays, splits, file_format):
        names = [f"digit {i}" for i in range(10)]
        features = {"image": IMAGE, "label": tfds.features.ClassLabel(names=names)}
        folder = prepare(tmp_path, "svhn_cropped", splits, features, "3.1.0")
        if file_format == "tfrecord":
            as_tfrecord(folder)
        dataset = load_dataset("svhn_cropped", data_dir=tmp_path)
        assert dataset.name == "svhn_cropped"
        assert dataset.class_names == tuple(names)
        assert "svhn_cropped/3.1.0" in dataset.source
        # Without an id the order is that of tfds.
        for split in ("train", "test"):
            got = (getattr(dataset, f"{split}_{x}") for x in ("images", "labels"))
            expected = (getattr(arrays, f"{split}_{x}") for x in ("images", "labels"))
            for x, y in zip(by_content(*got), by_content(*expected), strict=True):
                np.testing.assert_array_equal(x, y)
        pixels = arrays.train_images / 255
        np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)))
        np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)))

    def test_supervised_keys_say_which_features(self, tmp_path, arrays):
        features = {
            "picture": IMAGE,
            "image": tfds.features.Scalar(dtype=np.int64),
            "label": tfds.features.ClassLabel(num_classes=2),
            "fine": tfds.features.ClassLabel(num_classes=10),
        }
        splits = {
            split: [
                row | {"image": 0, "label": 1}
                for row in rows(x[:5], y[:5], "picture", "fine")
            ]
            for split, x, y in (
                ("train", arrays.train_images, arrays.train_labels),
                ("test", arrays.test_images, arrays.test_labels),
            )
        }
        folder = prepare(
            tmp_path, "odd", splits, features, supervised=("picture", "fine")
        )
        dataset = read(folder, "odd")
        assert sorted(dataset.test_labels) == sorted(arrays.test_labels[:5])
        assert dataset.num_classes == 10

    def test_without_a_test_split_the_validation_images_are_the_test_set(
        self, tmp_path, arrays, splits
    ):
        features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=10)}
        splits["validation"], splits["extra"] = splits.pop("test"), splits["train"][:3]
        prepare(tmp_path, "other", splits, features)
        for _ in range(2):  # from the files, then from the cache
            data = load_dataset("other", data_dir=tmp_path)
            got = by_content(data.test_images, data.test_labels)
            expected = by_content(arrays.test_images, arrays.test_labels)
            np.testing.assert_array_equal(got[0], expected[0])
            assert not data.has_validation
            assert data.source.endswith(", its validation images as the test set")
            assert data.reading.notes == ("the split extra is left out",)
        del splits["validation"], splits["extra"]
        prepare(tmp_path, "alone", splits, features)
        data = load_dataset("alone", data_dir=tmp_path)
        assert "of 50 images held out as the test set" in data.source
        assert len(data.train_labels) + len(data.test_labels) == 50

    def test_a_configuration_is_loaded_by_its_name(self, tmp_path, splits):
        features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=10)}
        for config in ("clean", "noisy.v2"):
            folder = prepare(tmp_path / config, "other", splits, features)
            shutil.copytree(folder, tmp_path / "other" / config / folder.name)
            splits["train"] = splits["train"][:-10]
        sizes = {}
        for config in ("clean", "noisy.v2"):
            data = load_dataset(f"other/{config}", data_dir=tmp_path)
            assert data.name == f"other_{config}"
            assert f"other/{config}/1.0.0" in data.source
            sizes[config] = len(data.train_labels)
        assert sizes == {"clean": 50, "noisy.v2": 40}
        with pytest.raises(UserError, match=r"other/clean, other/noisy\.v2"):
            load_dataset("other", data_dir=tmp_path)
        with pytest.raises(UserError, match="no data set other/dirty"):
            load_dataset("other/dirty", data_dir=tmp_path)

    def test_a_record_may_be_large(self, tmp_path):
        """A picture of noise takes more than a mebibyte."""
        noise = RNG.integers(0, 256, (2, 640, 640, 3), dtype=np.uint8)
        features = {
            "image": tfds.features.Image(shape=(640, 640, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        both = {split: rows(noise, [0, 1]) for split in ("train", "test")}
        folder = prepare(tmp_path, "large", both, features)
        before = read(folder, "large")
        with mock.patch(f"{__name__}.masked_crc32c", return_value=0):  # not checked
            as_tfrecord(folder)
        assert read(folder, "large").fingerprint == before.fingerprint

    @pytest.mark.parametrize("image_size", [None, 16])
    def test_a_validation_split(self, tmp_path, arrays, splits, image_size):
        features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=10)}
        images, labels = arrays.train_images[:7], arrays.train_labels[:7]
        splits["validation"] = rows(images, labels)
        prepare(tmp_path, "other", splits, features)
        for _ in range(2):  # from the files, then from the cache
            data = load_dataset("other", data_dir=tmp_path, image_size=image_size)
            if image_size is None:
                got = by_content(data.val_images, data.val_labels)
                for x, y in zip(got, by_content(images, labels), strict=True):
                    np.testing.assert_array_equal(x, y)
            else:
                assert data.val_images.shape == (7, 16, 16, 3)
            assert len(data.train_labels) == 50

    def test_a_cache_without_its_validation_split_is_not_taken(self, tmp_path, splits):
        features = {"image": IMAGE, "label": tfds.features.ClassLabel(num_classes=10)}
        splits["validation"] = splits["test"]
        folder = prepare(tmp_path, "other", splits, features)
        # The key of the version that did not read this split.
        key = hashlib.sha256((folder / "dataset_info.json").read_bytes())
        for path in sorted(folder.iterdir()):
            key.update(f"{path.name} {path.stat().st_size}\n".encode())
        assert tfds_source.prepared_key(folder) != key.hexdigest()

    def prepared(self, folder, shape):
        image = RNG.integers(0, 256, [side or 32 for side in shape], np.uint8)
        splits = {n: rows([image.squeeze()], [0]) for n in ("train", "test")}
        features = {
            "image": tfds.features.Image(shape=shape),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        prepare(folder, "other", splits, features)
        return image

    @pytest.mark.parametrize("shape", [(28, 28, 1), (64, 48, 3)])
    def test_images_of_another_size(self, tmp_path, shape):
        image = self.prepared(tmp_path, shape)
        data = load_dataset("other", data_dir=tmp_path)
        np.testing.assert_array_equal(data.train_images, image[None])

    def test_images_of_different_sizes_are_refused(self, tmp_path):
        self.prepared(tmp_path, (None, None, 3))
        with pytest.raises(UserError, match=r"\[None, None, 3\]; they must be uint8"):
            load_dataset("other", data_dir=tmp_path)

    @pytest.mark.parametrize(
        "features",
        [
            {"image": IMAGE, "label": tfds.features.Scalar(dtype=np.int64)},
            {"image": IMAGE, "target": tfds.features.ClassLabel(num_classes=10)},
            {
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["a"]),
            },
        ],
        ids=["number", "no label", "text"],
    )
    def test_not_for_classification(self, tmp_path, arrays, features):
        values = {
            "image": Image.fromarray(arrays.test_images[0]),
            "label": 0,
            "target": 0,
            "text": "",
        }
        row = {key: values[key] for key in features}
        splits = {"train": [row], "test": [row]}
        prepare(tmp_path, "other", splits, features)
        with pytest.raises(UserError, match="not an image classification set"):
            load_dataset("other", data_dir=tmp_path)


class TestQuiet:
    def test_warnings_come_through_and_notes_do_not(self, capsys, caplog):
        verbosity = absl_logging.get_verbosity()
        absl_logging.set_verbosity(absl_logging.INFO)
        try:
            with tfds_source._quiet_tfds():
                absl_logging.info("a note")
                absl_logging.warning("OpenCV is not installed. It would be faster.")
                absl_logging.warning("a warning")
                print("a print")
            assert absl_logging.get_verbosity() == absl_logging.INFO
            absl_logging.info("afterwards")
        finally:
            absl_logging.set_verbosity(verbosity)
        assert capsys.readouterr().out == ""
        assert caplog.messages == ["a warning", "afterwards"]

    def test_the_logger_is_left_as_it_was(self, prepared):
        logger = logging.getLogger("absl")
        filters = list(logger.filters)
        read(prepared)
        assert logger.filters == filters
