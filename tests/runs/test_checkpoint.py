"""Checkpoints: which are kept, exact restoring, and damage."""

import dataclasses
import os
import pathlib
import random
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cifar_flax.analysis.statistics import mean_of_finite
from cifar_flax.errors import UserError
from cifar_flax.models import ConvBnNet, SimpleNet
from cifar_flax.runs import checkpoint
from cifar_flax.runs.checkpoint import open_checkpoints
from cifar_flax.runs.manifest import Manifest, best_step
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.conftest import make_splits
from tests.damage import bounded
from tests.training.test_trainer import host

RECIPE = Recipe((Constant(0.02, 5),), batch_size=48)


def make_trainer(splits, model=None):
    return Trainer(model or SimpleNet(4, features=(3,)), RECIPE, splits.spec, (0, 1))


def save_epochs(trainer, splits, folder, accuracies):
    """Trains and saves after each epoch; returns the states."""
    states = {}
    with open_checkpoints(folder) as checkpoints:
        for progress in trainer.run(trainer.init(), splits.train):
            if progress.epoch_done:
                checkpoints.save(
                    progress.state,
                    seconds=0.5 * progress.step,
                    val_accuracy=accuracies[len(states)],
                )
                states[progress.step] = host(progress.state)
    return states


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())


def assert_equal(tree, expected):
    jax.tree.map(np.testing.assert_array_equal, tree, expected)


def assert_same(state, expected):
    assert_equal(host(state), expected)


def test_the_latest_two_and_the_best_are_kept_and_come_back_bit_for_bit(
    splits, tmp_path
):
    trainer = make_trainer(splits, ConvBnNet(4, features=(4, 8)))  # with batch_stats
    states = save_epochs(trainer, splits, tmp_path, [0.1, 0.4, 0.3, 0.2, 0.1])
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 10
        assert checkpoints.best_step == 4
        for step in (4, 8, 10):
            state, seconds = checkpoints.restore(trainer.init(), step)
            assert_same(state, states[step])
            assert seconds == 0.5 * step
    assert steps_in(tmp_path) == [4, 8, 10]


def test_an_interrupted_epoch_has_no_accuracy_and_the_best_stays(splits, tmp_path):
    state = make_trainer(splits).init()
    with open_checkpoints(tmp_path) as checkpoints:
        for step, accuracy in enumerate([0.1, 0.4, None, 0.3, None], 1):
            later = dataclasses.replace(state, step=state.step + step)
            checkpoints.save(later, val_accuracy=accuracy)
        assert checkpoints.best_step == 2
        assert checkpoints.latest_step == 5


def test_the_last_one_before_a_replica_diverged_stays(splits, tmp_path):
    state = make_trainer(splits).init()
    with open_checkpoints(tmp_path) as checkpoints:
        for step, loss in enumerate([0.0, 0.0, np.nan, np.nan, np.nan, np.nan], 1):
            totals = dataclasses.replace(
                state.totals, loss=jnp.array([0.0, loss], jnp.float32)
            )
            steps = jnp.array([step, min(step, 3)])
            checkpoints.save(dataclasses.replace(state, step=steps, totals=totals))
    assert steps_in(tmp_path) == [2, 5, 6]


@bounded(100)
@given(
    st.lists(st.lists(st.sampled_from([0.1, 0.5, 0.9, np.nan]), min_size=2, max_size=2))
)
def test_the_best_one_is_of_all_replicas_that_count(history):
    """Also where the mean over those that are left is higher."""
    manifests = {}
    for step, values in enumerate(history):
        lost, mean = np.isnan(values).tolist(), mean_of_finite(values)
        known = None if np.isnan(mean) else mean
        manifests[step] = Manifest(step, 0, known, not any(lost), {}, {}, None, lost)
    best = best_step(manifests, list(manifests))
    whole = {n: np.mean(v) for n, v in enumerate(history) if not np.isnan(v).any()}
    if whole:
        assert whole[best] == max(whole.values())
    else:
        assert (best is None) == all(np.isnan(values).all() for values in history)


def test_a_replica_without_a_validation_accuracy_has_diverged(splits, tmp_path):
    """Its last step has made its parameters NaN, after a loss that was a number."""
    state = make_trainer(splits).init()
    with open_checkpoints(tmp_path) as checkpoints:
        for step, values in enumerate([[0.2, 0.3], [0.9, np.nan]], 1):
            later = dataclasses.replace(state, step=state.step + step)
            checkpoints.save(later, val_accuracy=values)
    with open_checkpoints(tmp_path, owner=False) as checkpoints:
        assert checkpoints.best_step == 1
        assert [checkpoints.lost(step) for step in (1, 2)] == [
            [False] * 2,
            [False, True],
        ]


def test_an_empty_folder_has_none(splits, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore(make_trainer(splits).init())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with two checkpoints, the states, and a template to read them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    splits = make_splits()
    trainer = make_trainer(splits)
    states = save_epochs(trainer, splits, folder, [None] * 5)
    return folder, states, trainer.init()


def test_without_validation_there_is_no_best(saved, tmp_path, caplog):
    folder, states, template = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step is None
        state, _ = checkpoints.restore(template)
    assert_same(state, states[10])
    assert steps_in(tmp_path) == [8, 10]
    assert not caplog.records


def test_another_model_is_refused_in_one_line_and_nothing_is_changed(saved, tmp_path):
    folder, _, _ = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    other = make_trainer(make_splits(), SimpleNet(4))
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(
            UserError, match=r"step 10: its arrays are not the model's"
        ) as error,
    ):
        checkpoints.restore(other.init())
    assert "\n" not in str(error.value)
    assert steps_in(tmp_path) == [8, 10]


def damage(path, how):
    """Damages a file or a folder as a crash, a bad disk or a person may do."""
    if how == "missing":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    if how == "flipped":
        rng = random.Random(0)
        flipped = bytearray(content)
        for place in rng.sample(range(len(content)), min(len(content), 3)):
            flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)


def damages(folder):
    """Lists every kind of damage to every file and folder."""
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if path.is_dir() and any(path.rglob("*.*")):
            yield place, "missing"
        elif path.is_file():
            ways = ("missing", "truncated", "flipped") if path.stat().st_size else ()
            if path.name == "manifest.json":
                ways = ways[1:]  # without it, the checkpoint was never finished
            yield from ((place, how) for how in ways)


def test_any_damage_is_found_and_the_newest_sound_one_is_used(saved, tmp_path, caplog):
    folder, states, template = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    every = list(damages(folder / "10"))
    for place, how in random.Random(0).sample(every, 30):
        damage(tmp_path / "10" / place, how)
        caplog.clear()
        with open_checkpoints(tmp_path, owner=False) as checkpoints:
            variables, step = checkpoints.restore_variables(template.variables)
        assert step == 8, (place, how)
        assert_equal(variables, states[8].variables)
        assert "step 10" in caplog.text
        assert "loses 2 steps" in caplog.text
        shutil.rmtree(tmp_path / "10")
        shutil.copytree(folder / "10", tmp_path / "10")


def test_training_goes_on_from_it_and_the_damaged_one_is_set_aside(saved, tmp_path):
    folder, states, template = saved
    for number in (1, 2):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        damage(tmp_path / "10" / "training" / "manifest.ocdbt", "flipped")
        with open_checkpoints(tmp_path) as checkpoints:
            state, seconds = checkpoints.restore(template)
            assert_same(state, states[8])
            assert seconds == 0.5 * 8
            assert steps_in(tmp_path) == [8]
            checkpoints.save(dataclasses.replace(state, step=state.step + 2))
        assert steps_in(tmp_path) == [8, 10]
        assert (tmp_path / f"10.damaged-{number}" / "training").is_dir()
        shutil.rmtree(tmp_path / "10")


def test_a_half_written_one_is_not_taken_for_one(saved, tmp_path):
    folder, states, template = saved
    for step in (8, 10):
        shutil.copytree(folder / str(step), tmp_path / str(step))
    (tmp_path / "12" / "variables").mkdir(parents=True)
    shutil.copytree(folder / "10", tmp_path / "14.orbax-checkpoint-tmp")
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step == 10
        state, _ = checkpoints.restore(template)
        assert_same(state, states[10])
        checkpoints.save(dataclasses.replace(state, step=state.step + 2))
    assert steps_in(tmp_path) == [10, 12]


def test_where_only_a_half_written_one_is_there_is_none(saved, tmp_path):
    folder, _, _ = saved
    shutil.copytree(folder / "10", tmp_path / "10")
    (tmp_path / "10" / "manifest.json").unlink()
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step is None


def test_where_none_is_sound_nothing_is_changed(saved, tmp_path):
    folder, _, template = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for step in (8, 10):
        damage(tmp_path / str(step) / "variables" / "manifest.ocdbt", "truncated")
    before = sorted(tmp_path.rglob("*"))
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"nothing was changed: step 10: .* step 8"),
    ):
        checkpoints.restore(template)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_reader_changes_nothing(saved, tmp_path, caplog):
    folder, _, template = saved
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "10" / "variables" / "manifest.ocdbt", "missing")
    (tmp_path / "12.orbax-checkpoint-tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with open_checkpoints(tmp_path, owner=False) as checkpoints:
        _, step = checkpoints.restore_variables(template.variables)
    assert step == 8
    assert "step 10" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("trouble", ["too little room", "no writing", "vanished"])
def test_a_save_that_fails_leaves_the_others_and_later_ones_go_through(
    saved, tmp_path, monkeypatch, trouble
):
    folder, _, template = saved
    place = tmp_path / "checkpoints"
    shutil.copytree(folder, place)
    later = dataclasses.replace(template, step=template.step + 12)
    with open_checkpoints(place) as checkpoints:
        with monkeypatch.context() as patch:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            if trouble == "too little room":
                usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)
                patch.setattr(shutil, "disk_usage", lambda _: usage)
            elif trouble == "no writing":
                patch.setattr(checkpoint, "check_space", lambda *_: None)
                resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
            else:
                os.rename(place, tmp_path / "elsewhere")
            with pytest.raises(
                UserError, match=r"cannot save the checkpoint of step 12"
            ):
                checkpoints.save(later)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        if trouble == "vanished":
            assert not place.exists()
            os.rename(tmp_path / "elsewhere", place)
        assert sorted(os.listdir(place)) == ["10", "8"]
        checkpoints.save(later)
        assert steps_in(place) == [10, 12]
        assert_same(checkpoints.restore(template)[0], host(later))


def test_space_is_asked_for_before_it_is_needed(tmp_path, splits):
    state = make_trainer(splits).init()
    pathlib.Path(tmp_path / "x").mkdir()
    with open_checkpoints(tmp_path / "x") as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=state.step + 1))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert checkpoint.size_of(state) >= sum(path.stat().st_size for path in files)
    checkpoint.check_space(tmp_path, 1)
    with pytest.raises(UserError, match="make room"):
        checkpoint.check_space(tmp_path, 10**18)


def test_folders_of_others_are_refused_and_left_alone(splits, tmp_path):
    """Whoever names such a folder for checkpoints would lose them."""
    (tmp_path / "2024" / "training").mkdir(parents=True)
    (tmp_path / "2024" / "training" / "holiday.jpg").write_text("mine")
    with pytest.raises(UserError, match="2024 is not a checkpoint; move it elsewhere"):
        save_epochs(make_trainer(splits), splits, tmp_path, [0.1] * 5)
    assert [path.name for path in tmp_path.rglob("*")] == [
        *("2024", "training", "holiday.jpg")
    ]


def test_a_reader_makes_no_folder(tmp_path):
    with open_checkpoints(tmp_path / "none", owner=False) as checkpoints:
        assert checkpoints.latest_step is None
    assert list(tmp_path.iterdir()) == []
