"""Records of runs with a user's own loss, augmentation, optimizer or average."""

import dataclasses
import re
import shutil
import sys
import threading

import numpy as np
import pytest

import cifar_flax as cf
from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.identity import configuration_of
from cifar_flax.reports.studies import read_studies
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.cells import make_cells
from cifar_flax.sweeps.earlier import Contents
from cifar_flax.training.recipe_files import read_recipe, to_toml
from tests import archives
from tests.conftest import make_split
from tests.forked import command
from tests.test_commands import assert_one_line_error

OWN = """
import jax, optax
from factor import FACTOR

def loss(logits, batch):
    classes = logits.shape[-1]
    targets = jax.nn.one_hot(batch.labels, classes)
    return -FACTOR * (targets * jax.nn.log_softmax(logits)).sum(-1)

def augment(key, images, labels):
    return images * FACTOR

def optimizer(schedule, momentum=0.5):
    return optax.sgd(schedule, momentum * FACTOR)

def average(average, variables, opt_state, step):
    return jax.tree.map(lambda a, v: a + FACTOR * (v - a) / step, average, variables)
"""
KINDS = ("loss", "augment", "optimizer", "average")


@pytest.fixture
def own(tmp_path):
    """A function that writes the file with a factor and returns a place in it."""
    folder = tmp_path / "own"
    folder.mkdir()

    def write(name, factor=1.0, text=OWN):
        (folder / "own.py").write_text(text)
        (folder / "factor.py").write_text(f"FACTOR = {factor}\n")
        return f"{folder / 'own.py'}:{name}"

    return write


@pytest.fixture(scope="module")
def dataset():
    train, test = make_split(0, 64), make_split(1, 40)
    arrays = (train.images[:, ::4, ::4], train.labels, test.images[:, ::4, ::4])
    names = [*"abcd"]
    return cf.make_dataset("tiny", *arrays, test.labels, names, source="drawn")


def settings_of(**changes):
    given = {"model": "convbn", "lr": 0.02, "epochs": 1, "batch_size": 16}
    return Settings(**{**given, "val_size": 16, **changes})


def go(folder, dataset, resume=False, stopped=False, recipe=None, **changes):
    stop = threading.Event()
    if stopped:
        stop.set()
    settings = settings_of(**changes)
    if recipe is not None:
        settings = Settings(model="convbn", val_size=16)
    given = {"dataset": dataset, "resume": resume, "stop": stop, "recipe": recipe}
    return cf.run(settings, folder, **given)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_own_code_is_recorded_and_compared(kind, own, tmp_path, dataset):
    """The record has the text; a change of a helper makes it another run."""
    place = own(kind)
    go(tmp_path / "run", dataset, stopped=True, **{kind: place})
    config = records.read_config(tmp_path / "run")
    source = config.sources[kind]
    assert (source.text, source.path) == (OWN, place.rpartition(":")[0])
    assert source.helpers[0].text == "FACTOR = 1.0\n"
    assert [*config.sources] == [kind]
    where = config.recipe["augmentation"] if kind == "augment" else config.recipe
    assert where[kind] == config.settings[kind] == place
    own(kind, 0.5)
    with pytest.raises(UserError, match="the code of the recipe has changed"):
        go(tmp_path / "run", dataset, resume=True, **{kind: place})
    own(kind, text=f"{OWN}# a comment\n")
    done = go(tmp_path / "run", dataset, resume=True, **{kind: place})
    assert done.status == "finished"
    # A record never runs code, and evaluation needs none of this.
    loaded = {name: one for name, one in sys.modules.items() if "own" not in name}
    shutil.rmtree(tmp_path / "own")
    run = cf.Run.load(tmp_path / "run")
    assert run.predict(np.zeros((2, 8, 8, 3), np.uint8)).shape == (1, 2, 4)
    assert loaded.keys() <= sys.modules.keys()


@pytest.mark.slow
def test_a_run_is_what_its_code_computes(own, tmp_path, dataset):
    """The same code elsewhere or from Python is the same; other code is another."""
    runs = tmp_path / "runs"
    for number, factor in enumerate((1.0, 1.0, 0.5)):
        go(runs / str(number), dataset, loss=own("loss", factor), seeds=(number,))
    place = own("loss")
    module = {}
    text = OWN.replace("from factor import FACTOR", "FACTOR = 1.0")
    exec(compile(text, "a cell", "exec"), module)
    recipe = dataclasses.replace(settings_of().make_recipe(), loss=module["loss"])
    go(runs / "3", dataset, recipe=recipe, seeds=(0,))
    named = dataclasses.replace(recipe, loss=place)
    go(runs / "4", dataset, recipe=named)
    configs = [records.read_config(runs / str(number)) for number in range(5)]
    found = [configuration_of(config, "") for config in configs]
    assert found[0] == found[1] != found[2]
    assert configs[3].identity == configs[4].identity == configs[0].identity
    (study,), _ = read_studies(runs)
    names = {entry.name: entry.seeds for entry in study.everything}
    assert sorted(map(sorted, names.values())) == [[0, 1], [2]]
    assert any(re.search("loss_code=[0-9a-f]{8}", name) for name in names), names


@pytest.mark.slow
def test_the_report_names_what_differs(own, tmp_path, dataset):
    runs = tmp_path / "runs"
    go(runs / "a", dataset, loss=own("loss"))
    go(runs / "b", dataset)
    (study,), _ = read_studies(runs)
    names = {entry.name for entry in study.everything}
    assert names == {"convbn loss=loss", "convbn loss=cross_entropy"}


@pytest.mark.slow
def test_a_recipe_file_has_its_code_beside_it(own, tmp_path, dataset):
    own("loss")
    path = tmp_path / "own" / "mine.toml"
    path.write_text(
        'loss = "own.py:loss"\n[[phases]]\nkind = "constant"\nlearning_rate = 0.1\n'
        'epochs = 1\n[augmentation]\naugment = "own.py:augment"\n'
    )
    recipe = read_recipe(path)
    assert recipe.loss == f"{tmp_path / 'own' / 'own.py'}:loss"
    (tmp_path / "other.toml").write_text(to_toml(recipe))
    assert read_recipe(tmp_path / "other.toml") == recipe
    stop = threading.Event()
    stop.set()
    mine = Settings(model="convbn", recipe=str(path), val_size=16, batch_size=16)
    cf.run(mine, tmp_path / "run", dataset=dataset, stop=stop)
    config = records.read_config(tmp_path / "run")
    assert sorted(config.sources) == ["augment", "loss"]
    with pytest.raises(UserError, match=f"add --recipe={path} "):
        Settings.of_run(tmp_path / "run", given=())
    assert Settings.of_run(tmp_path / "run", given=("recipe",)).recipe == str(path)
    own("loss", 0.5)
    with pytest.raises(UserError, match="the code of the recipe has changed"):
        cf.run(mine, tmp_path / "run", dataset=dataset, resume=True)


@pytest.mark.slow
def test_a_function_that_a_program_gives_is_no_name(tmp_path, dataset):
    """A record of it must not be read as one of our losses."""

    def focal(logits, batch):
        return logits.sum(-1) ** 2

    recipe = dataclasses.replace(settings_of().make_recipe(), loss=focal)
    go(tmp_path / "run", dataset, recipe=recipe)
    assert records.read_config(tmp_path / "run").recipe["loss"] == "own focal"
    with pytest.raises(
        UserError, match="the recipe has focal, custom code that a file"
    ):
        to_toml(recipe)
    with pytest.raises(UserError, match="loss is 'own focal'; it must be one of"):
        go(tmp_path / "more", dataset, continue_from=str(tmp_path / "run"))


def cells_of(folder, place):
    lists = {"model": ["convbn"], "lr": [0.02], "epochs": [1], "batch_size": [16]}
    lists |= {"val_size": [16], "loss": [place, "focal"]}
    return make_cells(lists, (0,), folder)


@pytest.mark.slow
def test_a_finished_cell_whose_code_has_changed_is_not_done(own, tmp_path, dataset):
    place = own("loss")
    cells = cells_of(tmp_path, place)
    assert [re.sub("-[0-9a-f]{8}$", "", cell.name) for cell in cells] == [
        *("convbn-lossloss", "convbn-lossfocal")
    ]
    for cell in cells:
        cf.run(cell.settings, cell.folder, dataset=dataset)
    for text in (OWN, f"{OWN}# a comment\n"):
        own("loss", text=text)
        for cell in cells_of(tmp_path, place):
            Contents().check(cell, dataset)
    own("loss", 0.5)
    contents, (mine, ours) = Contents(), cells_of(tmp_path, place)
    with pytest.raises(UserError, match="the code of the recipe has changed"):
        contents.check(mine, dataset)
    contents.check(ours, dataset)
    mine.codes = contents.codes_of(mine.settings)
    with pytest.raises(UserError, match="the code of loss is another one"):
        mine.check_trained()


@pytest.mark.slow
def test_a_run_is_continued_only_with_its_code(own, tmp_path, dataset):
    place = own("loss")
    go(tmp_path / "first", dataset, loss=place)
    first = str(tmp_path / "first")
    with pytest.raises(UserError, match="which runs only if you name it: add --loss="):
        Settings.continuing(first, epochs=1)
    settings = Settings.continuing(first, epochs=1, loss=place)
    both = cf.run(settings, tmp_path / "second", dataset=dataset)
    assert both.status == "finished"
    own("loss", 0.5)
    with pytest.raises(UserError, match="the code of loss"):
        cf.run(settings, tmp_path / "third", dataset=dataset)


@pytest.mark.slow
def test_the_commands_take_functions_of_ones_own(own, tmp_path):
    data = archives.tiny_data(tmp_path)
    flags = [f"--{kind}={own(kind)}" for kind in KINDS]
    how = ["--model=convnet", "--lr=0.01", "--epochs=1", "--loss_args={}"]
    folder = f"--workdir={tmp_path / 'run'}"
    done = command("run", *data, *how, *flags, folder, "--class_weights=balanced")
    assert done.returncode == 0, done.stderr
    assert "optimizer     optimizer, evaluated at average" in done.stdout
    assert "loss          loss, class weights balanced" in done.stdout
    assert "flips, augment" in done.stdout
    resumed = command("run", folder, "--resume")
    assert_one_line_error(resumed, 1, "runs only if you name it", *flags)
    assert command("run", folder, "--resume", *flags).returncode == 0
    swept = [*data, *how, flags[0] + ",cross_entropy", f"--workdir={tmp_path / 's'}"]
    done = command("sweep", *swept)
    assert done.returncode == 0, done.stderr
    own("loss", 0.25)
    again = command("sweep", *swept)
    assert again.returncode == 1
    assert "the code of the recipe has changed" in again.stdout + again.stderr
    done = command("report", f"--runs={tmp_path / 's'}")
    assert "convnet loss=loss" in done.stdout
    picture = tmp_path / "seen.png"
    done = command("prepare_data", *data[:3], flags[1], f"--picture={picture}")
    assert done.returncode == 0, done.stderr
    assert picture.exists()


@pytest.mark.slow
def test_a_run_with_a_function_of_a_program_goes_on(tmp_path, dataset):
    """Also if an older version, which knew fewer hyperparameters, began it."""
    recipe = dataclasses.replace(
        settings_of().make_recipe(), loss=lambda logits, batch: (logits**2).sum(-1)
    )
    go(tmp_path / "run", dataset, recipe=recipe, stopped=True)
    config = records.read_config(tmp_path / "run")
    del config.recipe["class_weights"], config.recipe["augmentation"]["cutout"]
    records.write_config(tmp_path / "run", config)
    again = go(tmp_path / "run", dataset, recipe=recipe, resume=True)
    assert again.status == "finished"
    other = dataclasses.replace(recipe, loss=lambda logits, batch: (logits**4).sum(-1))
    go(tmp_path / "more", dataset, recipe=recipe, stopped=True)
    with pytest.raises(UserError, match="the code of the recipe has changed"):
        go(tmp_path / "more", dataset, recipe=other, resume=True)
