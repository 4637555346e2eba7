"""A run taken up again to predict with."""

import dataclasses

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.checkpoint import open_checkpoints
from cifar_flax.errors import UserError
from cifar_flax.inference import Run
from cifar_flax.loop import Trainer
from cifar_flax.models import create_model
from cifar_flax.recipes import Constant, Recipe


@pytest.fixture
def trained(splits, tmp_path):
    """A trainer, its state after an epoch, and the folder that holds it."""
    recipe = Recipe((Constant(0.05, 1),), batch_size=32)
    trainer = Trainer(create_model("convbn", 4), splits, recipe, seeds=(3, 5))
    (*_, last) = trainer.run(trainer.init())
    with open_checkpoints(tmp_path / records.CHECKPOINTS) as checkpoints:
        checkpoints.save(last.state, val_accuracy=0.5)
    settings = {"model": "convbn", "seeds": [3, 5], "dtype": "float32"}
    bn = {"bn_momentum": 0.9, "bn_epsilon": 1e-5, "bn_freeze": False}
    data = {
        "class_names": ["a", "b", "c", "d"],
        "image_shape": [32, 32, 3],
        "mean": splits.mean,
        "std": splits.std,
    }
    records.write_config(tmp_path, {"settings": {**settings, **bn}, "dataset": data})
    return trainer, last.state, tmp_path


@pytest.mark.parametrize("best", [False, True])
def test_a_loaded_run_predicts_what_the_trainer_evaluates(trained, splits, best):
    trainer, state, folder = trained
    run = Run.load(folder, best=best)
    found = run.predict(splits.test.images)
    logits = trainer.evaluate(state, splits.test).logits.astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert run.seeds == (3, 5)
    assert run.class_names == ["a", "b", "c", "d"]


def test_what_cannot_be_loaded_is_named(trained):
    _, _, folder = trained
    config = records.read_config(folder)
    with pytest.raises(UserError, match="holds no run"):
        Run.load(folder / "missing")
    wrong = {**config["settings"], "model": "simplenet"}
    records.write_config(folder, {**config, "settings": wrong})
    with pytest.raises(UserError, match=r"fits this model; .* that of step"):
        Run.load(folder)
    del wrong["dtype"]
    records.write_config(folder, {**config, "settings": wrong})
    with pytest.raises(UserError, match=r"lacks 'dtype'"):
        Run.load(folder)


def test_loading_leaves_alone_what_another_process_is_saving(trained):
    folder = trained[2] / records.CHECKPOINTS
    unfinished = folder / "99.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    before = sorted(path.name for path in folder.rglob("*"))
    assert Run.load(trained[2]).step == 3
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_run_is_plain_data(trained):
    run = Run.load(trained[2])
    assert dataclasses.asdict(run)["step"] == 3
