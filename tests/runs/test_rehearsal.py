"""What a run could not read again is refused before its first step."""

import dataclasses
import enum
import json
import math
import threading

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_flax import records
from cifar_flax.data import make_dataset
from cifar_flax.errors import UserError
from cifar_flax.json_files import check_survives
from cifar_flax.runs import journal, rehearsal
from cifar_flax.runs.folder import recipe_differences
from cifar_flax.runs.range_tests import range_test
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from cifar_flax.training.lr_range import RangeSettings
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipe_files import to_plain
from cifar_flax.training.recipes import Recipe
from tests.conftest import make_split
from tests.runs.test_session import TinyNet, make_tiny
from tests.test_records import make_config

SETTINGS = Settings(seeds=(0,), val_size=24)
RECIPE = Recipe((Constant(0.1, 1),), batch_size=32)


def go(folder, recipe=RECIPE, settings=SETTINGS, **changes):
    given = {"model": TinyNet(), "dataset": make_tiny(), **changes}
    return run(settings, folder, recipe=recipe, **given)


class Color(enum.Enum):
    RED = 1


class Plain:
    """A phase that is neither a dataclass nor has words of its own."""

    epochs = 1

    def __init__(self, rate=lambda step: 0.1):
        self.rate = rate

    def schedule(self, steps_per_epoch):
        return self.rate


@dataclasses.dataclass
class Mine(Plain):
    learning_rate: object = 0.1
    extra: object = None
    epochs: object = 1

    def __post_init__(self):
        super().__init__()


@dataclasses.dataclass(frozen=True)
class WithExtra(Recipe):
    extra: object = None


LOOP: list = []
LOOP.append(LOOP)
VALUES = [
    *((1, 2), [1, (2.5, None)], {"a": {"b": [1]}}, {1: 2}, {"x", "y", "z"}, LOOP),
    *(
        math.nan,
        math.inf,
        -1.0,
        2**80,
        1 + 2j,
        True,
        None,
        np.float32(0.1),
        np.bool_(1),
    ),
    *(np.arange(3), jnp.ones(2), b"x", "\udc80", "a\nb", "[ 1, 2 ]", len, Color.RED),
    *(range(3), object(), Plain(), threading.Lock(), lambda step: step),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_any_field_of_custom_phases_and_recipes_survives(value):
    """Its record is read as it was, and is equal in another process."""
    phases = (Mine(extra=value), Mine(value), Plain())
    recipe = WithExtra(phases, extra=value)
    config = make_config(recipe=to_plain(recipe))
    config.settings["recipe"] = str(recipe)
    check_survives(config, "a record")
    assert " at 0x" not in json.dumps([config.recipe, str(recipe)])
    assert recipe_differences(to_plain(dataclasses.replace(recipe)), config) == []


def test_a_phase_of_a_users_class_is_not_taken_for_one_of_ours():
    own = dataclasses.make_dataclass("Cosine", [("final", int, 1)], bases=(Mine,))
    assert to_plain(Recipe((own(),)))["phases"][0]["kind"] == "own cosine"


def test_a_record_that_is_read_otherwise_is_named():
    for changes, words in [
        ({"dataset": {"std": [math.nan] * 3}}, r"dataset.std\[0\] is None"),
        ({"settings": {"odd": [1, {"x": math.nan}]}}, r"settings.odd.1.x is nan"),
        ({"settings": {"odd": {"x": len}}}, r"settings.odd.x is <built-in function"),
        ({"dataset": {"source": "\udc80"}}, r"dataset.source is '\\udc80', which"),
    ]:
        config = make_config()
        for name, fields in changes.items():
            part = getattr(config, name)
            for field, value in fields.items():
                if isinstance(part, dict):
                    part[field] = value
                else:
                    setattr(part, field, value)
        with pytest.raises(UserError, match=words):
            check_survives(config, "config.json")


def test_texts_are_not_changed_where_they_look_like_lists():
    config = make_config(python="[ 1,   2 ]")
    check_survives(config, "config.json")


def test_large_images_long_recipes_and_nested_arguments_are_read(tmp_path):
    config = make_config()
    config.dataset.image_shape = (5_000, 70_000, 3)
    config.settings["model_args"] = {"blocks": [{"width": [1, [2]]}]}
    records.write_config(tmp_path, config)
    assert records.read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (lambda step: -0.1, "the learning rate of step 0 is -0.1"),
        (lambda step: jnp.where(step == 2, jnp.nan, 0.1), "of step 2 is nan"),
        (lambda step: jnp.float32(jnp.inf), "of step 0 is inf"),
        (lambda step: jnp.zeros(2), "gives no rate for each step"),
        (lambda step: 1 / 0, "gives no rate for each step: division by zero"),
        (lambda step: "x", "gives no rate for each step"),
    ],
)
def test_rates_that_are_not_numbers_are_refused(tmp_path, rate, words):
    with pytest.raises(UserError, match=words):
        go(tmp_path / "run", Recipe((Plain(rate),), batch_size=32))
    assert not (tmp_path / "run").exists()


class Odd(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, images):
        """Applies a dense layer, beside an array that a checkpoint cannot hold."""
        if self.kind == "params":
            self.param("none", lambda key: jnp.zeros((0, 3)))
        elif self.kind == "state":
            self.variable("cache", "none", lambda: jnp.zeros((3, 0)))
        elif self.kind == "dots":
            self.param("Dense_0.bias", lambda key: jnp.zeros(4))
        return nn.Dense(4)(images.mean((1, 2)))


class NothingInside(Recipe):
    """An optimizer whose state has an array without elements."""

    def make_optimizer(self, schedule):
        tx = optax.sgd(schedule)

        def update(grads, state, params=None):
            updates, inner = tx.update(grads, state[0], params)
            return updates, (inner, state[1])

        return optax.GradientTransformation(
            lambda params: (tx.init(params), jnp.zeros(0)), update
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": Odd("params")}, r"params\['none'\].* has no elements"),
        ({"model": Odd("state")}, r"cache'\]\['none'\].* has no elements"),
        pytest.param(
            {"model": Odd("dots")},
            r"another array; give it a name without dots",
            marks=pytest.mark.slow,
        ),
        ({"recipe": NothingInside(RECIPE.phases, 32)}, r"opt_state\[1\].* no elements"),
        ({"model": type("My Net", (TinyNet,), {})()}, "the model is called 'My Net'"),
        ({"model": type("a:b", (TinyNet,), {})()}, "the model is called 'a:b'"),
        ({"model": type("", (TinyNet,), {})()}, "the model is called ''"),
    ],
)
def test_what_a_checkpoint_or_result_cannot_hold_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        go(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_class_names_that_are_not_unicode_are_refused():
    split = make_split(0, 40)
    arrays = (split.images, split.labels) * 2
    with pytest.raises(UserError, match=r"a class is named 'd\\udce9'; give"):
        make_dataset("tiny", *arrays, ("a", "b", "c", "d\udce9"), source="a test")


@pytest.mark.slow
def test_records_that_would_be_too_large_are_refused(tmp_path, monkeypatch):
    long = Recipe((Constant(0.1, 2_000_000),), batch_size=32)
    with pytest.raises(UserError, match=r"metrics.jsonl would take .*2000000 epochs"):
        go(tmp_path / "run", long)
    monkeypatch.setattr(rehearsal, "MAX_ARRAYS", 100)
    with pytest.raises(UserError, match=r"predictions.npz would take .*25 test images"):
        go(tmp_path / "run")
    with pytest.raises(UserError, match=r"lr_find.json would take .*--num_steps"):
        range_test(
            SETTINGS,
            tmp_path / "run",
            model=TinyNet(),
            dataset=make_tiny(),
            recipe=RECIPE,
            range_settings=RangeSettings(num_steps=2_000_000),
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_of_large_images_fewer_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "WORST_BYTES", 3 * 32 * 32 * 3)
    go(tmp_path / "run")
    assert len(records.read_predictions(tmp_path / "run")["images"]) == 3


@pytest.mark.slow
def test_a_run_with_a_plain_phase_is_resumed(tmp_path):
    """Its class has no words of its own, and its default ones hold an address."""
    for resume in (False, True):
        recipe = Recipe((Plain(), Mine(extra=Plain())), batch_size=32)
        result = go(tmp_path / "run", recipe, resume=resume)
        assert result.status == "finished"


@pytest.mark.parametrize(
    "value", [math.nan, len, {1, 2}, b"x", {1: 2}, "\udc80", [math.inf]]
)
def test_arguments_that_json_cannot_hold_are_refused(value):
    with pytest.raises(UserError, match=r"--model_args=.*: give names and values as"):
        Settings(model="mine.py:Net", recipe="modern", model_args={"x": value})


def test_arguments_are_those_that_a_record_gives_back():
    args = {"kernel": (3, np.float32(0.5)), "blocks": ({"width": np.arange(2)},)}
    settings = Settings(model="mine.py:Net", recipe="modern", model_args=args)
    assert settings.model_args == {"kernel": [3, 0.5], "blocks": [{"width": [0, 1]}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 4}, "accumulate is 4, but there are only 3 steps, so nothing"),
        ({"lookahead": 4, "ema": 0.5}, "lookahead is 4, but there are only 3 steps"),
        (
            {
                "accumulate": 4,
                "phases": (
                    Constant(0.1, 1, freeze="bias"),
                    Constant(0.1, 1, freeze="kernel"),
                ),
            },
            "accumulate is 4: phases freeze every parameter before it is trained",
        ),
    ],
)
def test_a_run_that_would_train_nothing_is_refused(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        go(tmp_path / "run", dataclasses.replace(RECIPE, **changes))
    assert not (tmp_path / "run").exists()


def test_a_range_test_that_would_train_nothing_is_refused():
    recipe = Recipe((Constant(0.1, 100),), batch_size=32, accumulate=101)
    given = {"model": TinyNet(), "dataset": make_tiny(), "recipe": recipe}
    with pytest.raises(UserError, match="accumulate is 101, but there are only 100"):
        range_test(SETTINGS, **given)


@pytest.mark.slow
def test_steps_that_make_no_step_of_the_optimizer_are_warned_of(caplog):
    recipe = dataclasses.replace(RECIPE, accumulate=2)
    result = go(None, recipe)
    assert "there are 3 steps: the gradients of the last 1 are not used" in caplog.text
    two = go(None, dataclasses.replace(recipe, phases=(Constant(0.1, 2 / 3),)))
    for one, other in zip(
        jax.tree.leaves(result.state.params),
        jax.tree.leaves(two.state.params),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
