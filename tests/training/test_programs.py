"""Compiled programs are shared by equal trainers, and by no others."""

import dataclasses
import functools
import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data.augment import NO_AUGMENTATION
from cifar_flax.models import SimpleNet
from cifar_flax.models.streams import Stream
from cifar_flax.training import programs
from cifar_flax.training.evaluation import Predictor
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.steps import TrainStep
from cifar_flax.training.trainer import Trainer

FACTOR = 1.0


def scaled(x):
    return FACTOR * x


class Net(nn.Module):
    """A dense layer, whose code reads a global constant through a function."""

    num_classes: int = 4
    dropout: float = 0.0
    act: Any = nn.relu
    extra: Any = None

    @nn.compact
    def __call__(self, images, *, train):
        x = self.act(nn.Dense(4)(images.mean((1, 2))))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(scaled(x))


def net_of_a_cell(factor, **fields):
    """Returns a model of a class that is defined anew, as by a cell of a notebook."""

    def call(self, images, *, train):
        return factor * Net.__call__(self, images, train=train)

    made = type("Net", (Net,), {"__module__": Net.__module__, "__call__": call})
    return made(**fields)


PLAIN = {"batch_size": 16, "augmentation": NO_AUGMENTATION}
RECIPE = Recipe((Constant(0.05, 1),), **PLAIN)


def make_trainer(splits, model=None, recipe=RECIPE, seeds=(0,), **settings):
    return Trainer(model or Net(), recipe, splits.spec, seeds, **settings)


@pytest.fixture
def traces(monkeypatch):
    """Counts how often a training step is traced."""
    count, call = [], TrainStep.__call__

    def counted(self, *args, **kwargs):
        count.append(self)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(TrainStep, "__call__", counted)
    return count


def train(trainer, splits, **how):
    """Trains to the end; returns the losses of all steps."""
    state, data = trainer.init(splits.train), trainer.put(splits.train)
    losses = [progress.losses for progress in trainer.chunks(state, data, **how)]
    return np.concatenate(losses, axis=1)


def test_equal_trainers_share_a_program(splits, traces):
    """Also with another seed, equal functions, and options in a dictionary."""
    recipe = dataclasses.replace(RECIPE, optimizer="adamw", options={"b1": 0.8})
    first = make_trainer(splits, Net(extra=functools.partial(nn.relu)), recipe)
    losses = train(first, splits)
    assert len(traces) > 0
    assert first.compile_seconds > 0
    traces.clear()
    recipe = Recipe(
        (Constant(0.05, 1.0),), optimizer="adamw", options={"b1": 0.8}, **PLAIN
    )
    second = make_trainer(splits, Net(extra=functools.partial(nn.relu)), recipe)
    np.testing.assert_array_equal(train(second, splits), losses)
    assert traces == []
    assert second.compile_seconds < 0.25 * first.compile_seconds
    other = train(make_trainer(splits, second.model, recipe, seeds=(3,)), splits)
    assert traces == []
    assert (other != losses).all()
    assert second.train_step == first.train_step
    assert hash(second.train_step) == hash(first.train_step)


def programs_of(trainer):
    """Returns the programs of a trainer, not yet compiled."""
    place, backend = trainer.placement, jax.default_backend()
    step = trainer.train_step
    return programs.training(step, place, backend), programs.initial(step, backend)


def assert_none_shared(one, other):
    for program, another in zip(programs_of(one), programs_of(other), strict=True):
        assert program is not another


@pytest.mark.parametrize(
    "model",
    [Net(num_classes=5), Net(act=nn.tanh), Net(dropout=0.5), net_of_a_cell(2.0)],
    ids=["classes", "function", "number", "class"],
)
def test_a_trainer_of_another_model_shares_none(splits, model):
    trainer = make_trainer(splits)
    assert programs_of(make_trainer(splits)) == programs_of(trainer)
    spec = dataclasses.replace(splits.spec, num_classes=model.num_classes)
    other = make_trainer(types.SimpleNamespace(spec=spec), model)
    assert_none_shared(other, trainer)


CHANGES = {
    "phases": (Constant(0.06, 1),),
    "batch_size": 12,
    "options": {"accumulator_dtype": "float32"},
    "momentum": 0.8,
    "weight_decay": 1e-3,
    "groups": (Group("kernel", rate=0.5),),
    "label_smoothing": 0.1,
    "ema": 0.5,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_trainer_of_another_recipe_shares_none(splits, name):
    recipe = dataclasses.replace(RECIPE, **{name: CHANGES[name]})
    assert_none_shared(make_trainer(splits, recipe=recipe), make_trainer(splits))


@pytest.mark.slow
def test_what_is_not_shared_is_traced_anew(splits, traces):
    train(make_trainer(splits), splits)
    traces.clear()
    train(make_trainer(splits, Net(act=nn.tanh)), splits)
    assert len(traces) > 0


def test_a_changed_constant_of_the_users_code_makes_a_new_program(splits, monkeypatch):
    """A cell of a notebook may change what a model of an older cell reads."""
    losses = train(make_trainer(splits), splits)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    changed = train(make_trainer(splits), splits)
    assert (changed[:, 1:] != losses[:, 1:]).all()
    monkeypatch.setitem(globals(), "scaled", lambda x: 3.0 * x)
    again = train(make_trainer(splits), splits)
    assert (again[:, 1:] != changed[:, 1:]).all()


class Odd(Recipe):
    """Has more than its fields."""

    def make_optimizer(self, schedule):
        return super().make_optimizer(lambda step: self.factor * schedule(step))


def odd(factor):
    recipe = Odd(RECIPE.phases, **PLAIN)
    object.__setattr__(recipe, "factor", factor)
    return recipe


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        (lambda: Net(extra=np.ones(3)), RECIPE),
        (lambda: Net(extra=types.SimpleNamespace(width=3)), RECIPE),
        (lambda: net_of_a_cell(3.0), RECIPE),
        (Net, odd(0.5)),
    ],
    ids=["array", "object", "class", "recipe"],
)
def test_what_computes_the_same_shares_a_program(splits, traces, model, recipe):
    """It does not matter of what it is made."""
    losses = train(make_trainer(splits, model(), recipe), splits)
    traces.clear()
    again = odd(0.5) if isinstance(recipe, Odd) else recipe
    np.testing.assert_array_equal(
        train(make_trainer(splits, model(), again), splits), losses
    )
    assert traces == []


def test_custom_code_of_a_recipe_is_compared(splits):
    one, other = (make_trainer(splits, recipe=odd(factor)) for factor in (0.5, 0.25))
    assert_none_shared(one, other)


def test_what_jax_does_not_see_is_not_shared(splits, traces):
    def called(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        seen = jax.pure_callback(lambda x: x, shape, jax.lax.stop_gradient(x))
        return nn.relu(x + 0 * seen)

    first = make_trainer(splits, Net(act=called))
    losses = train(first, splits)
    traces.clear()
    np.testing.assert_array_equal(train(first, splits), losses)
    assert traces == []
    train(make_trainer(splits, Net(act=called)), splits)
    assert len(traces) > 0


def test_all_rates_share_a_program_and_the_factor_is_one_of_the_rate(splits, traces):
    trainer = make_trainer(splits, recipe=Recipe((Constant(1.0, 1),), **PLAIN))
    train(trainer, splits, rate=0.5)
    traces.clear()
    found = train(trainer, splits, rate=0.05)
    assert traces == []
    expected = train(make_trainer(splits), splits)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    shorter = train(trainer, splits, rate=0.05, stop=4)
    np.testing.assert_array_equal(shorter, found[:, :4])


def test_a_setting_of_jax_makes_another_program(splits, traces):
    """The precision of products is a setting that this library leaves to the user."""
    train(make_trainer(splits), splits)
    traces.clear()
    with jax.default_matmul_precision("float32"):
        train(make_trainer(splits), splits)
    assert len(traces) > 0


@pytest.mark.slow
def test_a_process_keeps_a_few_programs(splits):
    for rate in np.geomspace(1e-3, 1e-2, programs.MOST_PROGRAMS + 3):
        recipe = Recipe((Constant(float(rate), 1),), **PLAIN)
        programs.initial(make_trainer(splits, recipe=recipe).train_step, "cpu")
    assert programs.initial.cache_info().currsize <= programs.MOST_PROGRAMS


def test_predictors_share_a_program(splits, monkeypatch):
    calls, apply = [], nn.Module.apply

    def counted(self, *args, **kwargs):
        calls.append(self)
        return apply(self, *args, **kwargs)

    state = make_trainer(splits, SimpleNet(4)).init()
    monkeypatch.setattr(nn.Module, "apply", counted)
    logits = []
    for model in (SimpleNet(4), SimpleNet(4)):
        predictor = Predictor(model, splits.spec, tta="flip", computes="the same")
        logits.append(predictor(state.variables, splits.test.images))
    assert len(calls) == 2  # an image and its mirror image, once
    np.testing.assert_array_equal(*logits)


def test_streams_are_those_of_a_split():
    """The bits of all results depend on this."""
    key = jax.random.key(5)
    first = (Stream.INIT, Stream.SHUFFLE, Stream.AUGMENT)
    second = (Stream.REPLICA, Stream.STEPS, Stream.MODEL)
    for number, streams in enumerate((first, second)):
        expected = jax.random.key_data(jax.random.split(key)[number])
        for stream in streams:
            found = jax.random.key_data(stream.of(key))
            np.testing.assert_array_equal(found, expected)
    assert len({stream.name for stream in Stream}) == len(Stream) == 12
    assert jnp.array_equal(
        jax.random.key_data(Stream.MIX.of(key)),
        jax.random.key_data(jax.random.fold_in(key, 2)),
    )
