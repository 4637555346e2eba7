"""Losses, named and of a user's own, in the training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data.augment import NO_AUGMENTATION, Augmentation, normalise
from cifar_flax.errors import UserError
from cifar_flax.models.simplenet import SimpleNet
from cifar_flax.training.losses import Batch, balanced_weights, cross_entropy, values_of
from cifar_flax.training.lr_range import RangeSettings, range_curves
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.conftest import make_splits
from tests.own_functions import hinge

RECIPE = Recipe((Constant(0.05, 1),), batch_size=16, augmentation=NO_AUGMENTATION)
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 6).astype(np.int32)
BATCH = Batch(
    jnp.zeros((6, 2, 2, 3)), jnp.asarray(LABELS), jnp.arange(6), jax.random.key(0)
)
WEIGHTS = jnp.asarray([1.0, 2.0, 0.5, 3.0, 0.0])


def trained(splits, **changes):
    """Returns the parameters and the losses of an epoch of a recipe."""
    recipe = dataclasses.replace(RECIPE, **changes)
    trainer = Trainer(SimpleNet(4), recipe, splits.spec)
    progress = list(trainer.run(trainer.init(), splits.train))
    losses = np.concatenate([one.losses for one in progress], 1)
    return progress[-1].state.params, losses


def assert_close(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


def plainly(logits, batch):
    return cross_entropy(logits, batch.labels)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing": 0.2},
        {"augmentation": Augmentation(mixup=0.5)},
        {"augmentation": Augmentation(cutmix=1.0), "label_smoothing": 0.1},
        {"ema": 0.5, "lookahead": 2, "accumulate": 2},
    ],
)
def test_a_function_of_ones_own_acts_as_cross_entropy_does(splits, changes):
    assert_close(trained(splits, **changes), trained(splits, loss=plainly, **changes))


def test_smoothing_is_the_mean_over_the_targets():
    expected = 0.8 * plainly(LOGITS, BATCH) + 0.2 / 5 * sum(
        plainly(LOGITS, BATCH._replace(labels=jnp.full(6, k))) for k in range(5)
    )
    found = values_of(plainly, {}, LOGITS, BATCH, 0.2)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    ours = cross_entropy(LOGITS, BATCH.labels, 0.2)
    np.testing.assert_allclose(found, ours, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_of_classes_are_those_of_torch(smoothing):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS),
        torch.tensor(LABELS).long(),
        weight=torch.tensor(np.asarray(WEIGHTS)),
        label_smoothing=smoothing,
        reduction="none",
    )
    ours = values_of("cross_entropy", {}, LOGITS, BATCH, smoothing, WEIGHTS)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
def test_focal_is_its_formula_and_has_finite_gradients(gamma):
    torch = pytest.importorskip("torch")
    logits = np.concatenate([LOGITS, [[200.0, 0, 0, 0, 0]]]).astype(np.float32)
    labels = np.append(LABELS, 0).astype(np.int32)  # the last one is surely right
    given = torch.tensor(logits[:-1].astype(np.float64), requires_grad=True)
    log_p = torch.log_softmax(given, -1)[range(6), LABELS.tolist()]
    theirs = -((1 - log_p.exp()) ** gamma) * log_p
    theirs.sum().backward()
    batch = BATCH._replace(labels=jnp.asarray(labels))

    def ours(logits):
        return values_of("focal", {"gamma": gamma}, logits, batch)

    np.testing.assert_allclose(ours(logits)[:-1], theirs.detach(), rtol=1e-4)
    grads = jax.grad(lambda logits: ours(logits).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(grads[:-1], given.grad, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(grads[-1], 0, atol=1e-6)


def test_balanced_weights_have_a_mean_of_one_over_the_images():
    labels = jnp.asarray([0, 0, 0, 1, 1, 3])
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(weights, [0.5, 0.75, 1.5, 1.5])
    assert float(weights[labels].sum()) == pytest.approx(0.75 * len(labels))
    full = jnp.asarray([0, 0, 0, 1, 1, 2])
    assert float(balanced_weights(full, 3)[full].mean()) == pytest.approx(1)


@pytest.mark.slow
def test_balanced_weights_are_those_of_the_training_split(splits):
    counts = np.bincount(splits.train.labels, minlength=4)
    weights = tuple((96 / (4 * counts)).tolist())
    given = {"augmentation": Augmentation(mixup=0.5), "label_smoothing": 0.1}
    ours = trained(splits, class_weights="balanced", **given)
    assert_close(ours, trained(splits, class_weights=weights, **given))
    plain, _ = trained(splits, **given)
    assert np.abs(ours[0]["head"]["bias"] - plain["head"]["bias"]).max() > 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", [NO_AUGMENTATION, Augmentation(mixup=0.5)])
def test_a_loss_knows_which_images_the_labels_are_of(splits, augmentation):
    targets = jax.nn.one_hot(splits.train.labels, 4)

    def by_index(logits, batch):
        return -(targets[batch.indices] * jax.nn.log_softmax(logits)).sum(-1)

    how = {"augmentation": augmentation}
    assert_close(trained(splits, loss=by_index, **how), trained(splits, **how))


@pytest.mark.slow
def test_a_loss_gets_the_images_of_the_model_and_a_key_of_the_step(splits):
    """The loss is a checksum of what it gets."""
    pixels = normalise(jnp.asarray(splits.train.images), splits.mean, splits.std)
    means = pixels.mean((1, 2, 3))

    def difference(logits, batch):
        found = batch.images.mean((1, 2, 3)) - means[batch.indices]
        return 0 * logits.sum(-1) + jnp.abs(found).max()

    def number(logits, batch):
        return 0 * logits.sum(-1) + jax.random.uniform(batch.key)

    assert trained(splits, loss=difference)[1].max() < 1e-4
    _, drawn = trained(splits, loss=number)
    assert len(np.unique(drawn)) == drawn.size > 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": "crossentropy"}, "loss is 'crossentropy'; it must be one of cross_"),
        ({"loss": 3}, "loss is 3; it must be one of cross_entropy, focal, or your own"),
        ({"loss_args": {"gamma": 2}}, "cross_entropy has no argument gamma; it has no"),
        (
            {"loss": "focal", "loss_args": {"g": 2}},
            "focal has no argument g; it has gamma",
        ),
        (
            {"loss": "focal", "loss_args": {"gamma": -1}},
            "focal cannot be used with {'gamma': -1}: gamma is -1; it must be 0",
        ),
        ({"class_weights": "even"}, "class_weights is 'even'; it must be balanced, or"),
        ({"class_weights": (1, -2)}, "class_weights is .* a number for each class, 0"),
        ({"class_weights": (0, 0)}, "class_weights is .* not all 0"),
    ],
)
def test_what_is_no_loss_is_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        dataclasses.replace(RECIPE, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda logits, batch: logits.mean(), r"gives float32 \[\]; .*float32 \[16\]"),
        (lambda logits, batch: logits, r"gives float32 \[16, 4\]; it must give one"),
        (lambda logits, batch: batch.labels, r"gives int32 \[16\]; it must give"),
        (lambda logits, batch: None, "gives 0 arrays; it must give one number"),
        (lambda logits: logits, "takes 1 positional argument but 2 were given"),
        (lambda logits, batch: batch.weights, "no attribute 'weights'"),
        ("tests.own_functions:no_such", "--loss=.*there is no callable no_such"),
    ],
)
def test_a_function_that_is_no_loss_is_one_line(loss, words):
    recipe = dataclasses.replace(RECIPE, loss=loss)
    with pytest.raises(UserError, match=words) as caught:
        Trainer(SimpleNet(4), recipe, make_splits().spec)
    assert "\n" not in str(caught.value)


def test_the_number_of_weights_is_that_of_the_classes(splits):
    recipe = dataclasses.replace(RECIPE, class_weights=(1, 2, 3))
    with pytest.raises(UserError, match=r"has 3 numbers, and the data have 4 classes"):
        Trainer(SimpleNet(4), recipe, splits.spec)


def test_a_recipe_says_its_loss():
    recipe = Recipe(RECIPE.phases, loss=hinge, loss_args={"margin": 2})
    assert recipe.loss_in_words == "hinge, margin 2"
    recipe = Recipe(RECIPE.phases, class_weights=[1, 2.5], label_smoothing=0.1)
    assert recipe.loss_in_words == (
        "cross_entropy, class weights 1, 2.5, label smoothing 0.1"
    )


@pytest.mark.slow
def test_a_range_test_takes_a_negative_loss(splits):
    """Without the sign, the smallest rise of the loss would end it."""

    def shifted(logits, batch):
        return cross_entropy(logits, batch.labels) - 1_000

    lengths = [
        range_curves(
            Trainer(SimpleNet(4), dataclasses.replace(RECIPE, loss=loss), splits.spec),
            splits.train,
            RangeSettings(1e-5, 1e-2, num_steps=40),
        ).losses.shape
        for loss in (shifted, "cross_entropy")
    ]
    assert lengths == [(1, 40), (1, 40)]
