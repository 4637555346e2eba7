"""Every field of every definition reaches what is trained, recorded and compared."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data.augment import Augmentation, pad_images
from cifar_flax.definitions import hyperparameters
from cifar_flax.errors import UserError
from cifar_flax.layers import BatchNorm
from cifar_flax.runs.recipe_choice import flags_of
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.setting_values import parse_value
from cifar_flax.runs.settings import Settings
from cifar_flax.training.evaluation import logits_of_pixels
from cifar_flax.training.lr_range import RangeSettings, range_curves
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import PHASES, Constant, Sgdr
from cifar_flax.training.recipe_files import from_plain, to_plain, to_toml, tomllib
from cifar_flax.training.recipe_identity import identify
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.state import init_state
from cifar_flax.training.steps import TrainStep
from cifar_flax.training.trainer import Trainer
from tests.conftest import make_splits

ROOT = pathlib.Path(__file__).parents[1]
SPLITS = make_splits()


class Tiny(nn.Module):
    """A network with a norm and two kernels, which is traced quickly."""

    @nn.compact
    def __call__(self, x, train):
        x = BatchNorm(name="norm")(nn.Conv(2, (4, 4), 4, name="conv")(x), train=train)
        return nn.Dense(4, name="head")(x.mean((1, 2)))


MODEL = Tiny()
VARIABLES = jax.eval_shape(
    lambda: MODEL.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
)

# In these recipes every field of a definition has an effect: SGD for its options, a
# moving average for Lookahead, a frozen group for batch norms, two phases for the
# momentum.
PAIR = (Sgdr(0.1, 2, 2, 2), Constant(0.1, 1))
BASE = Recipe(
    PAIR,
    batch_size=8,
    ema=0.5,
    lookahead=5,
    weight_decay=0.1,
    groups=(Group("norm", frozen=True), Group("head", rate=0.5)),
)
FULL = dataclasses.replace(
    BASE, augmentation=Augmentation(cutout=2, brightness=0.1, contrast=0.1, mixup=0.5)
)

# Values of fields that a rule below would not find.
VALUES = {
    ("Recipe", "phases"): (PAIR[0],),
    ("Recipe", "optimizer"): "adagrad",
    ("Recipe", "options"): {"accumulator_dtype": "bfloat16"},
    ("Recipe", "groups"): (Group("head"),),
    ("Recipe", "ema"): 0.25,
    ("Recipe", "average"): "tests.own_functions:mean",
    ("Recipe", "loss"): "tests.own_functions:hinge",
    ("Recipe", "loss_args"): {"gamma": 3},
    ("Recipe", "class_weights"): (1.0, 2.0, 3.0, 4.0),
    ("Augmentation", "augment"): "tests.own_functions:darker",
    ("Recipe", "augmentation"): Augmentation(flip=False),
    ("Group", "pattern"): "bias",
    ("Cosine", "warmup"): 0.5,
}


def other_value(definition, one, now):
    """Returns another valid value of a hyperparameter."""
    if (definition.__name__, one.name) in VALUES:
        return VALUES[definition.__name__, one.name]
    kinds = getattr(one.kind, "__args__", ())
    numbers = [n for n in (3, 2, 1, 0, 0.25, 0.125) if n != now]
    for value in [*kinds, *([not now] if one.kind is bool else []), *numbers, "head"]:
        try:
            if one.check(value) != now and value is not type(None):
                return one.check(value)
        except UserError:
            continue
    raise AssertionError(f"give a value of {definition.__name__}.{one.name}")


@functools.cache
def trained(recipe):
    """Returns the programs of all steps, of the rates and of the evaluation."""
    step = TrainStep(MODEL, recipe, SPLITS.spec, "xla")
    stages = tuple(recipe.stages(step.steps_per_epoch))
    rates = jax.vmap(recipe.schedule(step.steps_per_epoch))(jnp.arange(64))
    found = [np.asarray(rates).tobytes()]
    for stage in stages:
        one = dataclasses.replace(
            step, stages=stages, freeze=stage.freeze, image_size=stage.image_size
        )
        traced, variables = program_of(one)
        found += [
            str(traced),
            *(np.asarray(const).tobytes() for const in traced.consts),
        ]
    evaluated = jax.make_jaxpr(
        lambda v: logits_of_pixels(
            *(MODEL, v, SPLITS.test.images[:2], SPLITS.spec, recipe.tta)
        )
    )(variables)
    return [*found, str(evaluated)]


def program_of(step):
    """Returns a step as JAX traces it, and the shapes of its variables."""
    recipe = step.recipe
    images = jnp.zeros((2, 32, 32, 3))
    state = jax.eval_shape(
        lambda: init_state(
            *(jax.random.key(0), MODEL, step.make_tx(), images, recipe.has_average)
        )
    )
    padded = pad_images(SPLITS.train.images, recipe.augmentation)
    data = (jnp.asarray(padded), jnp.asarray(SPLITS.train.labels))
    order = jnp.arange(step.steps_per_epoch * recipe.batch_size)
    carry = (state, jnp.zeros(step.steps_per_epoch))
    traced = jax.make_jaxpr(lambda carry: step(carry, order, data))(carry)
    return traced, {"params": state.params, **state.collections}


def recipe_with(definition, value):
    """Returns a recipe that has a definition in it."""
    if definition is Recipe:
        return value
    if definition is Augmentation:
        return dataclasses.replace(BASE, augmentation=value)
    if definition is Group:
        return dataclasses.replace(BASE, groups=(value, Group("conv")))
    return dataclasses.replace(BASE, phases=(value, Constant(0.05, 1)))


def instances():
    yield Recipe, BASE
    yield Augmentation, FULL.augmentation
    yield Group, Group("head", rate=0.5)
    for kind in PHASES.values():
        first = {"epochs": 2} if "epochs" in hyperparameters(kind) else {"cycles": 2}
        yield kind, kind(learning_rate=0.1, **first)


CASES = [
    (kind, value, one)
    for kind, value in instances()
    for one in hyperparameters(kind).values()
]


@pytest.mark.parametrize(
    ("definition", "instance", "one"),
    CASES,
    ids=[f"{kind.__name__}.{one.name}" for kind, _, one in CASES],
)
def test_a_field_reaches_all(definition, instance, one):
    now = getattr(instance, one.name)
    fields = {one.name: other_value(definition, one, now)}
    if one.name == "alternate":
        fields["flip"] = True
    if one.name == "loss_args":
        instance = dataclasses.replace(instance, loss="focal")
    if one.name == "average":  # instead of ours
        instance = dataclasses.replace(instance, ema=0, lookahead=0)
    before = recipe_with(definition, instance)
    after = recipe_with(definition, dataclasses.replace(instance, **fields))
    assert trained(before) != trained(after)
    plain = json.loads(json.dumps(to_plain(after)))
    assert plain != json.loads(json.dumps(to_plain(before)))
    parts = 12, VARIABLES, SPLITS.spec
    assert identify(before, *parts) != identify(after, *parts)
    # Written to a file or to a record, it comes back.
    assert from_plain(plain, "the record") == after
    assert from_plain(tomllib.loads(to_toml(after)), "the file") == after


@pytest.mark.parametrize("definition", [Augmentation, Recipe])
def test_a_flag_sets_its_field(definition):
    for name, one in flags_of(definition).items():
        recipe = Settings().make_recipe()
        part = recipe if definition is Recipe else recipe.augmentation
        value = other_value(definition, one, getattr(part, one.name))
        given = {"ema": 0.9} if name == "lookahead" else {}
        given |= {"loss": "focal"} if name == "loss_args" else {}
        settings = Settings(**given, **{name: value})
        made = settings.make_recipe()
        part = made if definition is Recipe else made.augmentation
        assert getattr(part, one.name) == value, name
        words = dict(flag[2:].split("=", 1) for flag in settings.as_flags())
        assert parse_value(SETTINGS[name], words[name]) == value
        recorded = [*value] if isinstance(value, tuple) else value
        assert settings.record()[name] == recorded
        assert one.about.help.removesuffix(".") in SETTINGS[name].about.help


@pytest.mark.slow
@pytest.mark.parametrize("name", hyperparameters(RangeSettings))
def test_a_field_of_the_range_test_changes_its_result(name):
    trainer = Trainer(MODEL, BASE, SPLITS.spec)
    before = RangeSettings(1e-2, 1e4, num_steps=40, smoothing=0.5, stop_factor=3)
    values = {"start_lr": 1e-3, "end_lr": 1e3, "num_steps": 30, "linear": True}
    values |= {"smoothing": 0.1, "stop_factor": 1e9}
    after = dataclasses.replace(before, **{name: values[name]})
    first, second = (
        range_curves(trainer, SPLITS.train, one) for one in (before, after)
    )
    same = first.losses.shape == second.losses.shape
    assert not same or (first.smoothed != second.smoothed).any()


def test_every_definition_is_described():
    for definition, _ in instances():
        for name, one in hyperparameters(definition).items():
            assert f"{name}: {one.about.help}" in definition.__doc__ or any(
                f"{name}: {one.about.help}" in (base.__doc__ or "")
                for base in definition.__mro__
            )


@pytest.mark.slow
def test_the_augmentation_of_the_pages_is_two_pieces(tmp_path):
    """The pieces of docs/design.md, in a copy, act everywhere; one alone is noticed."""
    for name in ("cifar_flax", "experiments", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    page = (ROOT / "docs" / "design.md").read_text()
    pieces = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    field, lines = (textwrap.indent(textwrap.dedent(piece), "    ") for piece in pieces)
    path = tmp_path / "cifar_flax" / "data" / "augment.py"
    text = path.read_text()
    at = "    last_offset: Annotated["
    path.write_text(text.replace(at, f"{field}{at}"))

    def walk():
        return subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-n0", "-k", "hue or a_flag"),
                "tests/test_definitions.py",
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )

    alone = walk()
    assert "1 failed, 2 passed" in alone.stdout, alone.stdout
    at = "    if augmentation.cutout:"
    path.write_text(path.read_text().replace(at, f"{lines}{at}"))
    both = walk()
    assert "3 passed" in both.stdout, both.stdout
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", "--hue=0.3", "--print_recipe"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert "hue = 0.3" in done.stdout, done.stderr
