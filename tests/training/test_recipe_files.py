"""Recipes in files: reading restores them exactly, and mistakes are named."""

import dataclasses
import tomllib

import pytest

from cifar_flax.data.augment import Augmentation
from cifar_flax.errors import UserError
from cifar_flax.training.named_recipes import LESSON, ORIGINAL
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant, Cosine, OneCycle, Sgdr, Trapezoid
from cifar_flax.training.recipe_files import (
    completed,
    from_plain,
    read_recipe,
    to_plain,
    to_toml,
)
from cifar_flax.training.recipes import Recipe

EVERYTHING = Recipe(
    (
        Constant(0.1, 1.5),
        Sgdr(1 / 3, 2, 0.5, 3),
        Cosine(0.1, 2, warmup=0.5, final=0.01),
        OneCycle(0.3, 4, 0.2, 0.05),
        Trapezoid(0.2, 3, 0.2, 0.3),
    ),
    batch_size=100,
    optimizer="adamw",
    options={"b1": 0.95, "nesterov": True},
    weight_decay=0.05,
    decay="kernels",
    groups=(Group("^head", rate=0.1), Group("stem", decay=False, frozen=True)),
    clip_norm=1.0,
    accumulate=3,
    ema=0.99,
    label_smoothing=0.1,
    augmentation=Augmentation(2, "reflect", False),
)


@pytest.mark.parametrize("recipe", [EVERYTHING, *LESSON.values(), *ORIGINAL.values()])
def test_a_file_is_read_as_the_recipe_that_was_written(tmp_path, recipe):
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(recipe))
    assert read_recipe(path) == recipe
    assert from_plain(to_plain(recipe), "it") == recipe
    assert tomllib.loads(path.read_text())["phases"]


def test_a_recorded_recipe_of_an_older_version_is_completed():
    plain = to_plain(LESSON["convbn"])
    older = {n: v for n, v in plain.items() if n != "restart_momentum"}
    older["phases"] = [
        {n: v for n, v in phase.items() if n != "slow_start"}
        for phase in plain["phases"]
    ]
    older["augmentation"] = {
        n: v for n, v in plain["augmentation"].items() if n != "last_offset"
    }
    assert older != plain
    assert completed(older) == plain
    custom = {**plain, "optimizer": "of Mine"}
    assert completed(custom) == custom


def test_what_a_file_leaves_out_has_its_default(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[phases]]\nkind = "constant"\nlearning_rate = 1\nepochs = 2\n')
    assert read_recipe(path) == Recipe((Constant(1, 2),))


PHASE = '[[phases]]\nkind = "constant"\nlearning_rate = 0.1\nepochs = 1\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "phases is None; it must be one or more tables"),
        ("phases = 3", "phases is 3; it must be one or more tables"),
        ("phases = [1]", "phases is 1; it must be a table"),
        ("phases = []", "phases is \\(\\); it must be a tuple of one or more"),
        ("= 1", "is not a TOML file"),
        ("a\x00", "is not a TOML file"),
        ("a = " + "[" * 9_000 + "]" * 9_000, "is not a TOML file: maximum recursion"),
        ("a = " + "{a=" * 9_000, "is not a TOML file: maximum recursion"),
        (f"a{'.a' * 9_000} = 1", "phases is None"),
        (PHASE + "extra = 1", "a phase of kind constant has no 'extra'; it may have"),
        ("extra = 1\n" + PHASE, "a recipe has no 'extra'; it may have phases, batch"),
        (PHASE.replace("constant", "wavy"), "'wavy'; it must be one of constant"),
        (PHASE.replace("kind", "sort"), "kind of a phase is None"),
        (PHASE.replace("epochs = 1", ""), "a phase of kind constant needs 'epochs'"),
        (PHASE.replace("0.1", '"0.1"'), "the rate is '0.1'"),
        (PHASE.replace("0.1", "nan"), "the rate is nan"),
        ('optimizer = "adamx"\n' + PHASE, "optimizer is 'adamx'"),
        ("batch_size = 0\n" + PHASE, "batch_size is 0"),
        ("options = 1\n" + PHASE, "options is 1; it must be a dictionary"),
        (PHASE + "[augmentation]\npadding = 99", "padding is 99"),
        (PHASE + "[augmentation]\nzoom = 2", "augmentation has no 'zoom'"),
        ("augmentation = 3\n" + PHASE, "augmentation is 3; it must be a table"),
        (PHASE + "[[groups]]\nrate = 2", "a group needs 'pattern'"),
        ("groups = 1\n" + PHASE, "groups is 1; it must be one or more tables"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path, text, words):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the recipe .*none.toml"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(UserError, match="cannot read the recipe"):
        read_recipe(tmp_path)
    (tmp_path / "large.toml").write_bytes(b"#" * 2**21)
    with pytest.raises(UserError, match="more than 65536 bytes"):
        read_recipe(tmp_path / "large.toml")


@dataclasses.dataclass(frozen=True)
class Mine:
    """A custom phase."""

    epochs: float = 2
    wave: object = object

    def schedule(self, steps_per_epoch):
        return lambda step: 0.1


def test_what_a_program_made_is_recorded_and_no_file():
    recipe = Recipe((Mine(),))
    (phase,) = to_plain(recipe)["phases"]
    assert phase["kind"] == "mine"
    assert phase["epochs"] == 2
    with pytest.raises(UserError, match="the recipe has mine, custom code"):
        to_toml(recipe)
