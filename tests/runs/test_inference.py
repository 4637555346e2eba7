"""Loading a run and predicting with it."""

import dataclasses
import json

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from tests.runs.test_session import make_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The result of a run of one epoch."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    settings = Settings(
        model="convbn", seeds=(3, 5), lr=0.05, epochs=1, batch_size=32, val_size=24
    )
    return run(settings, folder, dataset=make_tiny())


@pytest.mark.parametrize("best", [False, True])
def test_a_loaded_run_predicts_what_the_trainer_evaluates(trained, best):
    loaded = Run.load(trained.folder, best=best)
    found = loaded.predict(trained.splits.test.images)
    logits = trained.test.logits.astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32
    assert loaded.seeds == (3, 5)
    assert loaded.class_names == ["a", "b", "c", "d"]


def test_many_images_are_taken_a_batch_at_a_time(trained):
    loaded = Run.load(trained.folder)
    images = np.concatenate([trained.splits.train.images] * 3)
    found = loaded.predict(images)
    assert found.shape == (2, 288, 4)
    np.testing.assert_allclose(found[:, :96], found[:, 96:192], atol=1e-6)
    np.testing.assert_allclose(found[:, :1], loaded.predict(images[:1]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x[0], r"uint8 \[32, 32, 3\].*images\[None\]"),
        (lambda x: x[:0], "no images"),
        (lambda x: x / 255, "float64.*do not scale"),
        (lambda x: x[:, :28], r"\[25, 28, 32, 3\].*\[N, 32, 32, 3\]"),
        (lambda x: x[..., :1], r"\[25, 32, 32, 1\]"),
        (lambda x: x.tolist(), "int64"),
        (lambda x: "cat.png", r"images are <U7"),
    ],
)
def test_images_that_do_not_fit_are_named(trained, change, words):
    loaded = Run.load(trained.folder)
    with pytest.raises(UserError, match=words):
        loaded.predict(change(trained.splits.test.images))


def test_what_cannot_be_loaded_is_named(trained, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        Run.load(trained.folder / "missing")
    path = trained.folder / records.CONFIG
    content = path.read_text()
    config = json.loads(content)
    try:
        config["settings"]["model"] = "simplenet"
        config["identity"] = None  # as in an older record
        path.write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"fits this model; .* step"):
            Run.load(trained.folder)
        del config["settings"]["dtype"]
        path.write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"no 'dtype'"):
            Run.load(trained.folder)
        config["settings"] |= {"model": "convnet", "dtype": "float32"}
        config["dataset"]["image_shape"] = [2, 2, 3]
        path.write_text(json.dumps(config))
        with pytest.raises(UserError, match="give larger images"):
            Run.load(trained.folder)
    finally:
        path.write_text(content)


def test_loading_leaves_alone_what_another_process_is_saving(trained):
    folder = trained.folder / records.CHECKPOINTS
    unfinished = folder / "99.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    before = sorted(path.name for path in folder.rglob("*"))
    assert Run.load(trained.folder).step == 3
    assert sorted(path.name for path in folder.rglob("*")) == before
    unfinished.rmdir()


def test_a_run_is_plain_data_and_says_in_a_line_what_it_is(trained):
    loaded = Run.load(trained.folder)
    assert dataclasses.asdict(loaded)["step"] == 3
    assert repr(loaded) == (
        "Run(ConvBnNet, 4 classes, images 32 x 32 x 3, seeds 3, 5, step 3)"
    )
    for value in (trained, trained.state, trained.trainer, trained.test):
        assert len(repr(value)) < 250
        assert "\n" not in repr(value)


def test_a_run_predicts_when_the_file_of_its_recipe_is_gone(tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'batch_size = 32\n[[phases]]\nkind = "constant"\nlearning_rate = 0.01\n'
        "epochs = 1\n"
    )
    settings = Settings(model="simplenet", recipe=str(recipe), val_size=24)
    result = run(settings, tmp_path / "run", dataset=make_tiny())
    recipe.unlink()
    found = Run.load(tmp_path / "run").predict(result.splits.test.images)
    assert found.argmax(-1).tolist() == result.test.logits.argmax(-1).tolist()
