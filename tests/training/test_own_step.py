"""Augmentations, optimizers and evaluated variables of a user's own, in the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import cifar_flax as cf
from cifar_flax.data.augment import NO_AUGMENTATION, Augmentation, normalise
from cifar_flax.errors import UserError
from cifar_flax.models.convbn import ConvBnNet
from cifar_flax.models.simplenet import SimpleNet
from cifar_flax.show.figures import plot_images
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.conftest import make_split
from tests.own_functions import darker, descend, hinge, mean

RECIPE = Recipe((Constant(0.05, 1),), batch_size=16, augmentation=NO_AUGMENTATION)


def train(splits, recipe, model=None):
    """Trains one replica, and returns the trainer and its last state."""
    trainer = Trainer(model or SimpleNet(4), recipe, splits.spec)
    *_, last = trainer.run(trainer.init(), splits.train)
    return trainer, last.state


def changed(**changes):
    return dataclasses.replace(RECIPE, **changes)


def assert_equal(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def batch_of(splits, augmentation):
    recipe = changed(augmentation=augmentation)
    trainer = Trainer(SimpleNet(4), recipe, splits.spec)
    state = jax.tree.map(lambda leaf: leaf[0], trainer.init())
    order = jnp.arange(len(splits.train))
    return trainer.train_step.batch(state, order, trainer.put(splits.train))


@pytest.mark.slow
def test_an_augmentation_gets_pixels_from_0_to_1_and_their_labels(splits):
    seen = {}

    def paint(key, images, labels):
        seen.update(images=images, labels=labels)
        return jnp.ones_like(images) * labels[:, None, None, None] / 4

    plain = Augmentation(padding=0, flip=False, augment=paint)
    images, labels, _, _ = batch_of(splits, plain)
    pixels = splits.train.images[:16].astype(np.float32) / 255
    np.testing.assert_allclose(seen["images"], pixels, atol=1e-6)
    np.testing.assert_array_equal(seen["labels"], splits.train.labels[:16])
    painted = np.broadcast_to(labels[:, None, None, None] / 4, images.shape)
    np.testing.assert_allclose(images, (painted - 0.5) / 0.25, atol=1e-6)


@pytest.mark.slow
def test_an_augmentation_comes_after_ours_and_draws_its_own_numbers(splits):
    def same(key, images, labels):
        return images

    ours = Augmentation(cutout=4, brightness=0.2)
    before, _, _, _ = batch_of(splits, ours)
    after, _, _, _ = batch_of(splits, dataclasses.replace(ours, augment=same))
    np.testing.assert_allclose(before, after, atol=1e-5)
    drawn, _, _, _ = batch_of(
        splits, Augmentation(padding=0, flip=False, augment=darker)
    )
    pixels = splits.train.images[:16] / np.float32(255)
    factors = (np.asarray(drawn) * 0.25 + 0.5) / np.maximum(pixels, 1e-3)
    each = np.median(factors, axis=(1, 2, 3))
    assert len(np.unique(each.round(5))) == 16
    assert 0 < each.min() < each.max() < 1


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        (
            lambda key, images, labels: images[:, :16],
            r"gives float32 \[16, 16, 32, 3\]",
        ),
        (
            lambda key, images, labels: images.sum(),
            r"must give images, float32 \[16, 32",
        ),
        (lambda images: images, "takes 1 positional argument but 3 were given"),
        (lambda key, images, labels: 1 / 0, "ZeroDivisionError"),
        (lambda key, images, labels: np.asarray(images), "use jax.numpy instead"),
    ],
)
def test_a_function_that_is_no_augmentation_is_one_line(splits, augment, words):
    with pytest.raises(UserError, match=f"the augmentation <lambda> .*{words}"):
        batch_of(splits, Augmentation(augment=augment))


def test_an_augmentation_in_words():
    assert str(NO_AUGMENTATION) == "none"
    assert str(Augmentation(padding=2, cutout=3, augment=darker, mixup=0.2)) == (
        "shifts of up to 2 pixels with a symmetric border, flips, cutout of 3 pixels, "
        "darker, mixup 0.2"
    )
    assert "flips in every second epoch" in str(Augmentation(alternate=True))


@pytest.mark.slow
def test_the_picture_shows_an_augmentation_of_ones_own():
    def red(key, images, labels):
        return images.at[..., 1:].set(0)

    train, test = make_split(0, 64), make_split(1, 8)
    arrays = (train.images, train.labels, test.images, test.labels)
    dataset = cf.make_dataset("tiny", *arrays, [*"abcd"], source="drawn")
    figure = plot_images(dataset, Augmentation(augment=red))
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert all(image[..., 1:].any() for image in shown[:4])
    assert not any(image[..., 1:].any() for image in shown[4:])
    assert all(image[..., 0].any() for image in shown[4:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.1},
        {"groups": (Group("head", rate=0.5, decay=False),), "weight_decay": 0.1},
        {"clip_norm": 0.1, "accumulate": 2},
    ],
)
def test_an_optimizer_of_ones_own_takes_part_in_all(splits, changes):
    """SGD as a function of the schedule does as the SGD of that name."""
    own = changed(optimizer=descend, options={"momentum": 0.9}, **changes)
    ours = train(splits, changed(**changes))[1]
    assert_equal(train(splits, own)[1].params, ours.params)


def test_an_optimizer_decays_as_it_says():
    def decaying(rate, weight_decay, b1=0.9):
        return optax.adamw(rate, b1=b1, weight_decay=weight_decay)

    params = {"kernel": jnp.ones((2, 2))}
    grads = {"kernel": jnp.full((2, 2), 0.3)}
    moved = []
    for optimizer in (decaying, "adamw"):
        recipe = changed(optimizer=optimizer, options={"b1": 0.8}, weight_decay=0.3)
        tx = recipe.make_optimizer(lambda step: 0.1)
        moved.append(tx.update(grads, tx.init(params), params)[0])
    assert_equal(*moved)


@pytest.mark.parametrize(
    ("optimizer", "options", "words"),
    [
        (descend, {"nesterov": 1}, "descend has no option nesterov; .* are momentum"),
        (
            lambda rate: 3,
            {},
            "it gives an object of type int; it must give an optax.Gradient",
        ),
        (lambda: optax.sgd(1), {}, "takes 0 positional arguments but 1 was given"),
        ("sgdd", {}, "optimizer is 'sgdd'; it must be one of .*, or your own as FILE"),
    ],
)
def test_what_is_no_optimizer_is_one_line(splits, optimizer, options, words):
    def make():
        recipe = changed(optimizer=optimizer, options=options)
        Trainer(SimpleNet(4), recipe, splits.spec)

    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_an_optimizer_may_ask_for_the_parameters_of_a_network(splits):
    """It is tried only with these."""

    def of_head(rate):
        labels = {"hidden0": "others", "head": "head"}
        return optax.partition(
            {"head": optax.sgd(rate), "others": optax.set_to_zero()}, labels
        )

    trainer = Trainer(SimpleNet(4), changed(optimizer=of_head), splits.spec)
    assert trainer.recipe_program.unknown is None


@pytest.mark.slow
def test_an_optimizer_gets_the_loss_of_the_step(splits):
    """Momo needs it, alone or for groups; a plateau lowers the rate of our own."""
    assert train(splits, changed(optimizer="momo"))[1].params
    groups = (Group("head", rate=0.5),)
    assert train(splits, changed(optimizer="momo_adam", groups=groups))[1].params
    values = []

    def watching(rate):
        def update(grads, state, params=None, *, value, **extra):
            return grads, value

        return optax.chain(
            optax.GradientTransformationExtraArgs(
                lambda params: jnp.float32(0), update
            ),
            optax.sgd(rate),
        )

    trainer = Trainer(SimpleNet(4), changed(optimizer=watching), splits.spec)
    for progress in trainer.run(trainer.init(), splits.train):
        (value,) = (
            leaf
            for leaf in jax.tree.leaves(progress.state.opt_state)
            if leaf.dtype == jnp.float32
        )
        values.append((float(value[0]), float(progress.losses[0, -1])))
    assert all(value == pytest.approx(loss, rel=1e-6) for value, loss in values)


@pytest.mark.slow
def test_an_average_of_ones_own_is_evaluated_and_trained_on_by_nothing(splits):
    trainer, state = train(splits, changed(average=mean), ConvBnNet(4))
    _, plain = train(splits, RECIPE, ConvBnNet(4))
    assert_equal(state.trained, plain.trained)
    states = [trainer.init()]
    # One step at a time gives the variables of every step.
    for stop in range(1, trainer.total_steps + 1):
        *_, last = trainer.chunks(states[-1], trainer.put(splits.train), stop=stop)
        states.append(last.state)
    for leaves in zip(
        jax.tree.leaves(state.variables),
        *(jax.tree.leaves(one.trained) for one in states[1:]),
        strict=True,
    ):
        np.testing.assert_allclose(leaves[0], np.mean(leaves[1:], 0), atol=1e-5)
    found = trainer.evaluate(state, splits.test)
    variables = jax.tree.map(lambda leaf: leaf[0], state.average)
    images = normalise(jnp.asarray(splits.test.images), splits.mean, splits.std)
    logits = ConvBnNet(4).apply(variables, images, train=False)
    np.testing.assert_allclose(found.logits[0], logits, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [(), (Group("head", rate=0.5), Group("bias"))])
@pytest.mark.parametrize("name", ["schedule_free_sgd", "schedule_free_adamw"])
def test_schedule_free_optimizers_are_evaluated_where_they_ask_for(
    splits, name, groups
):
    recipe = changed(optimizer=name, groups=groups, accumulate=2, clip_norm=1.0)
    _, state = train(splits, recipe)
    assert state.average is not None
    kind = optax.contrib.ScheduleFreeState
    found = jax.tree.leaves(
        state.opt_state, is_leaf=lambda leaf: isinstance(leaf, kind)
    )
    found = [leaf for leaf in found if isinstance(leaf, kind)]
    assert len(found) == (2 if groups else 1)
    for one in found:
        params = jax.tree.map(
            lambda z, y: z if isinstance(z, optax.MaskedNode) else y,
            *(one.z, state.params),
            is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
        )
        one = one._replace(b1=float(one.b1[0]))
        expected = optax.contrib.schedule_free_eval_params(one, params)
        theirs = {
            jax.tree_util.keystr(p): x for p, x in jax.tree.leaves_with_path(expected)
        }
        ours = jax.tree.leaves_with_path(state.variables["params"])
        ours = {jax.tree_util.keystr(path): leaf for path, leaf in ours}
        for path, leaf in theirs.items():
            np.testing.assert_allclose(ours[path], leaf, rtol=1e-5, atol=1e-6)
    moved = [
        np.abs(one - other).max()
        for one, other in zip(
            jax.tree.leaves(state.variables["params"]),
            jax.tree.leaves(state.params),
            strict=True,
        )
    ]
    assert max(moved) > 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"average": mean, "ema": 0.5}, "ema is 0.5; it must be 0, because mean gives"),
        (
            {"optimizer": "schedule_free_sgd", "ema": 0.5},
            "ema is 0.5; it must be 0, because schedule_free_sgd gives",
        ),
        ({"average": "mean"}, "average is 'mean'; it must be your own as FILE.py:NAME"),
    ],
)
def test_two_averages_are_one_too_many(changes, words):
    with pytest.raises(UserError, match=words):
        changed(**changes)


def test_an_average_of_another_form_is_one_line(splits):
    def params_only(average, variables, opt_state, step):
        return variables["params"]

    with pytest.raises(UserError, match=r"the average params_only .* it must give the"):
        Trainer(SimpleNet(4), changed(average=params_only), splits.spec)


def test_our_functions_are_named(splits):
    recipe = changed(optimizer=descend, loss=hinge, average=mean)
    assert recipe.optimizer_in_words == "descend, evaluated at mean"
    assert sorted(recipe.code()) == ["average", "loss", "optimizer"]
