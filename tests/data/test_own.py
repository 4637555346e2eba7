"""Your own data: folders of pictures and .npz files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cifar_flax.data import load_dataset, make_dataset
from cifar_flax.data.own import is_own, whole_name
from cifar_flax.errors import UserError
from cifar_flax.records import read_config, read_metrics
from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings

RNG = np.random.default_rng(0)


def pixels(count, *shape):
    return RNG.integers(0, 256, (count, *shape), dtype=np.uint8)


def write_class(folder, images):
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.squeeze()).save(folder / f"{number:03}.png")
    return images


@pytest.fixture
def pictures(tmp_path):
    """A folder with train and test, and its content by class."""
    folder = tmp_path / "my pictures"
    made = {
        (split, name): write_class(folder / split / name, pixels(count, 6, 8, 3))
        for split, count in (("train", 5), ("test", 2))
        for name in ("cat", "a dog")
    }
    return folder, made


def load(name, tmp_path, **settings):
    return load_dataset(name, data_dir=tmp_path / "cache", **settings)


def test_a_folder_of_pictures_is_read_as_it_is(pictures, tmp_path):
    folder, made = pictures
    for _ in range(2):  # from the files, then from the cache
        data = load(f"folder:{folder}", tmp_path)
        assert data.class_names == ("a dog", "cat")
        assert data.name == "my_pictures"
        for split in ("train", "test"):
            expected = np.concatenate([made[split, n] for n in data.class_names])
            np.testing.assert_array_equal(getattr(data, f"{split}_images"), expected)
            labels = np.repeat([0, 1], len(expected) // 2)
            np.testing.assert_array_equal(getattr(data, f"{split}_labels"), labels)
    mean = np.concatenate([made["train", n] for n in data.class_names]) / 255
    np.testing.assert_allclose(data.mean, mean.mean((0, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_a_folder_for_validation_is_used(pictures, tmp_path, caplog, name):
    folder, _ = pictures
    before = load(f"folder:{folder}", tmp_path)
    images = write_class(folder / name / "cat", pixels(3, 6, 8, 3))
    for _ in range(2):  # from the files, then from the cache
        data = load(f"folder:{folder}", tmp_path)
        np.testing.assert_array_equal(data.val_images, images)
        assert data.val_labels.tolist() == [1, 1, 1]
        assert (len(data.train_labels), len(data.test_labels)) == (10, 4)
        assert (data.mean, data.std) == (before.mean, before.std)
        assert data.fingerprint != before.fingerprint
    small = load(f"folder:{folder}", tmp_path, image_size=4)
    assert small.val_images.shape == (3, 4, 4, 3)
    assert not caplog.records


def test_what_else_becomes_of_a_folder_for_validation_is_said(
    pictures, tmp_path, caplog
):
    folder, _ = pictures
    write_class(folder / "val" / "cat", pixels(1, 6, 8, 3))
    write_class(folder / "valid" / "cat", pixels(2, 6, 8, 3))
    data = load(f"folder:{folder}", tmp_path)
    assert (len(data.val_labels), len(data.test_labels)) == (1, 4)
    assert f"valid is not used: {folder}/val is the validation set" in caplog.text
    (folder / "test").rename(tmp_path / "elsewhere")
    data = load(f"folder:{folder}", tmp_path)
    assert len(data.test_labels) == 1
    assert data.val_images is None
    assert data.source == "my pictures, its validation images as the test set"
    assert f"valid is not used: {folder}/val is the test set" in caplog.text


def test_a_changed_folder_is_read_again(pictures, tmp_path):
    folder, _ = pictures
    before = load(f"folder:{folder}", tmp_path)
    Image.fromarray(pixels(1, 6, 8, 3)[0]).save(folder / "train" / "cat" / "new.png")
    after = load(f"folder:{folder}", tmp_path)
    assert len(after.train_labels) == len(before.train_labels) + 1


def test_grey_pictures_have_one_channel_and_any_size_is_resized(tmp_path):
    for name, size in (("a", 10), ("b", 7)):
        write_class(tmp_path / "grey" / name, pixels(6, size, size, 1))
    with pytest.raises(UserError, match=r"7 x 7 pixels and .*10 x 10; --image_size=N"):
        load(f"folder:{tmp_path / 'grey'}", tmp_path)
    data = load(f"folder:{tmp_path / 'grey'}", tmp_path, image_size=5)
    assert data.train_images.shape == (10, 5, 5, 1)
    assert data.test_images.shape == (2, 5, 5, 1)
    assert "2 of 12 images held out as the test set" in data.source
    assert np.bincount(data.test_labels).tolist() == [1, 1]


@pytest.mark.slow
def test_resizing_keeps_what_is_flat_and_cuts_the_middle(tmp_path):
    images = np.zeros((4, 32, 64, 3), np.uint8)
    images[:, :, 16:48] = (10, 200, 30)  # the middle square
    labels = np.array([0, 1, 0, 1])
    arrays = {"images": images, "labels": labels, "test_images": images}
    np.savez(tmp_path / "flat.npz", **arrays, test_labels=labels)
    data = load(f"npz:{tmp_path / 'flat.npz'}", tmp_path, image_size=8)
    assert data.train_images.shape == (4, 8, 8, 3)
    assert (data.train_images[:, :, 2:6] == np.uint8([10, 200, 30])).all()
    shapes = load_dataset("shapes", image_size=8)
    assert shapes.train_images.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize("names", ["ours", "keras"])
def test_a_file_of_arrays_is_read(tmp_path, names):
    train, test = (
        (pixels(7, 5, 5), np.arange(7)[:, None] % 3),
        (pixels(3, 5, 5), [0, 1, 2]),
    )
    keys = ["train_images", "train_labels", "test_images", "test_labels"]
    keys = ["x_train", "y_train", "x_test", "y_test"] if names == "keras" else keys
    arrays = dict(zip(keys, [*train, *test], strict=True))
    np.savez(tmp_path / "digits.npz", **arrays, class_names=np.array(["x", "y", "z"]))
    data = load(f"npz:{tmp_path / 'digits.npz'}", tmp_path)
    np.testing.assert_array_equal(data.train_images, train[0][..., None])
    np.testing.assert_array_equal(data.train_labels, train[1][:, 0])
    np.testing.assert_array_equal(data.test_labels, test[1])
    assert data.class_names == ("x", "y", "z")
    assert data.source == "digits.npz"


@pytest.mark.parametrize(
    ("images_key", "labels_key"),
    [
        ("val_images", "val_labels"),
        ("validation_images", "validation_labels"),
        ("x_val", "y_val"),
        ("x_valid", "y_valid"),
    ],
)
def test_a_file_of_arrays_may_have_validation_images(tmp_path, images_key, labels_key):
    train, test, val = (pixels(n, 5, 5, 3) for n in (7, 3, 4))
    arrays = {
        **{"x_train": train, "y_train": np.arange(7) % 3},
        **{images_key: val, labels_key: [0, 1, 2, 1]},
    }
    np.savez(tmp_path / "a.npz", **arrays, x_test=test, y_test=[0, 1, 2])
    data = load(f"npz:{tmp_path / 'a.npz'}", tmp_path)
    np.testing.assert_array_equal(data.val_images, val)
    assert data.val_labels.tolist() == [0, 1, 2, 1]
    assert len(data.train_labels) == 7
    small = load(f"npz:{tmp_path / 'a.npz'}", tmp_path, image_size=3)
    assert small.val_images.shape == (4, 3, 3, 3)
    np.savez(tmp_path / "b.npz", **arrays)
    data = load(f"npz:{tmp_path / 'b.npz'}", tmp_path)
    np.testing.assert_array_equal(data.test_images, val)
    assert data.val_images is None
    assert data.source == "b.npz, its validation images as the test set"


@pytest.mark.slow
def test_a_run_validates_on_the_images_for_it(tmp_path):
    train, test, val = (pixels(n, 5, 5, 3) for n in (12, 3, 4))
    arrays = {"images": train, "labels": np.arange(12) % 3}
    arrays |= {"test_images": test, "test_labels": [0, 1, 2]}
    arrays |= {"val_images": val, "val_labels": [0, 1, 2, 0]}
    np.savez(tmp_path / "a.npz", **arrays)
    settings = Settings(
        model="simplenet", dataset=f"npz:{tmp_path / 'a.npz'}", batch_size=4,
        lr=0.01, epochs=1,
    )  # fmt: skip
    result = run(settings, tmp_path / "run")
    sizes = read_config(tmp_path / "run").dataset
    assert (sizes.train_size, sizes.val_size, sizes.test_size) == (12, 4, 3)
    assert read_metrics(tmp_path / "run")[-1].val_accuracy is not None
    again = run(settings, tmp_path / "run", resume=True)
    assert again.record.test_loss == result.record.test_loss
    with pytest.raises(UserError, match="4 validation images of its own"):
        run(dataclasses.replace(settings, val_size=5_000), tmp_path / "other")


@pytest.mark.slow
def test_a_run_on_pictures_predicts_with_their_class_names(pictures, tmp_path):
    folder, _ = pictures
    settings = Settings(
        model="simplenet", dataset=f"folder:{folder}", val_size=2, batch_size=4,
        lr=0.01, epochs=1, data_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    result = run(settings, tmp_path / "run")
    assert result.record.dataset == "my_pictures"
    assert Run.load(tmp_path / "run").class_names == ["a dog", "cat"]
    again = run(settings, tmp_path / "run", resume=True)
    assert again.record.test_loss == result.record.test_loss


def files(**arrays):
    def write(folder):
        np.savez(folder / "a.npz", **arrays)
        return f"npz:{folder / 'a.npz'}"

    return write


def folders(*names):
    def write(folder):
        for name in names:
            write_class(folder / "f" / name, pixels(2, 4, 4, 3))
        return f"folder:{folder / 'f'}"

    return write


def damaged(folder):
    write_class(folder / "f" / "a", pixels(2, 4, 4, 3))
    write_class(folder / "f" / "b", pixels(2, 4, 4, 3))
    (folder / "f" / "b" / "x.png").write_text("no picture")
    return f"folder:{folder / 'f'}"


TEN = {"images": pixels(4, 5, 5, 3), "labels": np.arange(4)}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: f"npz:{folder}/none.npz", "there is no file"),
        (lambda folder: f"npz:{folder}", "there is no file"),
        (lambda folder: f"folder:{folder}/none", "there is no folder"),
        (files(a=np.zeros(3)), "has the arrays a; it needs images and labels"),
        (files(images=np.zeros((2, 3, 3, 3)), labels=[0, 1]), "images are float64"),
        (files(images=TEN["images"], labels=[0, 1]), "one for each of 4 images"),
        (files(images=np.array([{}]), labels=[0]), "cannot be read: .*pickle"),
        (files(**TEN), "has too few images: none is left"),
        (
            files(
                images=pixels(8, 5, 5), labels=[0, 1] * 4, class_names=["a", "b", "a"]
            ),
            "one or more different names",
        ),
        (
            files(images=pixels(8, 5, 5), labels=[0, 1] * 4, class_names=np.zeros(2)),
            r"class_names is float64 \[2\]; it must be texts",
        ),
        (
            files(
                images=pixels(8, 5, 5), labels=[0, 1] * 4, class_names=["a", "\x1b["]
            ),
            r"a class is named '\\x1b\['",
        ),
        (folders("one"), "has 1 folders; there must be one for each class"),
        (folders("train/a", "train/b"), "has train but no test or val"),
        (
            folders("train/a", "train/b", "test/c"),
            "test/c is not a class of",
        ),
        (damaged, "x.png is not a picture"),
    ],
)
def test_what_is_no_data_set_is_named(tmp_path, make, words):
    name = make(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        load(name, tmp_path)
    assert "\n" not in str(caught.value)


FOUR = np.arange(40) % 4


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (FOUR + 1, "no training image is of the class '0'; subtract 1 from all labels"),
        (FOUR * 2, "class '1' and 2 others; number the classes from 0 without gaps"),
        (FOUR + 2_000_000, "the highest label is 2,000,003; number the classes"),
        (np.where(FOUR == 3, 2**31 - 1, FOUR), "highest label is 2,147,483,647"),
        (FOUR * 0, "there is only the class '0'"),
    ],
)
def test_labels_that_number_no_classes_are_refused(tmp_path, labels, words):
    name = files(images=pixels(40, 5, 5), labels=labels)(tmp_path)
    with pytest.raises(UserError, match=words):
        load(name, tmp_path)


def test_every_named_class_has_a_training_image(tmp_path):
    arrays = {
        "images": pixels(40, 5, 5),
        "labels": FOUR,
        "test_images": pixels(5, 5, 5),
    }
    names = np.array([*"abcde"])
    name = files(**arrays, test_labels=np.arange(5), class_names=names)(tmp_path)
    with pytest.raises(UserError, match="no training image is of the class 'e'"):
        load(name, tmp_path)


def test_channels_first_are_put_last(tmp_path):
    train, test = pixels(40, 6, 8, 3), pixels(4, 6, 8, 3)
    arrays = {"labels": FOUR, "test_labels": FOUR[:4]}
    last = files(**arrays, images=train, test_images=test)
    expected = load(last(tmp_path), tmp_path)
    first = {"images": train, "test_images": test}
    first = {name: np.moveaxis(array, 3, 1) for name, array in first.items()}
    data = load(files(**arrays, **first, extra=FOUR)(tmp_path), tmp_path)
    assert data.fingerprint == expected.fingerprint
    assert data.reading.notes == (
        "images had the channels first",
        "test_images had the channels first",
        "left out: other arrays: 1 (extra)",
    )
    pair = np.zeros((4, 3, 8, 8), np.uint8), FOUR[:4]
    with pytest.raises(UserError, match=r"images.transpose\(0, 2, 3, 1\)"):
        make_dataset("d", *pair, *pair, [*"abcd"], source="drawn")


def test_names_tell_places():
    assert is_own("folder:a b")
    assert is_own("npz:/x.npz")
    assert not is_own("cifar10")
    assert not is_own("zip:a")
    assert not is_own("npz:")
    assert whole_name("npz:x.npz").startswith("npz:/")
    assert whole_name("cifar10") == "cifar10"
    with pytest.raises(UserError, match="--image_size=0"):
        Settings(image_size=0)
