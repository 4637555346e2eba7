"""The whitening layer and the initial values of airbench, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cifar_flax.layers import rule
from cifar_flax.layers.conv import resolve
from cifar_flax.layers.initializers import partial_identity
from cifar_flax.models.airbench import WHITENING_EPSILON, patch_covariance, whitening
from tests.models.probe import init


def make_images(count=37, size=9):
    """Makes smooth images like photographs; their number does not fill a tile."""
    noise = np.random.default_rng(0).normal(size=(count, size + 3, size + 3, 3))
    noise[..., 1] += noise[..., 0]
    images = sum(noise[:, i : i + size, i : i + size] for i in range(4)) / 2
    return images.astype(np.float32)


def patches_of(images):
    """Returns all 2 x 2 patches, one per row, in the order of a kernel's inputs."""
    size = images.shape[1] - 1
    corners = [images[:, i : i + size, j : j + size] for i in (0, 1) for j in (0, 1)]
    return np.stack(corners, -2).reshape(-1, 12).astype(np.float64)


@pytest.mark.parametrize("lowering", ["auto", "xla", "product"])
def test_the_covariance_is_that_of_all_patches(lowering):
    images = make_images()
    patches = patches_of(images)
    with rule.lowering(resolve(lowering)):
        found = jax.jit(lambda images: patch_covariance(images, 2))(images)
    np.testing.assert_allclose(found, patches.T @ patches / len(patches), atol=1e-4)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    images = make_images()
    kernel = jax.jit(lambda x: whitening(x)(None, (2, 2, 3, 24)))(images)
    filters = np.asarray(kernel).reshape(12, 24)
    np.testing.assert_array_equal(filters[:, 12:], -filters[:, :12])
    outputs = patches_of(images) @ filters[:, :12]
    covariance = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    # A direction with variance l has l / (l + epsilon) after it, the largest first.
    patches = patches_of(images)
    variances = np.linalg.eigvalsh(patches.T @ patches / len(patches))[::-1]
    expected = variances / (variances + WHITENING_EPSILON)
    np.testing.assert_allclose(np.diag(covariance), expected, atol=1e-3)


def test_pytorch_finds_the_same_filters():
    torch = pytest.importorskip("torch")
    rendering = pytest.importorskip("benchmarks.torch_training")
    images = make_images()
    network = rendering.Airbench()
    rendering.initialise(network, torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    assert not network.whiten.bias.any()
    theirs = network.whiten.weight.detach().numpy()[:12]  # 12, 3, 2, 2
    ours = np.asarray(jax.jit(lambda x: whitening(x)(None, (2, 2, 3, 24)))(images))
    ours = ours[..., :12].transpose(3, 2, 0, 1)
    signs = np.sign((ours * theirs).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(ours, signs * theirs, rtol=1e-2, atol=1e-2)


def test_a_partial_identity_passes_its_inputs_on():
    kernel = partial_identity(jax.random.key(0), (3, 3, 4, 6))
    images = np.random.default_rng(0).normal(size=(2, 5, 5, 4)).astype(np.float32)
    outputs = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(outputs[..., :4], images, rtol=1e-5)
    drawn = np.asarray(kernel[..., 4:])
    assert 0.9 / 6 < np.abs(drawn).max() <= 1 / 6  # 1 / sqrt(3 * 3 * 4)
    fewer = partial_identity(jax.random.key(0), (3, 3, 6, 4))
    np.testing.assert_array_equal(fewer[1, 1], jnp.eye(6, 4))


def test_its_stages_start_as_identities_and_its_norms_without_scales():
    params = init("airbench")["params"]
    assert not params["whiten"]["bias"].any()
    for stage, (inputs, width) in enumerate([(24, 64), (64, 256), (256, 256)]):
        for number, channels in enumerate((inputs, width)):
            kernel = np.asarray(params[f"stage{stage}_conv{number}"]["kernel"])
            assert kernel.shape == (3, 3, channels, width)
            np.testing.assert_array_equal(kernel[1, 1, :, :channels], np.eye(channels))
            assert set(params[f"stage{stage}_norm{number}"]) == {"bias"}
