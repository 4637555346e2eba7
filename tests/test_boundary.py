"""Input that does not fit is refused at once, with a line that names it."""

import dataclasses
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data import Split, Splits, make_dataset
from cifar_flax.data.augment import NO_AUGMENTATION
from cifar_flax.errors import UserError
from cifar_flax.models import ConvBnNet, create_model
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.conftest import make_split, make_splits

RECIPE = Recipe((Constant(0.01, 2),), batch_size=32)


def refused(call, *words):
    """Asserts that a call raises one line with these words."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for word in words:
        assert word in message


GOOD = make_split(0, 40)

ARRAYS = {
    "labels of shape [N, 1]": (
        lambda x, y: (x, y[:, None]),
        ["int32 [40, 1]", "one for each of 40", "labels[:, 0]"],
    ),
    "one-hot labels": (
        lambda x, y: (x, np.eye(4, dtype=int)[y]),
        ["int64 [40, 4]", "argmax(1)"],
    ),
    "labels that are no whole numbers": (
        lambda x, y: (x, y * 1.0),
        ["float64 [40]", "integers"],
    ),
    "NaN labels": (lambda x, y: (x, np.full(40, np.nan)), ["float64"]),
    "texts as labels": (lambda x, y: (x, np.array(["cat"] * 40)), ["<U3"]),
    "negative labels": (lambda x, y: (x, y - 1), ["label -1"]),
    "fewer labels": (lambda x, y: (x, y[:39]), ["int32 [39]", "each of 40 images"]),
    "fewer images": (lambda x, y: (x[:39], y), ["int32 [40]", "each of 39 images"]),
    "scaled images": (
        lambda x, y: ((x / 255).astype(np.float32), y),
        ["float32 [40, 32, 32, 3]", "0 to 255", "do not scale"],
    ),
    "images with NaN": (
        lambda x, y: (np.full(x.shape, np.nan), y),
        ["float64", "uint8 [N, H, W, C]"],
    ),
    "signed images": (lambda x, y: (x.astype(np.int64), y), ["int64"]),
    "no images": (lambda x, y: (x[:0], y[:0]), ["no images", "one or more"]),
    "one image": (lambda x, y: (x[0], y[0]), ["uint8 [32, 32, 3]", "images[None]"]),
    "images without channels": (lambda x, y: (x[..., 0], y), ["uint8 [40, 32, 32]"]),
    "images without pixels": (lambda x, y: (x[:, :0], y), ["no images"]),
    "a list of different shapes": (
        lambda x, y: ([x, x[:3]], y),
        ["list, not an array"],
    ),
    "something else": (lambda x, y: (None, y), ["object"]),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_a_split_is_refused(case):
    change, words = ARRAYS[case]
    refused(lambda: Split(*change(GOOD.images, GOOD.labels)), *words)


@pytest.mark.parametrize("case", ARRAYS)
def test_a_data_set_is_refused(case):
    change, words = ARRAYS[case]
    images, labels = change(GOOD.images, GOOD.labels)
    names = ("a", "b", "c", "d")
    good = (GOOD.images, GOOD.labels)
    for arrays in ((images, labels, *good), (*good, images, labels)):

        def make(arrays=arrays):
            return make_dataset("mine", *arrays, names, source="a test")

        refused(make, *[word.replace("[N, H, W, C]", "[N, ") for word in words])


def test_arrays_of_jax_and_other_integers_are_taken():
    split = Split(jnp.asarray(GOOD.images), jnp.asarray(GOOD.labels, jnp.uint8))
    np.testing.assert_array_equal(split.images, GOOD.images)
    assert split.labels.dtype == np.int32


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_classes": 3}, ["train split", "label 3; with 3 classes"]),
        ({"val": Split(GOOD.images, GOOD.labels + 1)}, ["val split", "subtract 1"]),
        ({"test": Split(GOOD.images[:, 4:], GOOD.labels)}, ["test split", "28, 32, 3"]),
        ({"mean": (0.5,)}, ["mean is (0.5,)", "3 numbers"]),
        ({"mean": (0.5, np.nan, 0.5)}, ["mean", "finite"]),
        ({"std": (0.5, 0.0, 0.5)}, ["std", "above 0"]),
        ({"std": "abc"}, ["std is abc"]),
    ],
)
def test_splits_that_do_not_belong_together_are_refused(changes, words):
    fields = {**vars(make_splits()), **changes}
    refused(lambda: Splits(**fields), *words)


def test_labels_from_one_to_k_are_refused():
    labels = GOOD.labels + 1
    arrays = (GOOD.images, labels, GOOD.images, labels)
    refused(
        lambda: make_dataset("mine", *arrays, ("a", "b", "c", "d"), source="a test"),
        *("mine, train split", "label 4; with 4 classes", "subtract 1"),
    )


def spec_of(height, width, channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, height, width, channels), dtype=np.uint8)
    split = Split(images, GOOD.labels)
    values = (0.5,) * channels
    return Splits(split, None, split, 4, values, values)


class Net(nn.Module):
    """A model of the tests below, with a given function of the mean colours."""

    body: callable

    @nn.compact
    def __call__(self, x, *, train):
        return self.body(self, x.mean((1, 2)), train)


def dense(module, x, train):
    return nn.Dense(4)(x)


BODIES = {
    "another number of classes": (
        lambda m, x, train: nn.Dense(7)(x),
        ["Net", "[N, 7]", "4 classes"],
    ),
    "logits with another axis": (
        lambda m, x, train: nn.Dense(4)(x)[:, None],
        ["[N, 1, 4]", "[N, 4]"],
    ),
    "logits without the batch": (
        lambda m, x, train: nn.Dense(4)(x).mean(0),
        ["float32 [4]"],
    ),
    "another shape in training alone": (
        lambda m, x, train: nn.Dense(4)(x)[..., :2] if train else nn.Dense(4)(x),
        ["in training", "[N, 2]"],
    ),
    "another shape in evaluation alone": (
        lambda m, x, train: nn.Dense(4)(x) if train else nn.Dense(4)(x)[..., :2],
        ["in evaluation", "[N, 2]"],
    ),
    "classes instead of logits": (
        lambda m, x, train: nn.Dense(4)(x).argmax(-1),
        ["int32 [N]", "logits"],
    ),
    "a pair": (lambda m, x, train: (nn.Dense(4)(x), x), ["returns a tuple"]),
    "no parameters": (
        lambda m, x, train: jnp.zeros((len(x), 4)),
        ["no parameters", "nothing to train"],
    ),
    "random numbers in evaluation": (
        lambda m, x, train: nn.Dense(4)(x) + jax.random.normal(m.make_rng("noise")),
        ["noise"],
    ),
    "a collection that grows": (
        lambda m, x, train: growing(m, x, train),
        ["['cache']['seen']", "must keep its arrays"],
    ),
    "a parameter without a gradient": (
        lambda m, x, train: nn.Dense(4)(x) * m.param("n", lambda _: jnp.int32(3)),
        ["['params']['n'] is int32", "self.variable"],
    ),
    "a random key as a parameter": (
        lambda m, x, train: (m.param("k", lambda k: k), nn.Dense(4)(x))[1],
        ["['params']['k']", "key_data"],
    ),
    "a random key in a collection": (
        lambda m, x, train: (
            m.variable("noise", "key", lambda: jax.random.key(0)),
            nn.Dense(4)(x),
        )[1],
        ["['noise']['key']", "key_data"],
    ),
    "a call that ends the process": (
        lambda m, x, train: sys.exit("bye"),
        ["cannot be trained", "bye"],
    ),
    "an error of its own": (
        lambda m, x, train: nn.Dense(4)(x) @ jnp.zeros(7),
        ["Net cannot be trained on images [N, 32, 32, 3]"],
    ),
}


def growing(module, x, train):
    seen = module.variable("cache", "seen", lambda: jnp.zeros((1, 3)))
    if train:
        seen.value = jnp.concatenate([seen.value, x])
    return nn.Dense(4)(x)


@pytest.mark.parametrize("case", BODIES)
def test_a_model_that_cannot_be_trained_is_refused(splits, case):
    body, words = BODIES[case]
    refused(lambda: Trainer(Net(body), RECIPE, splits.spec), *words)


class Deterministic(nn.Module):
    """A model that would be trained without its dropout."""

    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dropout(0.5, deterministic=deterministic)(x.mean((1, 2)))
        return nn.Dense(4)(x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda spec: Trainer(Net, RECIPE, spec), ["model is Net", "instance"]),
        (lambda spec: Trainer("convbn", RECIPE, spec), ["model is str"]),
        (lambda spec: Trainer(Net(dense), None, spec), ["recipe is None"]),
        (
            lambda spec: Trainer(Deterministic(), RECIPE, spec),
            ["'deterministic'", "'train'"],
        ),
        (lambda spec: Trainer(Net(dense), RECIPE, None), ["NoneType", "splits.spec"]),
        (lambda spec: Trainer(Net(dense), RECIPE, spec, 5), ["--seeds=5"]),
        (lambda spec: Trainer(Net(dense), RECIPE, spec, ()), ["--seeds="]),
        (lambda spec: Trainer(Net(dense), RECIPE, spec, (1, 1)), ["--seeds=1,1"]),
        (lambda spec: Trainer(Net(dense), RECIPE, spec, (0.5,)), ["whole numbers"]),
        (
            lambda spec: Trainer(Net(dense), Recipe((Constant(0.1, 1),), 97), spec),
            ["batch_size is 97", "96 training images"],
        ),
    ],
)
def test_a_trainer_is_refused(splits, make, words):
    refused(lambda: make(splits.spec), *words)


@pytest.mark.parametrize(
    ("name", "sizes", "words"),
    [
        ("convnet", (4, 4, 3), ["images [N, 4, 4, 3]", "conv1", "larger images"]),
        ("resnet2", (2, 2, 3), ["stem.conv", "7 x 7", "2 x 2"]),
    ],
)
def test_images_too_small_for_a_layer_are_refused(name, sizes, words):
    splits = spec_of(*sizes)
    refused(lambda: Trainer(create_model(name, 4), RECIPE, splits.spec), *words)


class Strided(nn.Module):
    """A model in which Flax's layers return an empty output without an error."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(3, (5, 5), padding="VALID", name="first")(x)
        return nn.Dense(4)(x.mean((1, 2)))


def test_an_empty_output_of_any_layer_is_refused():
    spec = spec_of(4, 4, 3).spec
    refused(
        lambda: Trainer(Strided(), RECIPE, spec), "layer first is empty", "4 x 4 pixels"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: Split(x.images[:, :28], x.labels), ["[25, 28, 32, 3]"]),
        (lambda x: Split(x.images[..., :1], x.labels), ["[25, 32, 32, 1]"]),
        (lambda x: Split(x.images, x.labels + 4), ["label", "4 classes"]),
        (lambda x: x.images, ["is a ndarray", "Split"]),
        (lambda x: None, ["is a NoneType"]),
    ],
)
def test_images_that_a_trainer_was_not_made_for_are_refused(splits, change, words):
    trainer = Trainer(Net(dense), RECIPE, splits.spec)
    state, other = trainer.init(), change(splits.test)
    refused(lambda: trainer.evaluate(state, other), *words)
    refused(lambda: trainer.run(state, other), *words)


def test_another_number_of_training_images_is_refused(splits):
    trainer = Trainer(Net(dense), RECIPE, splits.spec)
    refused(lambda: trainer.run(trainer.init(), splits.test), "25 images", "for 96")


def test_a_state_of_another_trainer_is_refused(splits):
    trainer = Trainer(Net(dense), RECIPE, splits.spec, (0, 1))
    for other in (
        Trainer(create_model("simplenet", 4), RECIPE, splits.spec, (0, 1)),
        Trainer(Net(dense), RECIPE, splits.spec, (0,)),
    ):
        state = other.init()
        refused(lambda s=state: trainer.run(s, splits.train), "not of this trainer")
        refused(lambda s=state: trainer.evaluate(s, splits.val), "not of this trainer")
    refused(lambda: trainer.evaluate({}, splits.val), "not of this trainer")


# Models that are accepted.


class Stranger(nn.Module):
    """A model with another collection and Flax's layers, without ``train``."""

    @nn.compact
    def __call__(self, x):
        calls = self.variable("counts", "calls", lambda: jnp.int32(0))
        if not self.is_initializing() and self.is_mutable_collection("counts"):
            calls.value += 1
        return nn.Dense(4)(nn.LayerNorm()(x.mean((1, 2))))


class Noisy(nn.Module):
    """A model with another random stream, and Flax's batch norm and dropout."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = x.mean((1, 2))
        if train:
            x += 0.1 * jax.random.normal(self.make_rng("noise"), x.shape)
            x += 0.1 * jax.random.normal(self.make_rng("other"), x.shape)
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(8)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        self.sow("intermediates", "hidden", x)
        return nn.Dense(4)(x)


PLAIN = nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(8), nn.relu, nn.Dense(4)])


@pytest.mark.parametrize("model", [Stranger(), Noisy(), PLAIN])
def test_strangers_train_and_go_on_to_the_same_bits(splits, model):
    trainer = Trainer(model, RECIPE, splits.spec, (0, 1))
    states = [p.state for p in trainer.run(trainer.init(), splits.train)]
    assert states[-1].step.tolist() == [6, 6]
    middle = next(state for state in states if state.step[0] == 3)
    (*_, again) = trainer.run(middle, splits.train)
    for one, other in zip(
        jax.tree.leaves(states[-1].variables),
        jax.tree.leaves(again.state.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    if isinstance(model, Stranger):
        calls = states[-1].collections["counts"]["calls"]
        assert calls.tolist() == [6, 6]


def test_images_of_other_sizes_and_channels_train():
    splits = spec_of(12, 20, 2)
    trainer = Trainer(ConvBnNet(4, features=(4, 8)), RECIPE, splits.spec)
    (*_, last) = trainer.run(trainer.init(), splits.train)
    assert trainer.evaluate(last.state, splits.test).logits.shape == (1, 40, 4)


# Common patterns of use.


def test_every_state_of_a_run_can_be_kept_and_used(splits):
    recipe = dataclasses.replace(RECIPE, augmentation=NO_AUGMENTATION)
    trainer = Trainer(Net(dense), recipe, splits.spec)
    start = trainer.init()
    kept = list(trainer.run(start, splits.train))
    again = list(trainer.run(start, splits.train))  # a cell run twice
    losses = [trainer.evaluate(p.state, splits.val).loss[0] for p in kept]
    assert len(set(losses)) == len(kept)
    assert losses[-1] == trainer.evaluate(again[-1].state, splits.val).loss[0]
    assert trainer.evaluate(start, splits.val).loss[0] > losses[-1]


def test_a_state_can_be_used_after_an_interrupt(splits, monkeypatch):
    trainer = Trainer(Net(dense), RECIPE, splits.spec)
    held = []

    def interrupted():
        for progress in trainer.run(trainer.init(), splits.train):
            held.append(progress)
            if progress.step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert np.isfinite(trainer.evaluate(held[-1].state, splits.val).loss).all()
    (*_, last) = trainer.run(held[-1].state, splits.train)
    assert last.step == 6


def test_what_is_shown_is_a_line(splits):
    trainer = Trainer(Net(dense), RECIPE, splits.spec, (0, 1))
    (*_, last) = trainer.run(trainer.init(), splits.train)
    assert repr(last.state) == "TrainState(step=6, 2 replicas, 16 parameters each)"
    for value in (trainer, last, splits.val, trainer.evaluate(last.state, splits.val)):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 300
    jax.jit(lambda state: (repr(state), state.step)[1])(last.state)
