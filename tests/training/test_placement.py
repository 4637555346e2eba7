"""Replicas and batches on simulated devices, against one device."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.models import create_model
from cifar_flax.runs.checkpoint import open_checkpoints
from cifar_flax.training import programs
from cifar_flax.training.lr_range import RangeSettings, range_curves
from cifar_flax.training.phases import Constant
from cifar_flax.training.placement import make_mesh, parse_mesh
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer
from tests.runs.test_session import Told, go
from tests.training.test_trainer import host

RECIPE = Recipe((Constant(0.01, 1),), batch_size=32)


def make_trainer(splits, seeds, lowering="auto", recipe=RECIPE, norms=1, **how):
    model = create_model("convbn", 4, features=(2, *[4] * norms))
    mesh = make_mesh(len(seeds), recipe.batch_size, **how) if how else None
    settings = {"lowering": lowering, "mesh": mesh}
    return Trainer(model, recipe, splits.spec, seeds, **settings)


def train(trainer, splits):
    """Returns the last progress, with the losses of all steps."""
    every = list(trainer.run(trainer.init(), splits.train))
    losses = np.concatenate([progress.losses for progress in every], axis=1)
    return dataclasses.replace(every[-1], losses=losses)


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, host(one), host(other))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "how", "words"),
    [
        ((0, 1), {"count": 2}, "seeds over 2"),
        ((0, 1, 2), {"shape": {"seed": 2}}, "seeds over 2"),
        ((0, 1, 2, 3, 4), {"shape": {"seed": 4}}, "seeds over 4"),
    ],
)
def test_seeds_that_are_spread_get_the_bits_of_one_device(splits, seeds, how, words):
    """Also numbers of seeds that cannot be divided by the devices."""
    one, several = (make_trainer(splits, seeds, **h) for h in ({}, how))
    assert str(several.placement) == words
    assert several.lowering == one.lowering
    expected, found = train(one, splits), train(several, splits)
    assert_same(found.state, expected.state)
    np.testing.assert_array_equal(found.losses, expected.losses)
    evaluations = [t.evaluate(found.state, splits.test).logits for t in (one, several)]
    np.testing.assert_array_equal(*evaluations)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "how", "words"),
    [
        ((0,), {"count": 4}, "each batch over 4"),
        ((0, 1, 2), {"count": 8}, "seeds over 2, each batch over 4"),
    ],
)
def test_a_batch_that_is_divided_agrees_to_rounding(splits, seeds, how, words):
    """Norms use the statistics of the whole batch, and augmentation the same draws."""
    one = make_trainer(splits, seeds, lowering="product")
    several = make_trainer(splits, seeds, **how)
    assert str(several.placement) == words
    expected, found = train(one, splits), train(several, splits)
    assert found.step == expected.step == 3
    for name in ("params", "batch_stats"):
        pairs = zip(
            jax.tree.leaves(found.state.trained[name]),
            jax.tree.leaves(expected.state.trained[name]),
            strict=True,
        )
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)
    logits = several.evaluate(found.state, splits.test).logits
    np.testing.assert_allclose(
        logits, one.evaluate(found.state, splits.test).logits, rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_a_divided_batch_costs_sums_and_moves_no_data(splits):
    """There is one sum of gradients, sums of each norm, and two sums of the log."""
    norms = 3
    trainer = make_trainer(splits, (0,), norms=norms, count=4)
    state, place = trainer.init(), trainer.placement
    orders = programs.epoch_orders(state.key, np.int32(0), len(splits.train))
    program = programs.training(trainer.train_step, place, "cpu").lower(
        *(place.spread(state), place.spread(orders), trainer.put(splits.train)),
        *(np.int32(0), None),
    )
    program = program.compile()
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    text = program.as_text()
    found = re.findall(rf"= (.*?) ({names})\(", text)
    assert {name for _, name in found} == {"all-reduce"}
    kernels = [shape for shape, _ in found if shape.count("[") >= 2 * norms]
    assert len(kernels) == 1
    assert len(found) <= 1 + 3 * norms + 2
    # None of these arrays is as large as the images of a batch.
    sizes = [
        np.prod([int(n) for n in dims.split(",") if n] or [1])
        for shape, _ in found
        for dims in re.findall(r"\[([\d,]*)\]", shape)
    ]
    assert max(sizes) < 32 * 32 * 32 * 3 / 4


@pytest.mark.slow
def test_range_tests_are_spread_too(splits):
    settings = RangeSettings(num_steps=20)
    one, several = (
        make_trainer(splits, (0, 1, 2), **how) for how in ({}, {"shape": {"seed": 3}})
    )
    expected, found = (range_curves(t, splits.train, settings) for t in (one, several))
    np.testing.assert_array_equal(found.losses, expected.losses)


@pytest.mark.slow
def test_a_checkpoint_moves_between_numbers_of_devices(tmp_path, small_chunks):
    """It moves from one device to four, to two, to one."""
    import threading

    whole = go(None)
    folder = tmp_path / "run"
    for step, devices in ((2, 1), (5, 4), (7, 2)):
        stop = threading.Event()
        how = {"devices": devices, "resume": step > 2}
        go(folder, observers=[Told(step, stop.set)], stop=stop, **how)
        with open_checkpoints(folder / records.CHECKPOINTS) as checkpoints:
            assert checkpoints.latest_step == step
    resumed = go(folder, resume=True)
    np.testing.assert_allclose(resumed.steps.losses, whole.steps.losses, rtol=1e-5)
    # Two seeds over one row of two devices, or over two: the bits are the same.
    again = go(None, mesh={"seed": 2})
    assert_same(again.state, whole.state)
    assert again.record.device.endswith("as 2 devices: seeds over 2")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"count": 9}, "--devices=9: there are 8 of kind cpu"),
        ({"count": 0}, "--devices=0: there are 8"),
        ({"shape": {"seed": 4}}, "3 seeds can be spread over at most 3 devices"),
        ({"shape": {"seed": 3, "data": 3}}, "seed:3,data:3 needs 9 devices, and .* 8"),
        ({"count": 2, "shape": {"data": 4}}, "data:4 needs 4 devices, and there are 2"),
        ({"shape": {"data": 5}}, "a batch of 32 images cannot be divided by 5"),
        ({"shape": {"rows": 2}}, "--mesh=rows:2: give devices along the axes, as seed"),
        ({"shape": {"data": 0}}, "--mesh=data:0: give devices"),
    ],
)
def test_a_mesh_that_cannot_be_is_named(how, words):
    with pytest.raises(UserError, match=words):
        make_mesh(3, 32, **how)


@pytest.mark.parametrize("text", ["", "seed", "seed:", "seed:x", "2", "seed:1,seed:2"])
def test_a_text_that_is_no_mesh_is_named(text):
    with pytest.raises(UserError, match=r"--mesh=.*: give devices along the axes"):
        parse_mesh(text)
    assert parse_mesh("seed:2,data:4") == {"seed": 2, "data": 4}


def test_devices_that_cannot_share_a_batch_have_no_work():
    assert make_mesh(1, 30, 8).shape == {"seed": 1, "data": 6}
    assert make_mesh(3, 32, 2).shape == {"seed": 2, "data": 1}
    assert make_mesh(3, 32, 4).shape == {"seed": 2, "data": 2}
    assert make_mesh(9, 32, 8).shape == {"seed": 8, "data": 1}
    assert make_mesh(3, 32).size == 1  # a CPU is one device with all its cores
