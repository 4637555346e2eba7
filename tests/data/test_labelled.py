"""Labelled images that a trained network is evaluated on."""

import numpy as np
import pytest
from PIL import Image

from cifar_flax.data.labelled import Like, load_labelled
from cifar_flax.errors import UserError

LIKE = Like(("cat", "dog", "emu"), (4, 4, 3))
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 0, 1, 1, 1, 0])


def npz(folder, **arrays):
    np.savez(folder / "some.npz", **arrays)
    return f"npz:{folder / 'some.npz'}"


def pictures(folder, *places, size=4, mode="RGB"):
    """Draws a picture of another grey in each place."""
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        colour = 20 * number if mode == "L" else (20 * number,) * 3
        Image.new(mode, (size, size), colour).save(folder / place)
    return f"folder:{folder}"


def test_a_file_may_hold_only_images_of_some_classes(tmp_path):
    found = load_labelled(npz(tmp_path, images=IMAGES, labels=LABELS), LIKE)
    np.testing.assert_array_equal(found.split.images, IMAGES)
    np.testing.assert_array_equal(found.split.labels, LABELS)


@pytest.mark.parametrize("held", [("test",), ("val", "test"), ("val",)])
def test_of_a_file_with_splits_it_takes_what_no_run_trains_on(tmp_path, held):
    train = {"train_images": IMAGES[:2], "train_labels": LABELS[:2]}
    parts = {"test": slice(2, 6), "val": slice(1, 3)}
    arrays = {f"{n}_images": IMAGES[parts[n]] for n in held}
    arrays |= {f"{n}_labels": LABELS[parts[n]] for n in held}
    found = load_labelled(npz(tmp_path, **train, **arrays), LIKE)
    np.testing.assert_array_equal(found.split.images, IMAGES[parts[held[-1]]])


def test_classes_are_matched_by_their_names(tmp_path):
    names = np.array(["emu", "cat"])
    name = npz(tmp_path, images=IMAGES, labels=LABELS, class_names=names)
    wanted = np.where(LABELS == 0, 2, 0)
    np.testing.assert_array_equal(load_labelled(name, LIKE).split.labels, wanted)
    place = pictures(tmp_path / "p", "emu/b.png", "cat/a.png", "emu/c.png")
    assert load_labelled(place, LIKE).split.labels.tolist() == [0, 2, 2]


def test_a_folder_gives_its_test_pictures_at_the_size_of_the_training_images(tmp_path):
    place = pictures(
        tmp_path, "train/cat/a.png", "test/dog/b.png", "test/emu/c.png", size=9
    )
    found = load_labelled(place, LIKE)
    assert found.split.labels.tolist() == [1, 2]
    np.testing.assert_array_equal(found.split.images[1], np.full((4, 4, 3), 40))
    assert "fitted to 4 x 4" in found.source


def test_a_class_may_be_called_test(tmp_path):
    place = pictures(tmp_path, "test/a.png", "cat/b.png")
    found = load_labelled(place, Like(("cat", "test"), (4, 4, 3)))
    assert found.split.labels.tolist() == [0, 1]


def test_arrays_of_another_size_are_resized_and_it_says_so(tmp_path):
    large = IMAGES.repeat(2, 1).repeat(2, 2)
    found = load_labelled(npz(tmp_path, images=large, labels=LABELS), LIKE)
    assert found.split.images.shape == IMAGES.shape
    assert found.source.endswith("resized from 8 x 8")


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    one = load_labelled(npz(tmp_path, images=IMAGES, labels=LABELS), LIKE)
    same = load_labelled(npz(tmp_path, x_test=IMAGES, y_test=LABELS), LIKE)
    other = load_labelled(npz(tmp_path, images=IMAGES, labels=1 - LABELS), LIKE)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_pictures_are_read_as_the_training_pictures_were(tmp_path):
    Image.fromarray(np.full((4, 4), 2047, np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "cat").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "cat" / "a.png")
    like = Like(("cat", "dog"), (4, 4, 1), white=4095.0)
    assert load_labelled(f"folder:{tmp_path}", like).split.images.max() == 127


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": IMAGES}, "it needs images and labels"),
        ({"images": IMAGES, "labels": LABELS + 2}, "label 3; with 3 classes"),
        ({"images": IMAGES / 255, "labels": LABELS}, "do not scale"),
        ({"images": IMAGES[..., :1], "labels": LABELS}, r"\[N, 4, 4, 1\].*\[N, 4, 4"),
        (
            {"images": IMAGES, "labels": LABELS, "class_names": np.array(["cat", "d"])},
            "its class 'd' is not one of the training images; .* dog",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, words):
    with pytest.raises(UserError, match=f"some.npz.*{words}"):
        load_labelled(npz(tmp_path, **arrays), LIKE)


def test_names_of_classes_that_do_not_occur_may_be_others(tmp_path):
    names = np.array(["cat", "emu", "whale"])
    name = npz(tmp_path, images=IMAGES, labels=LABELS, class_names=names)
    assert set(load_labelled(name, LIKE).split.labels) == {0, 2}


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (["cats/a.png"], "cats is not a class of the training images; .* cat"),
        (["test/cats/a.png", "train/cat/b.png"], "test/cats is not a class"),
        (["a.png"], "no pictures in folders of the classes cat, dog, emu"),
        ([], "there is no folder"),
    ],
)
def test_folders_that_do_not_fit_are_named(tmp_path, places, words):
    with pytest.raises(UserError, match=words):
        load_labelled(pictures(tmp_path / "p", *places), LIKE)


def test_of_another_data_set_it_takes_the_test_images(monkeypatch):
    from cifar_flax.data import labelled, make_dataset

    test = IMAGES[:3], LABELS[:3]
    dataset = make_dataset("d", IMAGES, LABELS, *test, ("dog", "emu"), source="d.tar")
    monkeypatch.setattr(labelled, "load_dataset", lambda *_, **__: dataset)
    found = load_labelled("cifar10", LIKE)
    np.testing.assert_array_equal(found.split.images, IMAGES[:3])
    np.testing.assert_array_equal(found.split.labels, LABELS[:3] + 1)
    assert found.source == "test images of d.tar"
