"""Images that are evaluated at each epoch are copied to an accelerator once."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

import cifar_flax as cf
from cifar_flax.models import SimpleNet
from cifar_flax.training import evaluation
from cifar_flax.training.evaluation import Predictor
from cifar_flax.training.phases import Constant
from cifar_flax.training.placement import make_mesh
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer

RECIPE = Recipe((Constant(0.01, 3),), batch_size=16)


def make_trainer(splits, seeds=(0, 1), **how):
    return Trainer(SimpleNet(4), RECIPE, splits.spec, seeds, **how)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Takes the device for an accelerator with its own memory."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@pytest.fixture
def copied(monkeypatch):
    """The shapes of the batches that are copied to the devices."""
    shapes, batches = [], Predictor._batches

    def counted(self, images):
        made = batches(self, images)
        shapes.append(made.shape)
        return made

    monkeypatch.setattr(Predictor, "_batches", counted)
    return shapes


@pytest.mark.parametrize("shape", [None, {"seed": 2, "data": 2}], ids=["one", "mesh"])
def test_a_held_split_is_evaluated_without_a_copy(splits, as_on_a_gpu, copied, shape):
    mesh = None if shape is None else make_mesh(2, 16, shape=shape)
    trainer = make_trainer(splits, mesh=mesh)
    trainer.predictor.batch_size = 10  # of 25 images
    state = trainer.init()
    expected = trainer.evaluate(state, splits.test)
    held = trainer.hold(splits.test)
    copied.clear()
    # Variables of several devices are spread with an index from the host.
    guard = "allow" if mesh else "disallow_explicit"
    with jax.transfer_guard_host_to_device(guard):
        found = [trainer.evaluate(state, held) for _ in range(2)]
    assert copied == []
    for one in found:
        np.testing.assert_array_equal(one.logits, expected.logits)
        np.testing.assert_array_equal(one.loss, expected.loss)


def test_a_cpu_holds_no_second_copy(splits):
    trainer = make_trainer(splits)
    held, state = trainer.hold(splits.test), trainer.init()
    assert held.batches is None
    logits = [trainer.evaluate(state, one).logits for one in (splits.test, held)]
    np.testing.assert_array_equal(*logits)


def test_a_split_that_another_trainer_holds_is_copied_anew(splits, as_on_a_gpu, copied):
    """Its batches may have another size, and be on other devices."""
    trainer, other = make_trainer(splits), make_trainer(splits, (0, 1))
    other.predictor.batch_size = 7
    held, state = other.hold(splits.test), trainer.init()
    copied.clear()
    logits = [trainer.evaluate(state, one).logits for one in (splits.test, held)]
    np.testing.assert_array_equal(*logits)
    assert copied == [(1, 25, 32, 32, 3)] * 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_run_copies_each_split_once(splits, copied, monkeypatch, backend):
    """Three epochs evaluate the validation images, and the end the test images."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    dataset = cf.make_dataset(
        *("tiny", splits.train.images, splits.train.labels),
        *(splits.test.images, splits.test.labels),
        class_names=list("abcd"),
        source="a test",
    )
    settings = cf.Settings("simplenet", val_size=20, seeds=(0,))
    result = cf.run(settings, recipe=RECIPE, dataset=dataset, devices=1)
    assert result.status == "finished"
    assert len(result.metrics) == 3
    val, test = (1, 20, 32, 32, 3), (1, 25, 32, 32, 3)
    assert copied == ([val] if backend == "gpu" else [val] * 3) + [test]


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_the_loss_has_the_bits_of_scipys(classes):
    """Also of diverged replicas; records of older versions have these bits."""
    rng = np.random.default_rng(0)
    shape = (3, 500, classes)
    logits = rng.standard_normal(shape) * 10 ** rng.uniform(-3, 3, (3, 500, 1))
    logits = logits.astype(np.float32)
    labels = rng.integers(0, classes, 500)
    logits[1, ::7, 0], logits[1, 1::7, 1], logits[2, ::3] = np.inf, np.nan, -np.inf
    with np.errstate(all="ignore"):
        every = log_softmax(logits.astype(np.float64), axis=-1)
        expected = every[:, np.arange(500), labels]
    found = evaluation._log_probabilities(logits, labels, logits.argmax(-1))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.mean(1), expected.mean(1))
