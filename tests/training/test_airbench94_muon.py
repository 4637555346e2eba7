"""PyTorch's airbench94 with Muon takes the steps of its published settings."""

import numpy as np
import pytest

from cifar_flax.data.splits import Split

torch = pytest.importorskip("torch")
rendering = pytest.importorskip("benchmarks.torch_muon")

COUNT = 10


@pytest.fixture(scope="module")
def training():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    split = Split(pixels, rng.integers(0, 10, COUNT).astype(np.int32))
    return rendering.MuonTraining(split, is_compiled=False)


def polar(matrix):
    """What three iterations make of the singular values, in float64."""
    matrix = matrix / np.linalg.norm(matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    for _ in range(3):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def test_kernels_take_two_steps_of_muon(training):
    training.begin()
    rng, rate = np.random.default_rng(1), 0.1
    for (kernel, buffer), _ in zip(training.buffers, range(2), strict=False):
        value = kernel.detach().double().numpy().copy()
        momentum = np.zeros_like(value)
        for k in range(2):
            gradient = rng.normal(size=value.shape)
            training.buffers, kept = [(kernel, buffer)], training.buffers
            kernel.grad = torch.tensor(gradient, dtype=torch.float32)
            training.step_kernels(rate)
            training.buffers = kept
            momentum = 0.6 * momentum + gradient
            ahead = (gradient + 0.6 * momentum).reshape(len(value), -1)
            value *= np.sqrt(len(value)) / np.linalg.norm(value)
            step = rate * polar(ahead).reshape(value.shape)
            value -= step
            found = kernel.detach().numpy()
            error = np.linalg.norm(found - value) / np.linalg.norm(step)
            assert error < 0.03, k  # of bfloat16


def test_rates_and_first_layer(training):
    """The rates fall to 0 in 8 epochs; that of the first bias falls in 3."""
    training.begin()
    assert training.total == 8 * training.per_epoch == 8
    images, labels = training.images, training.labels
    whiten, head = training.network.whiten, training.network.head
    assert float(head.weight.detach().std()) == pytest.approx(1)
    biases = []
    for step in range(4):
        training.step(step, images, labels)
        rates = [group["lr"] for group in training.optimizer.param_groups]
        left = max(0, 1 - step / 3)
        expected = (0.053 * left, 0.053 * (1 - step / 8), 0.67 * (1 - step / 8))
        np.testing.assert_allclose(rates, expected, rtol=1e-12)
        biases.append(whiten.bias.detach().numpy().copy())
    for group in training.optimizer.param_groups[1:]:
        assert group["weight_decay"] * group["peak"] == pytest.approx(2e-6 * 2000)
    assert (biases[0] != 0).any()
    assert (biases[2] != biases[1]).any()
    np.testing.assert_array_equal(biases[3], biases[2])


@pytest.mark.slow
def test_it_learns_a_few_images(training):
    losses = []
    training.begin()
    for step in range(6):
        training.step(step, training.images, training.labels)
        with torch.no_grad():
            logits = training.network(training.images)
        loss = torch.nn.functional.cross_entropy(logits, training.labels)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    assert np.isfinite(losses).all()
