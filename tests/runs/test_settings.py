"""The recipe of given settings."""

import dataclasses
import json
import math
import pathlib
import re

import numpy as np
import pytest

from cifar_flax.errors import UserError
from cifar_flax.runs.recorded_settings import SETTINGS, differences
from cifar_flax.runs.setting_values import parse_value
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.cells import make_cells
from cifar_flax.training.named_recipes import LESSON
from cifar_flax.training.phases import Constant, Sgdr


@pytest.mark.parametrize("name", LESSON)
def test_by_default_it_is_the_lessons(name):
    assert Settings(model=name).make_recipe() == LESSON[name]


@pytest.mark.parametrize(
    ("settings", "phases"),
    [
        ({"lr": 0.2, "epochs": 3}, (Constant(0.2, 3),)),
        ({"lr": 0.2, "cycles": 3}, (Sgdr(0.2, 3, 1, 1),)),
        (
            {"lr": 0.2, "cycles": 3, "cycle_len": 2, "cycle_mult": 4},
            (Sgdr(0.2, 3, 2, 4),),
        ),
        ({"phases": 1}, (Constant(3e-2, 2),)),
        # The lesson trains convbn at 0.03 and then 0.1.
        ({"lr": 0.2}, (Constant(0.06, 2), Sgdr(0.2, 4))),
        ({"lr": 0.06, "phases": 1}, (Constant(0.06, 2),)),
    ],
)
def test_flags_replace_the_phases(settings, phases):
    recipe = Settings(model="convbn", **settings).make_recipe()
    for ours, expected in zip(recipe.phases, phases, strict=True):
        assert type(ours) is type(expected)
        assert dataclasses.astuple(ours) == pytest.approx(dataclasses.astuple(expected))
    assert recipe.momentum == 0.9


def test_a_found_rate_stands_for_auto():
    settings = Settings(model="convbn", lr="auto")
    assert settings.make_recipe(0.2) == Settings(model="convbn", lr=0.2).make_recipe()
    assert settings.make_recipe().phases == LESSON["convbn"].phases
    settings = Settings(lr="auto", epochs=3)
    assert settings.make_recipe(0.2).phases == (Constant(0.2, 3),)


def test_flags_replace_the_regularisation():
    given = {
        "batch_size": 8,
        "momentum": 0.0,
        "nesterov": True,
        "weight_decay": 0.1,
        "label_smoothing": 0.2,
    }
    recipe = Settings(model="resnet", **given).make_recipe()
    assert {name: getattr(recipe, name) for name in given} == given
    assert recipe.phases == LESSON["resnet"].phases


def test_only_what_decides_the_numbers_must_be_the_same_on_a_resume():
    recorded = json.loads(json.dumps(Settings(seeds=(0, 1)).record()))
    same = Settings(seeds=(0, 1), data_dir="there", data_archive="a.tar.gz")
    assert differences(same.record(), recorded) == []
    other = Settings(seeds=(0, 2), lr=0.1)
    assert differences(other.record(), recorded) == [
        "--seeds was [0, 1] and is [0, 2]",
        "--lr was None and is 0.1",
    ]


CELLS = ({"model": ["convbn"]}, {"model": ["convbn"], "val_size": [5_000]})


def test_a_val_size_that_is_not_given_is_the_number_it_stands_for():
    given, default = Settings(val_size=5_000), Settings()
    assert differences(default.record(), given.record()) == []
    assert differences(given.record(), default.record()) == []
    own = default.record(has_validation=True)
    assert differences(own, given.record()) == ["--val_size was 5000 and is None"]
    assert Settings(val_size=0).record(has_validation=True)["val_size"] == 0
    # A sweep finds its earlier cells.
    cells = [make_cells(lists, (0,), pathlib.Path()) for lists in CELLS]
    assert cells[0][0].name == cells[1][0].name


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"phases": 0}, "--phases=0"),
        ({"cycles": 3}, "--cycles needs --lr"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0.1, "epochs": 3, "cycles": 1}, "--epochs .* --cycles"),
        ({"lr": 0.1, "cycle_len": 2}, "--cycle_len needs --cycles"),
        ({"lr": -1.0, "epochs": 1}, "-1"),
        ({"lr": math.inf}, "inf"),
        ({"seeds": ()}, "--seeds="),
        ({"seeds": (1, 1)}, "--seeds=1,1"),
        ({"seeds": (0, 2**31)}, "--seeds=2147483648"),
        ({"val_size": -1}, "--val_size=-1"),
        ({"train_size": 0}, "--train_size=0"),
        ({"dataset": "../x"}, "dataset is '../x'"),
        ({"archive_sha256": "0"}, "archive_sha256='0'"),
        ({"bn_epsilon": math.inf}, "--bn_epsilon=inf"),
        ({"bn_momentum": 1.5}, "--bn_momentum=1.5"),
        ({"bn_epsilon": 0.0}, "--bn_epsilon=0.0"),
        ({"padding": -1}, "padding is -1"),
        ({"lr": "fast"}, "--lr='fast': give a number, or auto"),
        ({"lr": True}, "--lr=True: give a number"),
        ({"seeds": 3}, "--seeds=3: give whole numbers"),
        ({"seeds": "01"}, "--seeds='01'"),
        ({"seeds": (1.5,)}, r"--seeds=\(1.5,\)"),
        ({"model": "lenet"}, "--model='lenet': give one of simplenet"),
        ({"model": None}, "--model=None"),
        ({"flip": 1}, "--flip=1: give true or false"),
        ({"padding": "4"}, "--padding='4': give a whole number"),
        ({"lr": 0.1, "epochs": "1"}, "--epochs='1': give a number"),
        ({"optimizer": "adamx"}, "--optimizer='adamx': give one of .*adamw"),
        ({"optimizer": "adamw", "momentum": 0.5}, "--momentum=0.5 is an option of sgd"),
        ({"optimizer": "adamw", "optimizer_args": {"b3": 1}}, "no option b3"),
        ({"optimizer_args": {"b1": 0.9}}, "sgd has no option b1"),
        ({"optimizer_args": 3}, "--optimizer_args=3: give names and values as JSON"),
        (
            {"loss": "focus"},
            "--loss='focus': give one of cross_entropy, focal, FILE.py",
        ),
        ({"loss": np.sum}, "loss is a function; settings take its place, FILE.py:NAME"),
        ({"loss": "focal", "loss_args": {"g": 1}}, "focal has no argument g"),
        ({"average": "mean"}, "--average='mean': give FILE.py:NAME or MODULE:NAME"),
        ({"augment": 3}, "--augment=3: give FILE.py:NAME or MODULE:NAME"),
        ({"class_weights": "even"}, "--class_weights='even': give numbers such as 1,2"),
        ({"class_weights": (1, -1)}, "class_weights is .*; it must be balanced, or a"),
        ({"recipe": "none.toml"}, "cannot read the recipe /.*none.toml"),
        ({"data_dir": ""}, "--data_dir='': give non-empty text"),
        ({"dtype": "int8"}, "--dtype='int8': give one of float32"),
    ],
)
def test_wrong_and_contradictory_settings_are_named(settings, words):
    with pytest.raises(UserError, match=words):
        Settings(**settings)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "0.1", 0.1),
        ("lr", "auto", "auto"),
        ("epochs", "3", 3),
        ("epochs", "0.5", 0.5),
        (
            "optimizer_args",
            '{"b1": 0.9, "nesterov": true}',
            {"b1": 0.9, "nesterov": True},
        ),
        ("flip", "False", False),
        ("nesterov", "true", True),
        ("model", "convbn", "convbn"),
        ("data_dir", "1", "1"),
        ("seeds", "3,-1", (3, -1)),
        ("class_weights", "1,2e-1,0", (1.0, 0.2, 0.0)),
        ("class_weights", "balanced", "balanced"),
        ("loss", "focal", "focal"),
        ("optimizer", "my.optimizers:make", "my.optimizers:make"),
    ],
)
def test_a_text_stands_for_a_value_of_its_setting(name, text, value):
    found = parse_value(SETTINGS[name], text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("lr", "fast", "give a number, or auto"),
        ("epochs", "1.5x", "give a number"),
        ("optimizer", "adamx", "give one of .*adamw"),
        ("class_weights", "1,a", "give numbers such as 1,2,0.5, or balanced"),
        ("optimizer_args", "{", "give names and values as JSON"),
        ("model_args", '{"a":' * 9_000, "give names and values as JSON"),
        ("optimizer_args", '{"b1": [1]}', "give names and values as JSON"),
        ("flip", "maybe", "give true or false"),
        ("dtype", "int8", "give one of float32, bfloat16"),
        ("seeds", "0,a", "give whole numbers"),
    ],
)
def test_a_text_that_stands_for_nothing_is_named(name, text, words):
    with pytest.raises(ValueError, match=words):
        parse_value(SETTINGS[name], text)


def test_numbers_of_numpy_and_ranges_are_taken():
    settings = Settings(lr=np.float32(0.5), epochs=np.int64(3), seeds=range(2))
    assert settings == Settings(lr=0.5, epochs=3, seeds=(0, 1))
    assert settings == Settings(lr=0.5, epochs=3, seeds=np.arange(2))
    assert json.loads(json.dumps(settings.record()))["lr"] == 0.5


def test_flags_give_the_settings_back():
    settings = Settings(lr=0.5, epochs=3, seeds=(4, 2), flip=False, dataset="shapes")
    given = dict(flag[2:].split("=", 1) for flag in settings.as_flags())
    values = {name: parse_value(SETTINGS[name], text) for name, text in given.items()}
    assert Settings(**values) == settings


def test_own_code_is_named_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict.fromkeys(("loss", "optimizer", "average", "augment"), "own.py:f")
    settings = Settings(**names, class_weights=[1, 2], loss_args={"a": 1})
    assert settings.loss == f"{tmp_path}/own.py:f"
    assert settings.own_code() == dict.fromkeys(names, f"{tmp_path}/own.py:f")
    flags = dict(flag[2:].split("=", 1) for flag in settings.as_flags())
    monkeypatch.chdir("/")
    values = {name: parse_value(SETTINGS[name], text) for name, text in flags.items()}
    assert Settings(**values) == settings
    assert json.loads(json.dumps(settings.record())) == settings.record()


def test_epochs_alone_stretch_the_recipe():
    recipe = Settings(model="convbn", epochs=3).make_recipe()
    assert recipe.epochs == 3
    assert recipe.phases == (Constant(0.03, 1), Sgdr(0.1, 4, 0.5))
    constant = Settings(model="convbn", epochs=3, lr=0.1).make_recipe()
    assert constant.phases == (Constant(0.1, 3),)


def test_an_optimizer_replaces_that_of_the_recipe_with_its_options(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'optimizer = "adamw"\noptions = {b1 = 0.8, b2 = 0.9}\nweight_decay = 0.1\n'
        '[[phases]]\nkind = "onecycle"\nlearning_rate = 0.01\nepochs = 4\n'
    )
    file = Settings(recipe=str(path)).make_recipe()
    assert (file.optimizer, file.options) == ("adamw", {"b1": 0.8, "b2": 0.9})
    part = Settings(recipe=str(path), optimizer_args={"b1": 0.7}).make_recipe()
    assert part.options == {"b1": 0.7, "b2": 0.9}
    other = Settings(recipe=str(path), optimizer="lion", epochs=2).make_recipe()
    assert (other.optimizer, other.options) == ("lion", {})
    assert (other.weight_decay, other.epochs) == (0.1, 2)
    back = Settings(recipe=str(path), optimizer="sgd", momentum=0.5).make_recipe()
    assert back.optimizer_in_words == "SGD, momentum 0.5, weight decay 0.1"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "convbn", "recipe": "airbench94"}, "is for airbench; for convbn"),
        ({"model": "airbench", "recipe": "lesson"}, "for airbench give modern, airb"),
        (
            {"model": "a.py:N", "recipe": "airbench94"},
            "airbench; .* give modern or",
        ),
    ],
)
def test_a_recipe_that_is_not_for_the_model_is_refused(settings, words):
    with pytest.raises(UserError, match=words):
        Settings(**settings)


@pytest.mark.parametrize("model", ["convbn", "simplenet", "airbench", "nets.py:Net"])
def test_what_is_not_given_is_recorded_as_what_it_stands_for(model):
    settings = Settings(model=model, lr=0.1, epochs=1)
    record = settings.record()
    ours = model == "airbench"
    assert record["recipe"] == ("airbench94" if ours else "lesson")
    assert record["bn_momentum"] == (0.6 if ours else 0.9)
    assert record["bn_epsilon"] == (1e-12 if ours else 1e-5)
    assert record["tta"] == ("multicrop" if ours else "none")


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("convbn", {}, (0.9, 1e-5)),
        ("airbench", {}, (0.6, 1e-12)),
        ("airbench", {"bn_momentum": 0.9}, (0.9, 1e-12)),
        ("airbench", {"bn_momentum": 0.0, "bn_epsilon": 1e-3}, (0.0, 1e-3)),
    ],
)
def test_norms_are_the_models_own_until_something_else_is_given(model, given, expected):
    norm = Settings(model=model, **given).make_model(10).norm()
    assert (norm.momentum, norm.epsilon) == expected
    assert norm.use_scale == (model != "airbench")


def test_the_original_recipe_evaluates_with_the_last_batch():
    settings = Settings(model="convbn", recipe="original")
    assert settings.make_model(10).norm().momentum == 0
    assert settings.record()["bn_momentum"] == 0
    given = dataclasses.replace(settings, bn_momentum=0.5)
    assert given.make_model(10).norm().momentum == 0.5
    assert given.record()["bn_momentum"] == 0.5
    Settings(model="convnet", recipe="original").make_model(10)  # without batch norm
    with pytest.raises(
        UserError, match=r"--recipe=original is for simplenet, .*modern"
    ):
        Settings(model="airbench", recipe="original")


def test_the_reference_lists_every_setting_with_its_type():
    listed = re.findall(r"^      (\w+) \((.+?)\): \S", Settings.__doc__, re.M)
    assert [name for name, _ in listed] == list(SETTINGS)
    assert dict(listed)["seeds"] == "tuple[int, ...]"
