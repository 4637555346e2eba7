import contextlib
import gzip
import hashlib
import pickle
import sys
import tarfile
import zlib

import numpy as np
import pytest

from cifar_flax.data import archive as archive_module
from cifar_flax.data.archive import open_archive, read_archive, read_contents
from cifar_flax.data.cifar import CIFARS
from cifar_flax.errors import UserError
from tests import archives
from tests.archives import (
    BINARY_FOLDER,
    CIFAR10,
    CIFAR100,
    KIND_OF,
    PYTHON_FOLDER,
    both_kinds,
)


def read(path, sha256=None):
    """Reads an archive with a checksum, by default its own."""
    return read_archive(open_archive(path, sha256 or archives.sha256(path)))


def member(name, content=b"", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, len(content)
    return info, content


@pytest.mark.parametrize("folder", KIND_OF)
@pytest.mark.parametrize("form", ["archive", "folder", "parent"])
def test_every_form_holds_the_same_images(tmp_path, folder, form):
    kind = KIND_OF[folder]
    arrays = archives.make_arrays(kind=kind)
    files = archives.files_of(folder, arrays)
    if form == "archive":
        path = archives.write_tar(tmp_path / "c.tar.gz", folder, files)
        checksum = archives.sha256(path)
    else:
        path = archives.write_folder(tmp_path / folder, files)
        path = path.parent if form == "parent" else path
        checksum = archives.batches_sha256(files)
    dataset = read(path, checksum.upper())
    archives.assert_holds(dataset, arrays)
    assert dataset.name == kind.name
    if kind is CIFAR10:
        assert dataset.mean == (0.4914, 0.48216, 0.44653)
        assert dataset.std == (0.24703, 0.24349, 0.26159)
    else:
        pixels = arrays.train_images / 255
        np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)))
        np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)))
    assert "checksum given" in dataset.source
    assert str(tmp_path) not in dataset.source


@pytest.mark.parametrize("folder", [CIFAR100.binary_folder, CIFAR100.python_folder])
def test_the_coarse_labels_are_kept_apart(tmp_path, folder):
    arrays = archives.make_arrays(kind=CIFAR100)
    files = archives.files_of(folder, arrays)
    path = archives.write_tar(tmp_path / "c.tar.gz", folder, files)
    contents = read_contents(open_archive(path, archives.sha256(path)))
    for split, labels in (("train", arrays.train_labels), ("test", arrays.test_labels)):
        found = contents.labels[split]
        np.testing.assert_array_equal(found["label"], labels)
        np.testing.assert_array_equal(found["coarse_label"], archives.coarse(labels))
    assert contents.class_names["coarse_label"] == tuple(archives.COARSE_NAMES)


class TestWhichOne:
    """Tests of the choice between CIFAR-10 and CIFAR-100."""

    @both_kinds
    @pytest.mark.parametrize("form", ["archive", "folder"])
    def test_another_one_is_refused_in_a_line(self, tmp_path, arrays, kind, form):
        other = CIFAR10 if kind is CIFAR100 else CIFAR100
        files = archives.binary_files(arrays)
        if form == "archive":
            path = archives.write_binary_archive(tmp_path / "c.tar.gz", arrays)
            checksum = archives.sha256(path)
        else:
            path = archives.write_folder(tmp_path / "f", files)
            checksum = archives.batches_sha256(files)
        assert open_archive(path, checksum, kind.name).cifar.name == kind.name
        with pytest.raises(UserError) as error:
            open_archive(path, checksum, other.name)
        message = str(error.value)
        for words in (f"of {kind.title}, and", f"--dataset={kind.name}", str(path)):
            assert words in message
        assert "\n" not in message

    def test_of_a_folder_with_both_the_one_that_is_asked_for_is_read(self, tmp_path):
        checksums = {}
        for kind in archives.KINDS.values():
            files = archives.python_files(archives.make_arrays(1, kind=kind))
            archives.write_folder(tmp_path / kind.python_folder, files)
            checksums[kind.name] = archives.batches_sha256(files)
        for name, checksum in checksums.items():
            assert open_archive(tmp_path, checksum, name).cifar.name == name
        assert open_archive(tmp_path, checksums["cifar10"]).cifar.name == "cifar10"

    def test_an_archive_of_both_is_refused(self, tmp_path, arrays):
        files = archives.binary_files(arrays)
        extra = member(f"{CIFAR100.binary_folder}/test.bin", bytes(3074))
        path = tmp_path / "c.tar.gz"
        archives.write_tar(path, BINARY_FOLDER, files, extra=[extra])
        with pytest.raises(UserError, match="must hold one of the folders"):
            read(path)


def test_a_renamed_folder_is_read(tmp_path, arrays):
    files = archives.binary_files(arrays)
    folder = archives.write_folder(tmp_path / "renamed", files)
    archives.assert_holds(read(folder, archives.batches_sha256(files)), arrays)


def test_batches_may_differ_in_size(tmp_path):
    batches = [archives.make_arrays(10, seed).batches[0] for seed in range(6)]
    batches = [(x[: i + 1], y[: i + 1]) for i, (x, y) in enumerate(batches)]
    arrays = archives.Arrays(batches)
    path = archives.write_binary_archive(tmp_path / "c.tar.gz", arrays)
    archives.assert_holds(read(path), arrays)
    path = archives.write_python_archive(tmp_path / "p.tar.gz", arrays)
    archives.assert_holds(read(path), arrays)


@both_kinds
@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("text", [str, str.encode])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_python_3_are_read(tmp_path, kind, protocol, text, order):
    def converted(values):
        return {
            text(key.decode()): [text(v.decode()) for v in value]
            if isinstance(value, list) and isinstance(value[0], bytes)
            else value
            for key, value in values.items()
        }

    arrays = archives.make_arrays(10, kind=kind)
    names = converted(archives.class_name_lists(kind))
    files = {kind.meta: pickle.dumps(names, protocol)}
    for name, (images, labels) in zip(kind.python_names, arrays.batches, strict=True):
        data = np.asarray(archives.planes(images), order=order)
        batch = {text("data"): data, **converted(archives.label_lists(kind, labels))}
        files[name] = pickle.dumps(batch, protocol)
    path = archives.write_tar(tmp_path / "c.tar.gz", kind.python_folder, files)
    archives.assert_holds(read(path), arrays)


def test_the_python_2_pickles_of_these_tests_are_true_to_life(arrays):
    content = archives.python_files(arrays)["test_batch"]
    batch = pickle.loads(content, encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"], archives.planes(arrays.test_images))
    assert batch[b"labels"] == arrays.test_labels.tolist()


def test_an_archive_is_not_unpacked(tmp_path, binary_archive):
    before = sorted(tmp_path.rglob("*"))
    read(binary_archive)
    assert sorted(tmp_path.rglob("*")) == before


class TestChecksum:
    @both_kinds
    def test_the_official_one_is_enough(self, official_archive, arrays, kind):
        opened = open_archive(official_archive)
        assert opened.trust == "official"
        dataset = read_archive(opened)
        archives.assert_holds(dataset, arrays)
        name = f"{kind.title.lower()}-binary.tar.gz"
        assert dataset.source == f"official archive {name}"
        assert opened.cifar.name == kind.name

    def test_another_is_refused_with_a_remedy(self, binary_archive):
        with pytest.raises(UserError) as error:
            open_archive(binary_archive)
        own = archives.sha256(binary_archive)
        assert f"--archive_sha256={own}" in str(error.value)
        assert "incomplete download" in str(error.value)

    @pytest.mark.parametrize("given", ["0" * 64, "c" * 63, "not a checksum"])
    def test_a_given_one_must_match(self, official_archive, given):
        with pytest.raises(UserError, match="sha256"):
            open_archive(official_archive, given)

    def test_a_changed_byte_is_noticed(self, official_archive):
        content = bytearray(official_archive.read_bytes())
        content[len(content) // 2] ^= 1
        official_archive.write_bytes(content)
        with pytest.raises(UserError, match="not an official one"):
            open_archive(official_archive)

    @both_kinds
    def test_an_official_python_folder_is_known_by_its_md5(
        self, monkeypatch, tmp_path, arrays, kind
    ):
        files = archives.python_files(arrays)
        folder = archives.write_folder(tmp_path / kind.python_folder, files)
        with pytest.raises(UserError, match="--archive_sha256"):
            open_archive(folder)
        published = CIFARS[kind.name].python.md5
        md5 = {name: hashlib.md5(files[name]).hexdigest() for name in published}
        archives.change_layout(monkeypatch, kind.name, "python", md5=md5)
        dataset = read_archive(open_archive(tmp_path))
        archives.assert_holds(dataset, arrays)
        assert dataset.source == f"official folder {kind.python_folder}"
        last = folder / list(published)[-1]
        last.write_bytes(last.read_bytes() + b"x")
        with pytest.raises(UserError, match="--archive_sha256"):
            open_archive(folder)

    def test_the_published_checksums_are_used(self):
        # From the project's facts, and found again in other projects' sources.
        found = {of.archive: of.sha256 for c in CIFARS.values() for of in c.layouts}
        assert found == {
            "cifar-10-binary.tar.gz": (
                "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            ),
            "cifar-10-python.tar.gz": (
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
            ),
            "cifar-100-binary.tar.gz": (
                "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"
            ),
            "cifar-100-python.tar.gz": (
                "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
            ),
        }
        assert CIFARS["cifar100"].python.md5 == {
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        }


@both_kinds
def test_the_class_names_of_a_folder_are_part_of_the_key(tmp_path, arrays, kind):
    files = archives.binary_files(arrays)
    folder = archives.write_folder(tmp_path / kind.binary_folder, files)
    checksum = archives.batches_sha256(files)
    before = open_archive(folder, checksum)
    (names,) = (*folder.glob("batches.meta.txt"), *folder.glob("fine_label*"))
    names.write_bytes(names.read_bytes()[:-2])
    after = open_archive(folder, checksum)
    assert before.checksum == after.checksum
    assert before.cache_key != after.cache_key


class TestDamage:
    def test_missing_file(self, tmp_path):
        with pytest.raises(UserError, match="there is no archive"):
            open_archive(tmp_path / "none.tar.gz")

    def test_folder_without_cifar10(self, tmp_path):
        with pytest.raises(UserError, match="holds no files of an official archive"):
            open_archive(tmp_path)

    def test_not_a_gzip_file(self, tmp_path):
        path = tmp_path / "c.tar.gz"
        path.write_bytes(b"<html>404</html>" * 100)
        with pytest.raises(UserError, match=r"not a complete \.tar\.gz"):
            read(path)

    def test_not_a_tar_file(self, tmp_path):
        path = tmp_path / "c.tar.gz"
        path.write_bytes(gzip.compress(b"<html>404</html>" * 100))
        with pytest.raises(UserError, match=r"not a complete \.tar\.gz"):
            read(path)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
    def test_truncated_archive(self, binary_archive, share):
        content = binary_archive.read_bytes()
        binary_archive.write_bytes(content[: int(share * len(content))])
        with pytest.raises(UserError, match="get it again"):
            read(binary_archive)

    def test_corrupt_gzip(self, binary_archive):
        content = bytearray(binary_archive.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 100] = bytes(100)
        binary_archive.write_bytes(content)
        with pytest.raises(UserError):
            read(binary_archive)

    @pytest.mark.parametrize("place", [0, 1_500_000])
    def test_gzip_of_an_impossible_block(self, tmp_path, place):
        path = archives.write_binary_archive(
            tmp_path / "c.tar.gz", archives.make_arrays(100)
        )
        packer = zlib.compressobj(1, wbits=31)
        content = packer.compress(gzip.decompress(path.read_bytes())[:place])
        content += packer.flush(zlib.Z_FULL_FLUSH) + bytes([255]) * 1000
        path.write_bytes(content)
        with pytest.raises(UserError, match="invalid block type"):
            read(path)

    def test_truncated_tar_in_whole_gzip(self, binary_archive):
        content = gzip.decompress(binary_archive.read_bytes())
        binary_archive.write_bytes(gzip.compress(content[:100_000]))
        with pytest.raises(UserError, match="get it again"):
            read(binary_archive)

    @pytest.mark.parametrize("folder", KIND_OF)
    def test_missing_member(self, tmp_path, folder):
        arrays = archives.make_arrays(1, kind=KIND_OF[folder])
        for name in (files := archives.files_of(folder, arrays)):
            rest = {key: value for key, value in files.items() if key != name}
            path = archives.write_tar(tmp_path / "c.tar.gz", folder, rest)
            with pytest.raises(UserError, match=f"has no {folder}/{name};"):
                read(path)

    def test_missing_file_of_a_folder(self, tmp_path, arrays):
        files = archives.python_files(arrays)
        folder = archives.write_folder(tmp_path / "f", files)
        (folder / "data_batch_4").unlink()
        with pytest.raises(UserError, match="has no data_batch_4"):
            open_archive(folder)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("data_batch_2.bin", bytes(3072), "not a whole number of records"),
            ("data_batch_2.bin", bytes(3074), "not a whole number of records"),
            ("data_batch_2.bin", b"", "not a whole number of records"),
            ("test_batch.bin", bytes([10]) + bytes(3072), "has the label 10"),
            ("test_batch.bin", bytes([255]) + bytes(3072), "has the label 255"),
            ("batches.meta.txt", b"cat\ndog\n", "10 class names"),
            ("batches.meta.txt", b"\xff\n" * 10, "not text"),
        ],
    )
    def test_bad_binary_member(self, tmp_path, arrays, name, content, message):
        files = archives.binary_files(arrays) | {name: content}
        path = archives.write_tar(tmp_path / "c.tar.gz", BINARY_FOLDER, files)
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert name in str(error.value)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("train.bin", bytes(3073), "not a whole number of records of 3074"),
            ("test.bin", bytes([20, 0]) + bytes(3072), "has the label 20; coarse_"),
            ("test.bin", bytes([0, 100]) + bytes(3072), "has the label 100; fine_"),
            ("fine_label_names.txt", b"cat\ndog\n", "100 class names"),
            ("coarse_label_names.txt", b"pet\n", "20 class names"),
        ],
    )
    def test_bad_binary_member_of_cifar100(self, tmp_path, name, content, message):
        arrays = archives.make_arrays(1, kind=CIFAR100)
        files = archives.binary_files(arrays) | {name: content}
        folder = CIFAR100.binary_folder
        path = archives.write_tar(tmp_path / "c.tar.gz", folder, files)
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert name in str(error.value)

    def test_both_versions(self, tmp_path, arrays):
        files = archives.binary_files(arrays)
        extra = member(f"{PYTHON_FOLDER}/batches.meta", b"x")
        path = archives.write_tar(
            tmp_path / "c.tar.gz", BINARY_FOLDER, files, extra=[extra]
        )
        with pytest.raises(UserError, match="must hold one of the folders"):
            read(path)

    def test_any_damage_is_a_user_error_or_harmless(self, tmp_path):
        rng = np.random.default_rng(0)
        for folder, kind in KIND_OF.items():
            files = archives.files_of(folder, archives.make_arrays(1, kind=kind))
            path = archives.write_tar(tmp_path / "c.tar.gz", folder, files)
            whole = gzip.decompress(path.read_bytes())
            for _ in range(100):
                content = bytearray(whole)
                # Mostly in the headers and in the pickles' opcodes.
                for _ in range(rng.integers(1, 4)):
                    place = 512 * rng.integers(len(content) // 512)
                    content[place + rng.integers(350)] = rng.integers(256)
                path = tmp_path / "damaged.tar.gz"
                path.write_bytes(gzip.compress(content, 1))
                with contextlib.suppress(UserError):
                    read(path)


class TestHostileArchive:
    @pytest.fixture
    def hostile(self, tmp_path, kind):
        def write(*extra):
            files = archives.binary_files(archives.make_arrays(1, kind=kind))
            path = tmp_path / "c.tar.gz"
            return archives.write_tar(path, kind.binary_folder, files, extra)

        return write

    @pytest.mark.parametrize(
        "name",
        ["/etc/passwd", "../escaped", "{folder}/../../escaped", "/{folder}/{batch}"],
    )
    def test_escaping_member_is_refused_by_name(self, hostile, kind, name):
        name = filled(name, kind)
        with pytest.raises(UserError, match="points outside") as error:
            read(hostile(member(name, b"x")))
        assert name in str(error.value)

    @pytest.mark.parametrize(
        "tar_type",
        [
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.BLKTYPE,
            tarfile.FIFOTYPE,
            tarfile.GNUTYPE_SPARSE,
        ],
    )
    @pytest.mark.parametrize("name", ["readme", "{folder}/{batch}"])
    def test_link_or_device_is_refused_by_name(self, hostile, kind, tar_type, name):
        name = filled(name, kind)
        with pytest.raises(UserError, match="link or device") as error:
            read(hostile(member(name, kind=tar_type, target="/etc/passwd")))
        assert name in str(error.value)

    def test_member_that_comes_twice_is_refused(self, hostile, kind):
        name = filled("{folder}/{batch}", kind)
        with pytest.raises(UserError, match="twice") as error:
            read(hostile(member(name, bytes(3073))))
        assert name in str(error.value)

    @both_kinds
    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("readme.html", (2**20, 2**20)),
            ("{folder}/{names}", (2**16, 2**16)),
            ("{folder}/{batch}", (64 * 2**20, 320 * 2**20)),
        ],
    )
    def test_oversized_member_is_refused_unread(self, tmp_path, kind, name, sizes):
        name, size = filled(name, kind), sizes[kind is CIFAR100] + 1
        info, _ = member(name)
        info.size = size  # nothing comes after the header
        path = tmp_path / "c.tar.gz"
        path.write_bytes(gzip.compress(info.tobuf()))
        with pytest.raises(UserError, match=f"has {size} bytes") as error:
            read(path)
        assert name in str(error.value)

    def test_bomb_in_a_header_is_refused(self, monkeypatch, hostile):
        monkeypatch.setattr(archive_module, "_MAX_TOTAL", 3 * 2**20)
        bomb = member("././@LongLink", bytes(8 * 2**20), tarfile.GNUTYPE_LONGNAME)
        with pytest.raises(UserError, match="unpacks to more than 3145728 bytes"):
            read(hostile(bomb))

    def test_too_many_members_are_refused(self, hostile):
        with pytest.raises(UserError, match="members"):
            read(hostile(*(member(f"{i}") for i in range(1001))))

    def test_oversized_file_of_a_folder_is_refused(self, tmp_path, arrays, kind):
        files = archives.binary_files(arrays)
        folder = archives.write_folder(tmp_path / "f", files)
        with (folder / kind.binary_names[-1]).open("wb") as file:
            file.truncate(2**30)
        with pytest.raises(UserError, match="1073741824 bytes"):
            open_archive(folder)


def filled(name, kind):
    """A name of a member, with those of the kind's binary version."""
    names = "batches.meta.txt" if kind is CIFAR10 else "fine_label_names.txt"
    batch = kind.binary_names[0]
    return name.format(folder=kind.binary_folder, batch=batch, names=names)


class RunsAProgram:
    def __init__(self, callee, *arguments):
        self.reduced = callee, arguments

    def __reduce__(self):
        return self.reduced


@both_kinds
class TestHostilePickle:
    @pytest.fixture
    def batch(self, kind):
        """Name of a file with images."""
        return kind.python_names[-2]

    @pytest.fixture
    def read_batch(self, tmp_path, kind, batch):
        def read_batch(content):
            arrays = archives.make_arrays(1, kind=kind)
            files = archives.python_files(arrays) | {batch: content}
            path = tmp_path / "c.tar.gz"
            return read(archives.write_tar(path, kind.python_folder, files))

        return read_batch

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_a_program_does_not_run(self, tmp_path, read_batch, protocol):
        import os

        ran = tmp_path / "ran"
        hostile = RunsAProgram(os.system, f"touch {ran}")
        with pytest.raises(UserError, match=r"names (posix|nt)\.system"):
            read_batch(pickle.dumps({b"data": hostile}, protocol))
        assert not ran.exists()

    def test_class_names_cannot_run_one_either(self, tmp_path, arrays, kind):
        hostile = pickle.dumps(RunsAProgram(exec, "import sys; sys.hacked = True"))
        files = archives.python_files(arrays) | {kind.meta: hostile}
        path = archives.write_tar(tmp_path / "c.tar.gz", kind.python_folder, files)
        with pytest.raises(UserError, match=r"names builtins\.exec"):
            read(path)
        assert not hasattr(sys, "hacked")

    @pytest.mark.parametrize(
        "named",
        [
            b"cnumpy\nload\n",
            b"cnumpy.core.multiarray\nscalar\n",
            b"c_codecs\ndecode\n",
            b"c__builtin__\ngetattr\n",
            b"ccifar_flax.data.batches\nread_batch\n",
            b"\x8c\x05numpy\x8c\x0endarray.tofile\x93",
        ],
    )
    def test_nothing_else_can_be_named(self, read_batch, named):
        with pytest.raises(UserError, match=r"names .*refused"):
            read_batch(b"\x80\x04" + named + b".")

    def test_stand_ins_cannot_be_misused(self, read_batch, batch):
        # ndarray((2**40,)) would ask NumPy for a terabyte.
        huge = b"\x80\x02}U\x04datacnumpy\nndarray\n(\x8a\x06" + bytes(5) + b"\x01tRs."
        with pytest.raises(UserError, match=f": {batch}"):
            read_batch(huge)
        encode = b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aX\x03\x00\x00\x00bz2tR."
        with pytest.raises(UserError, match="bz2"):
            read_batch(encode)

    @pytest.mark.parametrize(
        "data",
        [
            np.zeros((10, 3072), object),
            np.zeros((10, 3072), np.float32),
            np.zeros((10, 3072), np.int8),
            np.zeros((10, 3072), "V1"),
            np.zeros((10, 3071), np.uint8),
            np.zeros((3072,), np.uint8),
            np.zeros((10, 32, 32, 3), np.uint8),
            [[0] * 3072] * 10,
            b"bytes",
            None,
        ],
        ids=lambda data: f"{type(data).__name__}{getattr(data, 'dtype', '')}",
    )
    def test_other_arrays_are_refused(self, read_batch, batch, data):
        with pytest.raises(UserError, match=rf": {batch}.*\[N, 3072\]"):
            read_batch(pickle.dumps({b"data": data, b"labels": [0] * 10}, 2))

    @pytest.mark.parametrize(
        ("shape", "size"),
        [((2**30, 3072), 3072), ((-1, 3072), 3072), ((2, 3072), 3072), ((1,), 3072)],
    )
    def test_shapes_that_lie_are_refused(self, read_batch, shape, size):
        content = b"T" + size.to_bytes(4, "little") + bytes(size)
        array = archives.pickled_array(shape, b"u1", content)
        batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x00eu."
        with pytest.raises(UserError, match=r"\[N, 3072\]"):
            read_batch(batch)

    def test_object_arrays_with_a_list_for_data_are_refused(self, read_batch):
        array = archives.pickled_array((1, 3072), b"O8", b"]")
        batch = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x00eu."
        with pytest.raises(UserError, match=r"\[N, 3072\]"):
            read_batch(batch)

    @pytest.mark.parametrize(
        "labels",
        [
            [0] * 9,
            [0] * 11,
            [0] * 9 + [100],
            [0] * 9 + [-1],
            [0] * 9 + [2**80],
            [0] * 9 + [1.0],
            [0] * 9 + [True],
            [0] * 9 + ["cat"],
            (0,) * 10,
            None,
        ],
    )
    def test_bad_labels_are_refused(self, read_batch, kind, batch, labels):
        data = np.zeros((10, 3072), np.uint8)
        good = archives.label_lists(kind, np.zeros(10, int))
        for key in good:
            values = {b"data": data, **good, key: labels}
            with pytest.raises(UserError, match=f": {batch}.*{key.decode()}"):
                read_batch(pickle.dumps(values, 2))

    @pytest.mark.parametrize(
        "content", [b"", b".", b"\x80", b"garbage", pickle.dumps([1, 2]), b"\x80\x02N."]
    )
    def test_other_contents_are_refused(self, read_batch, batch, content):
        with pytest.raises(UserError, match=f": {batch}"):
            read_batch(content)
