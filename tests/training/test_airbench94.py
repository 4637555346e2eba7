"""airbench94 takes the same steps here and in the PyTorch rendering."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.data.augment import NO_AUGMENTATION
from cifar_flax.data.splits import DataSpec, Split
from cifar_flax.layers.conv import resolve
from cifar_flax.models import create_model
from cifar_flax.training.named_recipes import AIRBENCH94
from cifar_flax.training.state import init_state
from cifar_flax.training.steps import TrainStep
from tests.models.test_torch_parity import pairs, statistics, to_torch

torch = pytest.importorskip("torch")
rendering = pytest.importorskip("benchmarks.torch_training")

# 48 batches in an epoch, as with 50,000 images and batches of 1,024.
BATCH = 16
COUNT = 48 * BATCH


def our_step(factor, freeze=None):
    phases = tuple(
        dataclasses.replace(phase, learning_rate=factor * phase.learning_rate)
        for phase in AIRBENCH94.phases
    )
    recipe = dataclasses.replace(
        AIRBENCH94, phases=phases, batch_size=BATCH, augmentation=NO_AUGMENTATION
    )
    spec = DataSpec((32, 32, 3), 10, rendering.MEAN, rendering.STD, COUNT)
    net, stages = create_model("airbench", 10), tuple(recipe.stages(48))
    return TrainStep(net, recipe, spec, resolve("auto"), stages=stages, freeze=freeze)


def state_at(step, start, images):
    """A state with initial variables that has done so many steps."""
    key = jax.random.key(0)
    state = init_state(key, step.model, step.make_tx(), images, step.recipe.ema)
    counts = jax.tree.map(
        lambda leaf: leaf + start if leaf.dtype == jnp.int32 else leaf, state.opt_state
    )
    return dataclasses.replace(state, step=jnp.int32(start), opt_state=counts)


def tensors_of(network, variables):
    """Pairs of tensors of PyTorch with our arrays, by name.

    PyTorch's running variances are unbiased and differ, the more the fewer images.
    """
    found = {}
    for number, (module, params) in enumerate(pairs(network, variables["params"])):
        for key, value in params.items():
            tensor = module.weight if key == "kernel" else module.bias
            found[f"{key} {number}"] = tensor, to_torch(value)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    stats = statistics(variables["batch_stats"])
    for number, (norm, (mean, _)) in enumerate(zip(norms, stats, strict=True)):
        found[f"mean {number}"] = norm.running_mean, to_torch(mean)
    return found


# Sections of steps; the state before each is made of initial values. The bias of the
# first layer is fixed from step 144 on, the average begins after 145 steps and is used
# after 150, and an epoch ends after 192.
SECTIONS = ((0, 2), (143, 146), (148, 151), (190, 194))


@pytest.mark.slow
def test_both_renderings_take_the_same_steps(monkeypatch):
    factor = 0.05  # of the rate, which is too high for initial values
    for name in ("LEARNING_RATE", "WEIGHT_DECAY"):
        monkeypatch.setattr(rendering, name, factor * getattr(rendering, name))
    monkeypatch.setattr(rendering, "BATCH_SIZE", BATCH)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, COUNT).astype(np.int32)
    data = jnp.asarray(pixels), jnp.asarray(labels)
    order = jnp.asarray(rng.permutation(COUNT))
    theirs = rendering.Training(Split(pixels, labels), is_compiled=False)
    network = theirs.network
    step = our_step(factor)
    programs = [jax.jit(one) for one in (step, our_step(factor, "whiten/bias"))]
    batch_of = jax.jit(step.batch)

    for start, stop in SECTIONS:
        images = theirs.images[:100].permute(0, 2, 3, 1).numpy()
        state, losses = state_at(step, start, jnp.asarray(images)), jnp.zeros(48)
        theirs.begin()
        begun = tensors_of(network, state.trained)
        with torch.no_grad():
            for tensor, ours in begun.values():
                tensor.copy_(ours)
        if start > 145:
            theirs.slow = {n: v.clone() for n, v in network.state_dict().items()}
        for k in range(start, stop):
            images, targets, _, _ = batch_of(state, order, data)
            images = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
            theirs.step(k, images, torch.tensor(np.asarray(targets), dtype=torch.int64))
            state, losses = programs[k >= 144]((state, losses), order, data)
            for name, (tensor, ours) in tensors_of(network, state.trained).items():
                change = (ours - begun[name][1]).abs().max()
                error = (tensor.detach() - ours).abs().max()
                assert error <= 0.03 * change + 1e-7, (k, name)
        assert change > 1e-6  # of the last mean


@pytest.mark.slow
def test_half_precision_takes_the_steps_of_float32(monkeypatch):
    """It sums the losses of a batch, and its rate and decay are for that sum.

    Here its type has the precision of float32, so that only this may differ.
    """
    monkeypatch.setattr(rendering, "HALF", torch.float32)
    monkeypatch.setattr(rendering, "BATCH_SIZE", BATCH)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2 * BATCH, 32, 32, 3), np.uint8)
    split = Split(pixels, rng.integers(0, 10, 2 * BATCH).astype(np.int32))
    both = [rendering.Training(split, False, is_half) for is_half in (False, True)]
    for one in both:
        assert one.train(0, most=3) > 0
    states = [one.network.state_dict() for one in both]
    for name, value in states[0].items():
        if value.is_floating_point():
            torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4)
    assert both[1].summed == BATCH
