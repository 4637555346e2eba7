"""A run as a function: where it works, what it leaves behind, and what stops it."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

from cifar_flax import records
from cifar_flax.analysis import range_curve
from cifar_flax.data import make_dataset
from cifar_flax.errors import UserError
from cifar_flax.identity import configuration_of
from cifar_flax.reports.studies import read_studies
from cifar_flax.reports.verdicts import given
from cifar_flax.runs.folder import LOCK, lock_holder
from cifar_flax.runs.observers import Observer
from cifar_flax.runs.range_tests import range_test
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from cifar_flax.runs.subject import with_recipe
from cifar_flax.show.figures import RANGE_FIGURE, RangeFigure
from cifar_flax.training.lr_range import RangeSettings
from cifar_flax.training.named_recipes import LESSON
from cifar_flax.training.phases import Constant, Sgdr
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.conftest import make_split
from tests.test_records import make_config
from tests.training.test_trainer import host

# Four epochs of three steps.
SETTINGS = Settings(seeds=(0, 1), lr=0.001, epochs=4, batch_size=32, val_size=24)


class TinyNet(nn.Module):
    """A custom model without an argument ``train``."""

    classes: int = 4

    @nn.compact
    def __call__(self, images):
        """Applies a dense layer to the mean colours."""
        return nn.Dense(self.classes)(images.mean((1, 2)))


def make_tiny(name="tiny", count=120):
    train, test = make_split(0, count), make_split(2, 25)
    return make_dataset(
        name,
        train.images,
        train.labels,
        test.images,
        test.labels,
        tuple("abcd"),
        source="a test",
    )


def assert_same_configuration(one, other):
    """Asserts that two results have the same logits and the same configuration."""
    np.testing.assert_array_equal(one.test.logits, other.test.logits)
    first, second = (records.read_config(each.folder) for each in (one, other))
    assert configuration_of(first, "") == configuration_of(second, "")


def go(folder, settings=SETTINGS, **changes):
    """A run in a folder."""
    given = {"model": TinyNet(), "dataset": make_tiny(), **changes}
    return run(settings, folder, **given)


def steps_of(lines):
    return [line.step for line in lines]


def saved_steps(folder):
    paths = (folder / records.CHECKPOINTS).iterdir()
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, host(a), host(b))


class Told(Observer):
    """Records the calls; may call a function after a step."""

    def __init__(self, at=None, act=lambda: None):
        self.events, self._at, self._act = [], at, act

    def started(self, plan):
        self.events.append(("started", plan.kind, plan.step, plan.total_steps))

    def chunk_done(self, progress):
        self.events.append(("chunk", progress.step))
        if progress.step == self._at:
            self._act()

    def epoch_done(self, line, state):
        self.events.append(("epoch", line.epoch, int(state.step[0])))

    def ended(self, result):
        self.events.append(("ended", result and result.status))

    def of(self, kind):
        return [event[1:] for event in self.events if event[0] == kind]


def test_observers_are_told_of_everything_in_order(tmp_path, small_chunks):
    told = Told()
    go(tmp_path / "run", observers=[told])
    assert told.events[0] == ("started", "run", 0, 12)
    assert told.of("chunk") == [(step,) for step in range(1, 13)]
    assert told.of("epoch") == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert told.events.index(("epoch", 1, 3)) == told.events.index(("chunk", 3)) + 1
    assert told.events[-1] == ("ended", "finished")


def test_without_a_folder_it_gives_the_same_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alone = go(None)
    assert list(tmp_path.iterdir()) == []
    recorded = go(tmp_path / "run")
    assert_same(alone.state, recorded.state)
    assert alone.record.test_accuracy == recorded.record.test_accuracy
    assert records.read_result(tmp_path / "run") == recorded.record
    assert records.read_metrics(tmp_path / "run") == recorded.metrics
    np.testing.assert_array_equal(
        records.read_predictions(tmp_path / "run")["logits"], alone.test.logits
    )


def test_it_prints_nothing_and_leaves_signals_alone(tmp_path, capfd):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    told = Told(3, lambda: seen.extend(signal.getsignal(n) for n in numbers))
    seen = []
    go(tmp_path / "run", observers=[told])
    assert seen == before
    assert capfd.readouterr() == ("", "")


def test_it_runs_in_another_thread_to_the_same_bits(tmp_path):
    expected = go(None)
    found = []
    thread = threading.Thread(target=lambda: found.append(go(tmp_path / "run")))
    thread.start()
    thread.join()
    assert_same(found[0].state, expected.state)


@pytest.mark.slow
def test_it_runs_in_a_child_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=go, args=(tmp_path / "run",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert records.read_result(tmp_path / "run").status == "finished"


def test_a_folder_is_kept_from_others_only_while_it_is_used(tmp_path):
    refused = []

    def intrude():
        with pytest.raises(UserError, match="is in use by process") as error:
            go(tmp_path / "run", resume=True)
        refused.append(error)

    go(tmp_path / "run", observers=[Told(3, intrude)])
    assert refused
    assert lock_holder(tmp_path / "run") is None
    with pytest.raises(UserError, match="holds a run"):
        go(tmp_path / "run")


def test_a_finished_run_is_only_evaluated_again(tmp_path):
    first = go(tmp_path / "run")
    content = {p: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.is_file()}
    told = Told()
    again = go(tmp_path / "run", resume=True, observers=[told])
    assert told.of("chunk") == []
    assert again.record == first.record
    assert again.metrics == first.metrics
    assert_same(again.state, first.state)
    np.testing.assert_array_equal(again.test.logits, first.test.logits)
    for path, before in content.items():
        assert path.read_bytes() == before or path.name == LOCK


@pytest.mark.parametrize("way", ["event", "interrupt", "before"])
def test_a_stop_saves_the_state_and_the_run_goes_on_to_the_same_bits(
    tmp_path, small_chunks, way
):
    expected = go(None)
    stop = threading.Event()

    def act():
        if way == "interrupt":
            raise KeyboardInterrupt
        stop.set()

    if way == "before":
        stop.set()
    told = Told(5, act)
    stopped = go(tmp_path / "run", stop=stop, observers=[told])
    step = {"event": 5, "interrupt": 4, "before": 0}[way]
    assert (stopped.status, stopped.record, stopped.test) == ("stopped", None, None)
    assert saved_steps(tmp_path / "run")[-1] == stopped.state.step[0] == step
    assert steps_of(records.read_metrics(tmp_path / "run")) == [3][: step // 3]
    assert told.events[-1] == ("ended", "stopped")
    assert records.read_result(tmp_path / "run") is None
    # The caller's objects can still be used.
    figures = stopped.trainer.evaluate(stopped.state, stopped.splits.val)
    assert figures.logits.shape == (2, 24, 4)
    told = Told()
    result = go(tmp_path / "run", resume=True, observers=[told])
    assert told.events[0] == ("started", "run", step, 12)
    assert_same(result.state, expected.state)
    assert steps_of(result.metrics) == [3, 6, 9, 12]


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.enable_x64(True),
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.numpy_dtype_promotion("strict"),
        lambda: jax.disable_jit(),
        lambda: jax.debug_nans(True),
    ],
)
def test_settings_of_jax_change_no_number(setting):
    settings = dataclasses.replace(SETTINGS, lr=1e38)  # it diverges
    expected, lost = go(None), go(None, settings)
    with setting():
        assert_same(go(None).state, expected.state)
        assert go(None, settings).record.diverged_at == lost.record.diverged_at
    assert None not in lost.record.diverged_at


@pytest.mark.slow
def test_no_device_is_one_line_before_a_folder_is_made(tmp_path):
    command = [sys.executable, "-m", "experiments.run", "--dataset=shapes"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        env={**os.environ, "JAX_PLATFORMS": "tpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: JAX finds no device: JAX_PLATFORMS=tpu;")
    assert not (tmp_path / "run").exists()


def test_what_decides_the_bits_is_compared(tmp_path, monkeypatch, caplog):
    stop = threading.Event()
    stop.set()
    go(tmp_path / "run", stop=stop)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX")
    with jax.default_matmul_precision("bfloat16"):
        go(tmp_path / "run", stop=stop, resume=True)
    for words in ("XLA_FLAGS was ", "JAX_DEFAULT_MATMUL_PRECISION was "):
        assert words in caplog.text


def test_another_recipe_of_the_same_settings_is_another_run(tmp_path, monkeypatch):
    settings = Settings(model="simplenet", val_size=24, phases=1, batch_size=32)
    stop = threading.Event()
    stop.set()
    go(tmp_path / "run", settings, model=None, stop=stop)
    recipe = dataclasses.replace(LESSON["simplenet"], momentum=0.5)
    monkeypatch.setitem(LESSON, "simplenet", recipe)
    settings = dataclasses.replace(settings)  # their recipe is made with them
    with pytest.raises(UserError, match=r"the recipe's momentum was 0\.9 and is 0\.5"):
        go(tmp_path / "run", settings, model=None, resume=True)


@pytest.mark.slow
def test_a_run_of_before_a_setting_came_goes_on(tmp_path):
    settings = Settings(model="simplenet", val_size=24, phases=1, batch_size=32)
    stop = threading.Event()
    stop.set()
    go(tmp_path / "run", settings, model=None, stop=stop)
    config = records.read_config(tmp_path / "run")
    assert config.settings["tta"] == config.recipe["tta"] == "none"
    for name in ("lookahead", "tta"):  # the settings had the second before
        del config.recipe[name]
    del config.settings["lookahead"]
    records.write_config(tmp_path / "run", config)
    done = go(tmp_path / "run", settings, model=None, resume=True)
    assert done.status == "finished"


def test_an_error_of_an_observer_ends_the_run_and_the_others_are_told(tmp_path):
    def act():
        raise RuntimeError("mine")

    told = Told()
    with pytest.raises(RuntimeError, match="mine"):
        go(tmp_path / "run", observers=[told, Told(3, act)])
    assert told.events[-1] == ("ended", None)
    assert lock_holder(tmp_path / "run") is None
    assert go(tmp_path / "run", resume=True).status == "finished"


def test_a_second_call_in_the_same_process_is_the_same(tmp_path):
    first, second = (go(tmp_path / name) for name in "ab")
    assert_same(first.state, second.state)
    assert records.read_config(tmp_path / "a") == records.read_config(tmp_path / "b")


class HalfNet(TinyNet):
    """Another custom model."""


class Plateau:
    """A custom phase that is not a dataclass."""

    epochs = 2

    def schedule(self, steps_per_epoch):
        return lambda step: 0.01 / (1 + step // steps_per_epoch)

    def __str__(self):
        return "2 epochs of halving rates"


class Adam(Recipe):
    """A recipe with a custom optimizer."""

    def make_optimizer(self, schedule):
        return optax.adam(schedule)


@pytest.mark.slow
def test_what_a_program_gives_is_what_is_recorded_and_reported(tmp_path):
    recipe = Adam((Plateau(), Constant(0.5, 1)), batch_size=32)
    settings = Settings(seeds=(0, 1), val_size=24)
    for name, model in (("a", TinyNet()), ("b", HalfNet())):
        go(tmp_path / name, settings, model=model, recipe=recipe)
    config = records.read_config(tmp_path / "a")
    assert config.settings["model"] == "TinyNet"
    assert config.settings["dataset"] == "tiny"
    assert config.settings["dtype"] is None
    assert config.recipe["optimizer"] == "of Adam"
    assert [phase["kind"] for phase in config.recipe["phases"]] == [
        "plateau",
        "constant",
    ]
    assert config.schedule.rates == pytest.approx([0.01] * 3 + [0.005] * 3 + [0.5] * 3)
    assert config.schedule.epochs == pytest.approx(np.arange(9) / 3, abs=1e-5)
    assert config.num_params == 16
    assert config.command == []
    (study,), left_out = read_studies(tmp_path)
    assert left_out == []
    assert sorted(entry.name for entry in study.entries) == ["HalfNet", "TinyNet"]
    with pytest.raises(UserError, match="--model was TinyNet and is HalfNet"):
        go(tmp_path / "a", settings, model=HalfNet(), recipe=recipe, resume=True)


def test_the_recorded_schedule_is_the_one_that_runs(splits):
    """A recipe of 90 epochs of 12 steps is sampled at a thousand steps."""
    recipe = Recipe((Constant(0.1, 2), Sgdr(0.05, 3, 8, 2), Sgdr(0.2, 4, 8)), 8)
    trainer = Trainer(TinyNet(), recipe, splits.spec)
    schedule = with_recipe(make_config(), trainer).schedule
    steps = np.rint(np.array(schedule.epochs) * 12).astype(int)
    assert (steps[0], steps[-1], len(steps)) == (0, 90 * 12 - 1, 1_000)
    cycles = [(0.05, 8), (0.05, 16), (0.05, 32), *[(0.2, 8)] * 4]
    expected = [0.1] * 24
    for peak, epochs in cycles:
        place = np.arange(12 * epochs) / (12 * epochs)
        expected += list(peak * (1 + np.cos(np.pi * place)) / 2)
    expected = np.array(expected)[steps]
    np.testing.assert_allclose(schedule.rates, expected, rtol=1e-3, atol=1e-6)
    assert max(schedule.rates) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.slow
def test_parameters_and_operations_are_counted_for_the_images_of_the_data(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 16, 12, 1), dtype=np.uint8)
    labels = np.arange(60) % 2
    dataset = make_dataset(
        "grey", images, labels, images, labels, ("a", "b"), source="a test"
    )
    settings = Settings(
        model="simplenet", val_size=0, lr=0.001, epochs=1, batch_size=30
    )
    result = run(settings, tmp_path / "run", dataset=dataset)
    inputs = 16 * 12
    assert result.record.num_params == (inputs + 1) * 40 + 41 * 2
    assert result.record.flops_per_image == 2 * (inputs * 40 + 40 * 2)
    config = records.read_config(tmp_path / "run")
    assert config.num_params == result.record.num_params
    assert config.dataset.image_shape == (16, 12, 1)


@pytest.mark.slow
def test_a_run_recorded_with_the_default_val_size_goes_on_without_it(tmp_path):
    """Older runs were recorded with 5,000; now the default is None."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5_040, 4, 4, 1), dtype=np.uint8)
    labels = np.arange(5_040) % 2
    dataset = make_dataset(
        "grey", images, labels, images[:9], labels[:9], ("a", "b"), source="a test"
    )
    default = Settings(model="simplenet", lr=0.001, epochs=1, batch_size=20)
    given = dataclasses.replace(default, val_size=5_000)
    for name, first, then in (("a", given, default), ("b", default, given)):
        result = run(first, tmp_path / name, dataset=dataset)
        config = records.read_config(tmp_path / name)
        assert config.settings["val_size"] == config.dataset.val_size == 5_000
        again = run(then, tmp_path / name, dataset=dataset, resume=True)
        assert again.record == result.record


@pytest.mark.slow
def test_the_recorded_command_gives_the_same_settings(tmp_path):
    settings = Settings(
        model="simplenet", lr=0.001, epochs=1, batch_size=32, val_size=24, flip=False
    )
    run(settings, tmp_path / "run", dataset=make_tiny("cifar10"))
    command = records.read_config(tmp_path / "run").command
    assert command[:3] == ["python", "-m", "experiments.run"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.settings_given", *command[3:]],
        capture_output=True,
        text=True,
        check=True,
    )
    given = {"model": "simplenet", "lr": 0.001, "flip": False, "val_size": 24}
    assert given.items() <= json.loads(done.stdout).items()


@pytest.mark.parametrize(
    ("settings", "changes", "words"),
    [
        ({"seeds": (0, 1)}, {}, "your own model has no default recipe"),
        ({"lr": 0.1}, {}, "your own model has no default recipe"),
        ({"model": "mixer"}, {"model": None}, "^mixer has no default recipe"),
        ({"model": "resnet", "lr": 0.1, "epochs": 1}, {}, "--model=resnet and model="),
        ({"bn_momentum": 0.5, "lr": 0.1, "epochs": 1}, {}, "--bn_momentum=0.5 and mo"),
        ({"lr": 0.1}, {"recipe": Recipe((Constant(0.1, 1),))}, "--lr=0.1 and recipe="),
        ({"dataset": "cifar10"}, {"model": None}, "--dataset=cifar10 and dataset="),
        ({"lr": 0.1, "epochs": 1}, {"dataset": "cifar10"}, "the dataset is a str"),
        ({"lr": 0.1, "epochs": 1}, {"model": TinyNet}, "model is TinyNet.*instance"),
        ({"lr": 0.1, "epochs": 1}, {"model": TinyNet(5)}, r"\[N, 5\].*4 classes"),
        ({"lr": 0.1, "epochs": 1}, {"resume": True}, "resume needs the folder"),
        ({}, {"recipe": optax.adam(0.1), "model": None}, "must be a Recipe"),
    ],
)
def test_what_does_not_fit_together_is_named(settings, changes, words):
    size = {} if "recipe" in changes else {"batch_size": 32}
    settings = Settings(**{"val_size": 24, **size, **settings})
    with pytest.raises(UserError, match=words):
        go(None, settings, **changes)


def test_settings_must_be_settings():
    with pytest.raises(UserError, match=r"settings are a dict; give .*Settings"):
        run({"model": "convbn"})


@pytest.mark.slow
def test_a_range_test_suggests_a_rate_and_records_it(tmp_path):
    settings = Settings(model="simplenet", seeds=range(3), batch_size=32, val_size=24)
    told = Told()
    result = range_test(
        settings,
        tmp_path / "test",
        range_settings=RangeSettings(1e-6, 1e-1, num_steps=60),
        dataset=make_tiny("cifar10"),
        observers=[told],
    )
    assert told.events[0] == ("started", "lr_find", 0, 60)
    assert told.events[-1] == ("ended", "finished")
    found = records.read_range_test(tmp_path / "test")
    assert found.suggested_lr == result.consensus.rate
    assert found.losses[0] == result.curves.losses[0].tolist()
    config = records.read_config(tmp_path / "test")
    assert config.kind == "lr_find"
    assert config.command[2:] == [
        *("experiments.lr_find", "--model=simplenet", "--seeds=0,1,2"),
        *("--val_size=24", "--batch_size=32"),
        *("--start_lr=1e-06", "--end_lr=0.1", "--num_steps=60"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("checks", [None, False])
def test_a_rate_that_is_found_is_checked_before_it_is_recorded(tmp_path, checks):
    settings = Settings(
        model="simplenet",
        seeds=(5,),
        lr="auto",
        lr_check=checks,
        epochs=1,
        batch_size=32,
        val_size=24,
    )
    data = {"dataset": make_tiny("cifar10")}
    result = run(settings, tmp_path / "run", **data)
    found = records.read_range_test(tmp_path / "run")
    (lowest,) = (one for one in found.suggestions if one.method == "lowest")
    trials = [trial.rate for trial in found.checked]
    if checks is False:
        assert trials == []
        assert found.suggested_lr == lowest.rate
    else:
        assert trials[:2] == [lowest.rate, lowest.rate / 2]
        assert len(trials) > 1
        assert found.suggested_lr in trials
    (phase,) = result.trainer.recipe.phases
    assert phase.learning_rate == found.suggested_lr
    again = run(settings, tmp_path / "run", resume=True, **data)
    assert again.record == result.record


@pytest.mark.slow
def test_no_rate_is_chosen_where_seeds_disagree(tmp_path, monkeypatch):
    """The line says with which command a rate may be found."""
    monkeypatch.setattr(range_curve, "MAX_SPREAD", 1.0)
    sizes = {"epochs": 1, "val_size": 24, "batch_size": 32}
    settings = Settings(model="simplenet", lr="auto", **sizes)
    advice = "inconclusive: the seeds suggest .*experiments.lr_find has flags for that"
    with pytest.raises(UserError, match=advice):
        run(settings, tmp_path / "run", dataset=make_tiny("cifar10"))
    assert records.read_range_test(tmp_path / "run").suggested_lr is None


@pytest.mark.slow
def test_seeds_may_vary_in_their_split_and_their_rate(tmp_path):
    common = {"model": "simplenet", "batch_size": 32, "val_size": 24, "epochs": 1}
    data, made = make_tiny("cifar10"), {}
    for seed in (1, 2):
        settings = Settings(
            seeds=(seed,), seeds_vary=("split", "rate"), lr="auto", **common
        )
        made[seed] = run(settings, tmp_path / str(seed), dataset=data)
        found = records.read_range_test(tmp_path / str(seed))
        # A training of less than 100 steps has a range test of three seeds.
        assert found.seeds == [5 * seed + k for k in range(3)]
    images = [result.splits.val.images for result in made.values()]
    assert not np.array_equal(*images)
    (study,), left_out = read_studies(tmp_path)
    assert left_out == []
    (entry,) = study.entries
    assert entry.seeds == [1, 2]
    assert given(study) == "this test set; each seed has its own rate and split"


@pytest.mark.slow
def test_a_range_test_can_be_stopped(tmp_path):
    stop = threading.Event()
    settings = Settings(seeds=(0, 1), lr="auto", epochs=1, batch_size=32, val_size=24)
    changes = {"stop": stop, "observers": [Told(1, stop.set)]}
    result = go(tmp_path / "run", settings, **changes)
    assert result.status == "stopped"
    assert records.read_range_test(tmp_path / "run") is None
    assert records.read_config(tmp_path / "run").recipe is None
    given = {"model": TinyNet(), "dataset": make_tiny(), **changes}
    test = range_test(Settings(val_size=24, batch_size=32), **given)
    assert (test.status, test.curves) == ("stopped", None)


class Refuses(Observer):
    def started(self, plan):
        raise UserError("refused")


def test_a_run_that_is_refused_leaves_its_folder_free(tmp_path):
    """The corrected command takes the same folder."""
    for folder in (tmp_path / "new", tmp_path / "empty"):
        if folder.name == "empty":
            folder.mkdir()
        there = folder.exists()
        with pytest.raises(UserError, match="refused"):
            go(folder, observers=[Refuses()])
        assert folder.exists() == there
        assert not there or list(folder.iterdir()) == []


class RefusesLater(Observer):
    def epoch_done(self, line, state):
        raise UserError("refused")


def test_a_run_that_fails_after_an_epoch_is_kept(tmp_path):
    with pytest.raises(UserError, match="refused"):
        go(tmp_path, observers=[RefusesLater()])
    assert len(records.read_metrics(tmp_path)) == 1
    assert go(tmp_path, resume=True).status == "finished"


class Wanderer(Observer):
    """An observer that changes the current folder whenever it is called."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def _go_on(self, *_):
        self.count += 1
        (self.folder / str(self.count)).mkdir()
        os.chdir(self.folder / str(self.count))

    started = chunk_done = epoch_done = ended = _go_on


@pytest.mark.slow
def test_a_change_of_the_current_folder_moves_no_file(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    wanderer = Wanderer(tmp_path / "elsewhere")
    go("a run", observers=[wanderer])
    os.chdir(tmp_path)
    range_settings = RangeSettings(num_steps=20)
    observers = [wanderer, RangeFigure()]
    given = {"model": TinyNet(), "dataset": make_tiny(), "observers": observers}
    range_test(SETTINGS, "a test", range_settings=range_settings, **given)
    assert wanderer.count > 6
    assert not [path for path in wanderer.folder.rglob("*") if not path.is_dir()]
    assert records.read_result(tmp_path / "a run").status == "finished"
    assert saved_steps(tmp_path / "a run")
    assert (tmp_path / "a test" / RANGE_FIGURE).exists()
