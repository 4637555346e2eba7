"""Runs that start from another run, and freeze parts of it."""

import shutil
import threading

import flax.linen as nn
import jax
import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.data import make_dataset
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.observers import Observer
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from tests.conftest import make_split
from tests.runs.test_session import TinyNet, Told


def dataset(classes, seed=0, names=None):
    train, test = make_split(seed, 96, classes), make_split(seed + 1, 24, classes)
    arrays = (train.images, train.labels, test.images, test.labels)
    names = names or [f"class {k}" for k in range(classes)]
    return make_dataset("tiny", *arrays, names, source="a test")


class Fixed(nn.Module):
    """A model for four classes and no other number."""

    @nn.compact
    def __call__(self, images):
        """Applies two layers to the mean colours."""
        hidden = nn.relu(nn.Dense(4, name="first")(images.mean((1, 2))))
        return nn.Dense(4, name="last")(hidden)


DATA = dataset(4)
SETTINGS = {"val_size": 24, "batch_size": 24, "lr": 0.05, "epochs": 1}


def go(folder=None, data=DATA, net=None, **changes):
    names = ("observers", "stop", "resume")
    ways = {name: changes.pop(name) for name in names if name in changes}
    settings = Settings(**SETTINGS | changes)
    return run(settings, folder, dataset=data, model=net, **ways)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin") / "run"
    return folder, go(folder, seeds=(3, 5))


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def moved(one, other):
    """Returns the paths of the arrays that differ."""
    pairs = zip(
        jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other), strict=True
    )
    return {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), (_, b) in pairs
        if not np.array_equal(a, b)
    }


@pytest.mark.slow
def test_a_run_starts_from_the_replica_of_its_seed_or_the_first(origin):
    folder, result = origin
    started = go(init_from=str(folder), seeds=(5, 9), lr=0.0)
    theirs = result.state.params
    assert_same(
        started.state.params, jax.tree.map(lambda p: p[np.array([1, 0])], theirs)
    )


@pytest.mark.slow
def test_other_classes_get_a_new_head(origin, caplog):
    caplog.set_level("INFO")
    folder, result = origin
    started = go(data=dataset(7, seed=3), init_from=str(folder), seeds=(3,), lr=0.0)
    ours, theirs = started.state.params, result.state.params
    assert ours["head"]["kernel"].shape[-1] == 7
    for name in set(ours) - {"head"}:
        assert_same(ours[name], jax.tree.map(lambda p: p[:1], theirs[name]))
    assert "new: params/head/bias, params/head/kernel" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [("cat", "dog", "ship", "car"), ("class 1", "class 0", "class 2", "class 3")],
)
def test_as_many_other_classes_get_a_new_head_too(origin, names, caplog):
    """Also the same ones in another order, which a head would mix up."""
    caplog.set_level("INFO")
    folder, result = origin
    data = dataset(4, seed=3, names=names)
    started = go(data=data, init_from=str(folder), seeds=(3,), lr=0.0)
    first = jax.tree.map(lambda p: p[:1], result.state.params)
    assert moved(started.state.params, first) == {"head/bias", "head/kernel"}
    assert "new: params/head/bias, params/head/kernel" in caplog.text
    assert f"are {', '.join(names)}, so the last layer is new" in caplog.text


@pytest.mark.slow
def test_the_last_layer_of_a_net_without_num_classes_is_new_too(tmp_path):
    go(tmp_path / "first", net=Fixed(), lr=0.01)
    first = records.read_config(tmp_path / "first").dataset.class_names
    for names, new in ((first, set()), ([*"wxyz"], {"last/bias", "last/kernel"})):
        changes = {"init_from": str(tmp_path / "first"), "lr": 0.0}
        started = go(data=dataset(4, names=names), net=Fixed(), **changes)
        theirs = Run.load(tmp_path / "first", model=Fixed()).variables["params"]
        assert moved(started.state.params, theirs) == new
    changes["init_from"] = str(tmp_path / "tiny")
    go(tmp_path / "tiny", net=TinyNet())
    with pytest.raises(UserError, match="none of its arrays fits, and its classes are"):
        go(data=dataset(4, names=[*"wxyz"]), net=TinyNet(), **changes)


@pytest.mark.slow
def test_what_is_frozen_keeps_its_bits_norms_included(origin):
    folder, result = origin
    first = jax.tree.map(lambda p: p[:1], result.state.trained)
    settings = {"init_from": str(folder), "seeds": (3,), "freeze": "^(?!head)"}
    ended = go(**settings).state
    assert moved(ended.trained, first) == {"params/head/bias", "params/head/kernel"}
    ended = go(**settings, bn_freeze=False).state
    changed = moved(ended.trained, first)
    assert {path.split("/")[0] for path in changed} == {"params", "batch_stats"}
    assert {path for path in changed if path.startswith("params")} == {
        "params/head/bias",
        "params/head/kernel",
    }
    part = moved(go(**{**settings, "freeze": "stage0"}).state.trained, first)
    assert not any("stage0" in path for path in part)
    assert any("batch_stats/stage1" in path for path in part)


HEAD_FIRST = """
batch_size = 24

[[phases]]
kind = "constant"
learning_rate = 0.05
epochs = 1.5
freeze = "^(?!head)"

[[phases]]
kind = "sgdr"
learning_rate = 0.005
cycles = 1
"""


@pytest.mark.slow
def test_first_the_head_then_all_at_a_tenth(origin, tmp_path, small_chunks):
    folder, result = origin
    first = jax.tree.map(lambda p: p[:1], result.state.trained)
    (tmp_path / "mine.toml").write_text(HEAD_FIRST)
    settings = {
        **{"recipe": str(tmp_path / "mine.toml"), "init_from": str(folder)},
        **{"seeds": (3,), "lr": None, "epochs": None, "batch_size": None},
    }
    seen = {}

    class Watch(Observer):
        def chunk_done(self, progress):
            seen[progress.step] = moved(progress.state.trained, first)

    go(**settings, observers=[Watch()])
    head = {"params/head/bias", "params/head/kernel"}
    assert [step for step in seen if seen[step] == head] == [1, 2, 3, 4]
    whole = {path.split("/")[1] for path in seen[8]}
    assert whole == {*first["params"], *first["batch_stats"]}

    stop = threading.Event()
    told = Told(5, stop.set)
    go(tmp_path / "run", **settings, observers=[told], stop=stop)
    resumed = go(tmp_path / "run", **settings, resume=True)
    expected = go(**settings)
    assert_same(resumed.state.trained, expected.state.trained)
    assert_same(resumed.state.opt_state, expected.state.opt_state)


class Stranger(nn.Module):
    """A network with Flax's own batch norm."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Conv(4, (3, 3), strides=4, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, name="inner")(x)
        x = nn.relu(x).mean((1, 2))
        x = nn.BatchNorm(name="outer")(x, use_running_average=not train)
        return nn.Dense(self.num_classes, name="head")(x)


@pytest.mark.slow
def test_the_norms_of_a_stranger_freeze_too(tmp_path):
    first = go(tmp_path / "run", net=Stranger(4)).state
    settings = {"init_from": str(tmp_path / "run"), "data": dataset(6)}
    ended = go(net=Stranger(6), freeze="conv|inner", **settings).state
    for name in ("conv", "inner"):
        assert_same(ended.params[name], first.params[name])
    assert_same(ended.batch_stats["inner"], first.batch_stats["inner"])
    assert moved(ended.batch_stats["outer"], first.batch_stats["outer"])


@pytest.mark.slow
def test_a_fine_tuned_run_resumes_without_its_origin(origin, tmp_path):
    folder, _ = origin
    settings = {"init_from": str(folder), "seeds": (3,), "ema": 0.5, "epochs": 2}
    whole = go(tmp_path / "whole", **settings)
    again = run(
        Settings(**SETTINGS | settings),
        tmp_path / "whole",
        dataset=DATA,
        resume=True,
    )
    assert_same(whole.state.trained, again.state.trained)
    assert_same(whole.state.average, again.state.average)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init_from": "nowhere"}, "nowhere holds no run"),
        ({"init_from": "{}", "model": "resnet"}, "has trained convbn, and this one"),
        ({"freeze": "["}, "is not a regular expression"),
        ({"freeze": "no such"}, "'no such' is found in no parameter's path"),
    ],
)
def test_what_cannot_be_started_from_is_named(origin, changes, words):
    changes = {name: text.format(origin[0]) for name, text in changes.items()}
    with pytest.raises(UserError, match=words):
        go(**changes)


@pytest.mark.slow
def test_frozen_statistics_of_an_untrained_net_are_warned_of(caplog):
    go(bn_freeze=True)
    assert "the running statistics of an untrained network are 0 and 1" in caplog.text


# Settings that a continued run shares with the one before.
LONG = {**SETTINGS, "seeds": (3, 5), "momentum": 0.9, "ema": 0.5}


def continue_run(folder, to=None, net=None, **changes):
    settings = Settings.continuing(folder, **changes)
    return run(settings, to, dataset=DATA, model=net)


@pytest.mark.slow
@pytest.mark.parametrize("every", [2, 3])
def test_a_run_with_accumulated_gradients_goes_on_within_a_group(tmp_path, every):
    settings = {**LONG, "model": "simplenet", "accumulate": every}
    go(tmp_path / "first", **{**settings, "epochs": 1.5})
    second = continue_run(tmp_path / "first", epochs=0.75)
    whole = go(None, **{**settings, "epochs": 2.25})
    assert_same(second.state.trained, whole.state.trained)
    assert_same(second.state.opt_state, whole.state.opt_state)


@pytest.mark.slow
def test_where_a_continued_run_is_not_one_longer_run_it_says_so(tmp_path, caplog):
    settings = {**LONG, "model": "simplenet"}
    go(tmp_path / "first", **settings, lookahead=2)
    continue_run(tmp_path / "first", epochs=1)
    assert "the result differs from that of one longer run" in caplog.text
    (tmp_path / "freezing.toml").write_text(
        "batch_size = 24\n[[phases]]\nkind = 'constant'\nlearning_rate = 0.1\n"
        "epochs = 1\nfreeze = 'hidden0'"
    )
    given = {"recipe": str(tmp_path / "freezing.toml"), "val_size": 24}
    run(Settings(model="simplenet", **given), tmp_path / "freezing", dataset=DATA)
    with pytest.raises(UserError, match=r"freezes 'hidden0', .*--init_from takes"):
        continue_run(tmp_path / "freezing", tmp_path / "new", epochs=1, lr=0.1)


@pytest.mark.slow
def test_two_runs_one_after_the_other_are_one_of_both_lengths(tmp_path):
    """State, metrics and steps are those of one long run."""
    go(tmp_path / "first", **{**LONG, "epochs": 1.5})
    second = continue_run(tmp_path / "first", tmp_path / "second", epochs=0.75)
    whole = go(None, **{**LONG, "epochs": 2.25})
    assert_same(second.state.trained, whole.state.trained)
    assert_same(second.state.opt_state, whole.state.opt_state)
    assert_same(second.state.average, whole.state.average)
    np.testing.assert_array_equal(second.steps.losses, whole.steps.losses)
    np.testing.assert_array_equal(second.steps.rates, whole.steps.rates)
    assert [line.train_loss for line in second.metrics][-1] == (
        [line.train_loss for line in whole.metrics][-1]
    )
    record = records.read_config(tmp_path / "second")
    assert record.settings["continue_from"] == str(tmp_path / "first")
    assert [phase["epochs"] for phase in record.recipe["phases"]] == [1.5, 0.75]
    first = records.read_result(tmp_path / "first")
    assert second.record.epochs == 2.25
    assert second.record.train_seconds > first.train_seconds
    lines = records.read_metrics(tmp_path / "second")
    assert lines == second.metrics
    assert [line.step for line in lines] == [3, 4, 6, 7]


@pytest.mark.slow
def test_a_net_of_a_program_goes_on_too(tmp_path):
    settings = {**SETTINGS, "epochs": 2}
    go(tmp_path / "first", net=TinyNet(), **settings)
    second = go(net=TinyNet(), **settings, continue_from=str(tmp_path / "first"))
    whole = go(net=TinyNet(), **{**settings, "epochs": 4})
    assert_same(second.state.params, whole.state.params)


@pytest.mark.slow
def test_it_resumes_where_the_run_before_is_gone(tmp_path, small_chunks):
    first = tmp_path / "first"
    go(first, **LONG, model="simplenet")
    whole = continue_run(first, lr=0.01, epochs=2)
    settings = Settings.continuing(first, lr=0.01, epochs=2)
    stop = threading.Event()
    told = Told(5, stop.set)
    ways = {"dataset": DATA, "observers": [told], "stop": stop}
    stopped = run(settings, tmp_path / "second", **ways)
    assert stopped.status == "stopped"
    shutil.rmtree(first)
    config = records.read_config(tmp_path / "second")
    again = Settings.from_record(config, "the record")
    resumed = run(again, tmp_path / "second", dataset=DATA, resume=True)
    assert_same(resumed.state.trained, whole.state.trained)
    assert [line.step for line in resumed.metrics] == [3, 6, 9]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"epochs": 1, "momentum": 0.5},
            r"momentum was 0.9 and is 0.5; only the",
        ),
        (
            {"epochs": 1, "seeds": (3,)},
            r"--seeds was \[3, 5\] and is \[3\]; --init",
        ),
        ({"epochs": 1, "lr": "auto"}, "--lr=auto finds a rate for the start"),
        ({"epochs": 1, "init_from": "x"}, "give one of them"),
        ({"epochs": 1, "train_size": 48}, "--train_size was None and is 48"),
        ({"cycles": 1, "epochs": 1}, "--cycles for SGDR cycles; give one of them"),
        ({"epochs": 1, "bn_epsilon": 0.1}, "--bn_epsilon was 1e-05 and is 0.1"),
    ],
)
def test_a_run_goes_on_with_nothing_changed_but_its_phases(origin, changes, words):
    with pytest.raises(UserError, match=words):
        continue_run(origin[0], **changes)


@pytest.mark.slow
def test_other_data_or_an_unfinished_run_are_refused(origin, tmp_path, small_chunks):
    settings = Settings.continuing(origin[0], epochs=1)
    with pytest.raises(UserError, match="the data set was a test; --init_from"):
        run(settings, dataset=dataset(4, seed=9))
    stop = threading.Event()
    told = Told(1, stop.set)
    go(tmp_path / "run", model="simplenet", observers=[told], stop=stop)
    with pytest.raises(UserError, match=r"is not finished; continue .* --resume"):
        continue_run(tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="nowhere holds no run"):
        continue_run("nowhere", epochs=1)
