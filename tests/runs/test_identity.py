"""What makes two runs the same, in one process and in several."""

import dataclasses
import functools
import json
import shutil
import threading

import flax.linen as nn
import jax
import numpy as np
import pytest

import cifar_flax as cf
from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.identity import configuration_of
from cifar_flax.models.own import make_own
from cifar_flax.models.program import program_of
from cifar_flax.own_code import source_of
from cifar_flax.reports.page import write_markdown
from cifar_flax.reports.studies import read_studies
from tests.conftest import make_split

NET = """
import flax.linen as nn
from blocks import width

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(width())(x.reshape(len(x), -1))
        return nn.Dense(self.num_classes)(x)
"""
BLOCKS = "def width(): return {}\n"
SHAPE = (8, 8, 3)


class Linear(nn.Module):
    """A network with a function as a field."""

    before: object = None
    num_classes: int = 4

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        return nn.Dense(self.num_classes)(self.before(x) if self.before else x)


@pytest.fixture(scope="module")
def dataset():
    train, test = make_split(0, 64), make_split(1, 40)
    return cf.make_dataset(
        *("tiny", train.images[:, :8, :8], train.labels),
        *(test.images[:, :8, :8], test.labels, ("a", "b", "c", "d")),
        source="drawn",
    )


RECIPE = cf.Recipe((cf.Constant(0.02, 1),), batch_size=16)


def go(folder, dataset, model=None, recipe=RECIPE, seeds=(0,), **more):
    settings = more.pop("settings", cf.Settings(val_size=16, seeds=seeds))
    model = Linear() if model is None else model
    return cf.run(settings, folder, model=model, recipe=recipe, dataset=dataset, **more)


@pytest.fixture(scope="module")
def plain(dataset, tmp_path_factory):
    """A function that puts a run of the plain recipe with some seeds into a folder."""
    trained = functools.cache(
        lambda seeds: go(tmp_path_factory.mktemp("plain") / "run", dataset, seeds=seeds)
    )
    return lambda folder, seeds=(0,): shutil.copytree(trained(seeds).folder, folder)


def names_of(folder):
    (study,), left_out = read_studies(folder)
    return [entry.name for entry in study.everything], left_out


def program(before=None):
    return program_of(Linear(before), SHAPE)


def test_a_program_is_what_is_computed_and_not_how_it_is_written():
    assert program(lambda x: 2 * x) == program(lambda y: 2 * y)  # another name
    assert program(lambda x: 2 * x) != program(lambda x: 3 * x)
    ones = np.ones(192, np.float32)
    other = np.array(ones)
    other[100] = 2
    assert program(lambda x: x * ones) != program(lambda x: x * other)
    assert program_of(Linear(num_classes=5), SHAPE) != program()


def test_a_program_holds_the_rules_of_gradients():
    def with_gradient(factor):
        @jax.custom_vjp
        def same(x):
            return x

        same.defvjp(lambda x: (x, None), lambda _, grad: (factor * grad,))
        return lambda x: same(x)

    # The images need no gradient, so the rule must be used behind a parameter.
    class Behind(Linear):
        @nn.compact
        def __call__(self, x):
            return self.before(nn.Dense(4)(x.reshape(len(x), -1)))

    first, again, other = (
        program_of(Behind(with_gradient(factor)), SHAPE) for factor in (1.0, 1.0, 2.0)
    )
    assert first == again != other


def test_what_jax_does_not_see_is_unknown():
    def called(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x, shape, jax.lax.stop_gradient(x))

    found = program(called)
    assert found.unknown == (
        "the model calls code that JAX does not see (pure_callback)"
    )
    assert program().unknown is None


def test_recipes_of_equal_words_are_two_configurations(tmp_path, dataset, plain):
    others = dataclasses.replace(RECIPE, augmentation=cf.Augmentation(padding=0))
    plain(tmp_path / "a", (0, 1))
    plain(tmp_path / "b", (2,))
    go(tmp_path / "c", dataset, recipe=others, seeds=(4, 5))
    (study,), left_out = read_studies(tmp_path)
    assert {tuple(entry.seeds) for entry in study.everything} == {(0, 1, 2), (4, 5)}
    assert left_out == []
    names = [entry.name for entry in study.everything]
    assert any("augmentation.padding=0" in name for name in names)
    text = write_markdown(*read_studies(tmp_path))
    assert "have the same settings and differ in augmentation.padding." in text


def test_networks_of_one_name_are_two_configurations(tmp_path, dataset):
    go(tmp_path / "a", dataset, Linear(lambda x: x))
    go(tmp_path / "b", dataset, Linear(lambda x: 0 * x))
    go(tmp_path / "c", dataset, Linear(lambda z: z), seeds=(1,))
    (study,), _ = read_studies(tmp_path)
    assert sorted(len(entry.seeds) for entry in study.entries) == [1, 2]


@pytest.mark.slow
def test_what_is_unknown_is_its_own_configuration(tmp_path, dataset):
    def called(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x, shape, jax.lax.stop_gradient(x))

    configs = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        go(folder, dataset, Linear(called), seeds=(seed,))
        configs.append(records.read_config(folder))
    first, second = (configuration_of(one, str(n)) for n, one in enumerate(configs))
    assert first != second
    assert configuration_of(configs[0], "a") == configuration_of(configs[1], "a")
    text = write_markdown(*read_studies(tmp_path))
    assert "calls code that JAX does not see (pure_callback). No other run" in text


class Halving:
    """A custom schedule, whose factor is not a field."""

    epochs, factor = 1, 0.5

    def schedule(self, steps_per_epoch):
        return lambda step: 0.02 * self.factor ** (step / steps_per_epoch)


@pytest.mark.slow
def test_the_code_of_a_phase_counts(tmp_path, dataset):
    go(tmp_path / "a", dataset, recipe=dataclasses.replace(RECIPE, phases=(Halving(),)))
    again = dataclasses.replace(RECIPE, phases=(Halving(),))
    go(tmp_path / "b", dataset, recipe=again, seeds=(1,))
    other = Halving()
    other.factor = 0.25
    go(tmp_path / "c", dataset, recipe=dataclasses.replace(RECIPE, phases=(other,)))
    (study,), left_out = read_studies(tmp_path)
    assert sorted(len(entry.seeds) for entry in study.everything) == [1, 2]
    assert left_out == []


@pytest.mark.slow
def test_the_code_of_an_optimizer_counts(tmp_path, dataset):
    @dataclasses.dataclass(frozen=True)
    class Mine(cf.Recipe):
        factor: float = 1.0

        def make_optimizer(self, schedule):
            return super().make_optimizer(lambda step: self.factor * schedule(step))

    for name, factor, seed in (("a", 1.0, 0), ("b", 1.0, 1), ("c", 2.0, 2)):
        recipe = Mine((cf.Constant(0.02, 1),), batch_size=16, factor=factor)
        go(tmp_path / name, dataset, recipe=recipe, seeds=(seed,))
    (study,), _ = read_studies(tmp_path)
    assert sorted(len(entry.seeds) for entry in study.everything) == [1, 2]


def test_a_seed_is_used_once_and_never_with_two_results(tmp_path, dataset, plain):
    plain(tmp_path / "a", (0, 1))
    go(tmp_path / "b", dataset, seeds=(0, 1, 2))
    (study,), left_out = read_studies(tmp_path)
    (entry,) = study.entries
    assert entry.seeds == [0, 1, 2]
    assert left_out == []
    result = records.read_result(tmp_path / "b")
    result.test_loss[1] += 1e-6
    records.write_result(tmp_path / "b", result)
    (study,), (line,) = read_studies(tmp_path)
    assert study.entries[0].seeds == [0, 2]
    assert "different results for seed 1" in line


def test_seeds_of_two_machines_are_one_entry_until_they_disagree(tmp_path, plain):
    plain(tmp_path / "a", (0, 1))
    plain(tmp_path / "b", (2,))
    config = records.read_config(tmp_path / "b")
    config.versions["computing device"] = "another"
    records.write_config(tmp_path / "b", config)
    assert len(names_of(tmp_path)[0]) == 1
    text = write_markdown(*read_studies(tmp_path))
    assert "come from runs that differ in computing device." in text
    result = records.read_result(tmp_path / "b")
    result.seeds = [1]
    result.test_loss[0] += 1e-6
    records.write_result(tmp_path / "b", result)
    arrays = records.read_predictions(tmp_path / "b")
    records.write_predictions(tmp_path / "b", **{**arrays, "seeds": [1], "run": None})
    config.settings["seeds"] = [1]
    records.write_config(tmp_path / "b", config)
    names, left_out = names_of(tmp_path)
    assert any("computing device=another" in name for name in names)
    assert left_out == []


@pytest.mark.slow
def test_an_older_record_is_told_apart_by_its_recipe(tmp_path, dataset, plain):
    others = dataclasses.replace(RECIPE, label_smoothing=0.1)
    plain(tmp_path / "a", (0,))
    plain(tmp_path / "b", (1,))
    go(tmp_path / "c", dataset, recipe=others, seeds=(2,))
    for name in "abc":
        path = tmp_path / name / records.CONFIG
        config = json.loads(path.read_text())
        del config["identity"]
        config["settings"]["recipe"] = "the same words"
        path.write_text(json.dumps(config))
    (study,), _ = read_studies(tmp_path)
    assert sorted(len(entry.seeds) for entry in study.everything) == [1, 2]


def test_a_resume_needs_the_same_network_and_recipe(tmp_path, dataset):
    stop = threading.Event()
    stop.set()
    folder = tmp_path / "run"
    go(folder, dataset, Linear(lambda x: x), stop=stop)
    with pytest.raises(UserError, match="the model Linear has changed: it computes"):
        go(folder, dataset, Linear(lambda x: 2 * x), resume=True)
    other = dataclasses.replace(RECIPE, augmentation=cf.Augmentation(padding=1))
    with pytest.raises(UserError, match=r"recipe's .*padding.* is "):
        go(folder, dataset, Linear(lambda x: x), recipe=other, resume=True)
    assert go(folder, dataset, Linear(lambda y: y), resume=True).status == "finished"


def test_more_seeds_in_the_same_folder_are_told_where_to_train(
    tmp_path, dataset, plain
):
    plain(tmp_path / "run", (0, 1))
    words = "holds the run of the seeds 0,1; train the others with --seeds=2,3 in"
    with pytest.raises(UserError, match=words):
        go(tmp_path / "run", dataset, seeds=(0, 2, 3), resume=True)


def test_a_run_is_loaded_only_with_its_network(tmp_path, dataset):
    go(tmp_path / "run", dataset, Linear(lambda x: x))
    assert cf.Run.load(tmp_path / "run", model=Linear(lambda x: x)).seeds == (0,)
    with pytest.raises(UserError, match="trained another Linear: it computes"):
        cf.Run.load(tmp_path / "run", model=Linear(lambda x: 2 * x))


def test_a_checkpoint_of_another_run_is_noticed(tmp_path, dataset, plain):
    plain(tmp_path / "a", (0,))
    plain(tmp_path / "b", (1,))
    place = tmp_path / "a" / records.CHECKPOINTS
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "b" / records.CHECKPOINTS, place)
    (tmp_path / "a" / records.RESULT).unlink()
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        cf.Run.load(tmp_path / "a", model=Linear())
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        go(tmp_path / "a", dataset, resume=True)
    assert cf.Run.load(tmp_path / "b", model=Linear()).seeds == (1,)


@pytest.mark.slow
def test_predictions_of_another_run_are_noticed(tmp_path, dataset, plain):
    plain(tmp_path / "a", (0,))
    others = dataclasses.replace(RECIPE, label_smoothing=0.1)
    go(tmp_path / "b", dataset, recipe=others, seeds=(0,))
    for name in (records.PREDICTIONS, records.RESULT):  # which agree with each other
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    (study,), (line,) = read_studies(tmp_path)
    assert [run.folder.name for e in study.entries for run in e.runs] == ["b"]
    assert f"{tmp_path / 'a' / records.PREDICTIONS} holds the predictions of an" in line


@pytest.mark.slow
def test_files_are_bound_to_a_run_that_cannot_be_compared(tmp_path, dataset):
    def called(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: x, shape, jax.lax.stop_gradient(x))

    def called_twice(x):
        return called(2 * called(x))

    net = Linear(called)
    go(tmp_path / "a", dataset, net, seeds=(0,))
    go(tmp_path / "b", dataset, Linear(called_twice), seeds=(0,))
    assert cf.Run.load(tmp_path / "a", model=net).seeds == (0,)
    assert go(tmp_path / "a", dataset, net, seeds=(0,), resume=True).record is not None
    assert read_studies(tmp_path)[1] == []
    for name in (records.PREDICTIONS, records.RESULT):
        shutil.copy(tmp_path / "b" / name, tmp_path / "a" / name)
    place = tmp_path / "a" / records.CHECKPOINTS
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "b" / records.CHECKPOINTS, place)
    assert "of another run" in read_studies(tmp_path)[1][0]
    with pytest.raises(UserError, match="is a checkpoint of another run"):
        cf.Run.load(tmp_path / "a", model=net)


@pytest.mark.slow
def test_a_start_counts_by_its_content(tmp_path, dataset, plain):
    stop = threading.Event()
    stop.set()
    plain(tmp_path / "origin")
    settings = cf.Settings(val_size=16, init_from=str(tmp_path / "origin"))
    go(tmp_path / "runs" / "a", dataset, settings=settings)
    go(tmp_path / "stopped", dataset, settings=settings, stop=stop)
    shutil.rmtree(tmp_path / "origin")
    # A run goes on without its origin, whose variables are in its checkpoint.
    again = shutil.copytree(tmp_path / "stopped", tmp_path / "again")
    assert go(again, dataset, settings=settings, resume=True).status == "finished"
    plain(tmp_path / "origin", (1,))
    with pytest.raises(UserError, match="the run that it starts from has changed"):
        go(tmp_path / "stopped", dataset, settings=settings, resume=True)
    settings = dataclasses.replace(settings, seeds=(1,))
    go(tmp_path / "runs" / "b", dataset, settings=settings)
    names, _ = names_of(tmp_path / "runs")
    assert len(names) == 2
    assert all(" start=" in name for name in names)


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NET)
    (tmp_path / "blocks.py").write_text(BLOCKS.format(3))
    return tmp_path / "nets.py"


def params_of(place):
    model = make_own(place, None, 4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 8, 8, 3)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_an_edited_file_or_helper_is_loaded_anew(nets):
    place = f"{nets}:Net"
    first, before = params_of(place), source_of(place)
    assert make_own(place, None, 4).__class__ is make_own(place, None, 4).__class__
    (nets.parent / "blocks.py").write_text(BLOCKS.format(5))
    second, after = params_of(place), source_of(place)
    assert (first, second) == (192 * 3 + 3 + 4 * 4, 192 * 5 + 5 + 6 * 4)
    assert before.text == after.text == NET
    assert [one.text for one in after.helpers] == [BLOCKS.format(5)]
    nets.write_text(NET.replace("width()", "2 * width()"))
    assert params_of(place) == 192 * 10 + 10 + 11 * 4


def test_two_folders_may_have_helpers_of_one_name(nets, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(nets.parent, other, dirs_exist_ok=True)
    (other / "blocks.py").write_text(BLOCKS.format(9))
    first = params_of(f"{nets}:Net")
    assert params_of(f"{other / 'nets.py'}:Net") == 192 * 9 + 9 + 10 * 4
    assert params_of(f"{nets}:Net") == first


def test_what_is_recorded_is_what_ran(nets, tmp_path, dataset):
    settings = cf.Settings(
        model=f"{nets}:Net", lr=0.02, epochs=1, batch_size=16, val_size=16
    )
    counts = []
    for width in (3, 6):
        (nets.parent / "blocks.py").write_text(BLOCKS.format(width))
        folder = tmp_path / "runs" / str(width)
        counts.append(cf.run(settings, folder, dataset=dataset).record.num_params)
        config = records.read_config(folder)
        assert config.model_source.helpers[0].text == BLOCKS.format(width)
    assert counts == [192 * w + w + 4 * (w + 1) for w in (3, 6)]
    assert len(names_of(tmp_path / "runs")[0]) == 2
