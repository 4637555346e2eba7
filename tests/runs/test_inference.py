"""Loading a run and predicting with it."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from cifar_flax import records
from cifar_flax.data.augment import Augmentation
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from tests.runs.test_session import make_tiny

ROOT = pathlib.Path(__file__).parents[2]


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


class DyingNet(nn.Module):
    """A network of which some seeds, by the draw of a parameter, diverge at a step."""

    num_classes: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        drawn = jax.lax.stop_gradient(self.param("drawn", jax.random.normal, ()))
        count = self.variable("batch_stats", "count", lambda: jnp.float32(0))
        if train and not self.is_initializing():
            count.value += 1
        dies = train & (drawn > 0) & (count.value > 4)
        logits = nn.Dense(self.num_classes)(x.mean((1, 2)))
        return logits + jnp.where(dies, jnp.nan, 0.0)


SEEDS = (0, 1, 2, 3)


def train_dying(folder, **changes):
    """A run of three epochs of 3 steps; seeds diverge in the second one."""
    recipe = Recipe((Constant(0.05, 3),), batch_size=32, augmentation=Augmentation())
    settings = Settings(**{"val_size": 24, "seeds": SEEDS, **changes})
    data = make_tiny()
    return run(settings, folder, model=DyingNet(), recipe=recipe, dataset=data)


@pytest.fixture(scope="module")
def dying(tmp_path_factory):
    """A run of which some seeds have diverged, and the indices of the others."""
    result = train_dying(tmp_path_factory.mktemp("dying") / "run")
    alive = [n for n, at in enumerate(result.record.diverged_at) if at is None]
    assert 0 < len(alive) < len(SEEDS)
    return result, alive


def test_a_seed_that_has_diverged_does_not_count(dying, caplog):
    result, alive = dying
    loaded = Run.load(result.folder, model=DyingNet())
    assert loaded.seeds == tuple(SEEDS[n] for n in alive)
    assert (loaded.step, "does not count" in caplog.text) == (9, True)
    found = loaded.predict(result.splits.test.images)
    assert found.argmax(-1).tolist() == result.test.logits[alive].argmax(-1).tolist()
    assert np.isfinite(found).all()


def test_the_best_checkpoint_is_one_of_all_seeds(dying, caplog):
    result, _ = dying
    loaded = Run.load(result.folder, best=True, model=DyingNet())
    assert (loaded.seeds, loaded.step) == (SEEDS, 3)
    assert np.isfinite(loaded.predict(result.splits.test.images)).all()
    assert not caplog.records


def older_manifest(path):
    """Writes a checkpoint's manifest as an older version did."""
    _, text = path.read_text().splitlines()
    fields = json.loads(text)
    del fields["lost"]
    text = json.dumps(fields)
    path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")


def test_older_checkpoints_know_it_from_the_result(dying, tmp_path):
    result, alive = dying
    folder = shutil.copytree(result.folder, tmp_path / "older")
    for path in folder.rglob("manifest.json"):
        if path.parent.name.isdigit():
            older_manifest(path)
    assert len(Run.load(folder, model=DyingNet()).seeds) == len(alive)
    best = Run.load(folder, best=True, model=DyingNet())
    assert (best.seeds, best.step) == (SEEDS, 3)


def test_a_run_that_starts_from_it_starts_from_a_seed_that_counts(dying, tmp_path):
    result, _ = dying
    later = train_dying(tmp_path / "a", init_from=str(result.folder))
    assert later.record.diverged_at == [None] * len(SEEDS)


def test_without_any_seed_that_counts_nothing_is_predicted(dying, tmp_path):
    result, alive = dying
    folder = shutil.copytree(result.folder, tmp_path / "all")
    record = records.read_result(folder)
    for index in alive:  # their last step has made their parameters NaN
        record.diverged_at[index] = 9
    record.status = "diverged"
    records.write_result(folder, record)
    with pytest.raises(UserError, match=r"every seed has diverged by step 9.*--best"):
        Run.load(folder, model=DyingNet())
    assert Run.load(folder, best=True, model=DyingNet()).seeds == SEEDS


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--best"]])
def test_the_command_predicts_with_the_seeds_that_count(dying, tmp_path, flags):
    result, alive = dying
    Image.fromarray(result.splits.test.images[0]).save(tmp_path / "one.png")
    words = [sys.executable, "-m", "experiments.predict", f"--run={result.folder}"]
    words += [f"--model={__name__}:DyingNet", "--json", "--top=4", *flags]
    done = subprocess.run(
        [*words, tmp_path / "one.png"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert ("does not count" in done.stderr) == (not flags)
    (line,) = done.stdout.splitlines()
    found = {one["class"]: one["probability"] for one in json.loads(line)["classes"]}
    if not flags:
        logits = result.test.logits[alive, 0].astype(np.float64)
        expected = softmax(logits, -1).mean(0)
        assert found == pytest.approx(dict(zip("abcd", expected, strict=True)))
