"""Tests of Muon against optax's and against a singular value decomposition."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from cifar_flax.errors import UserError
from cifar_flax.training.muon import muon, orthogonalised

SHAPES = {"kernel": (3, 3, 8, 16), "wide": (6, 40), "tall": (300, 24), "bias": (16,)}
DIMENSIONS = {
    "kernel": optax.contrib.MuonDimensionNumbers((0, 1, 2), 3),
    "wide": optax.contrib.MuonDimensionNumbers(0, 1),
    "tall": optax.contrib.MuonDimensionNumbers(0, 1),
    "bias": None,
}


def draw(seed):
    rng = np.random.default_rng(seed)
    return {n: jnp.float32(rng.normal(size=shape)) for n, shape in SHAPES.items()}


def steps_of(optimizer, grads):
    params = draw(100)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grad in grads:
        updates, state = update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ns_steps": 3, "beta": 0.6, "nesterov": False},
        {"eps": 1e-3, "adam_b1": 0.5, "adam_b2": 0.9, "adam_weight_decay": 0.1},
    ],
)
def test_it_takes_the_steps_of_optax(options):
    grads = [draw(seed) for seed in range(4)]
    rate = optax.linear_schedule(0.1, 0.02, 4)
    ours = muon(rate, weight_decay=0.2, **options)
    theirs = optax.contrib.muon(
        rate, weight_decay=0.2, muon_weight_dimension_numbers=DIMENSIONS, **options
    )
    found, expected = steps_of(ours, grads), steps_of(theirs, grads)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


def matrices():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(32, 100))
    yield "normal", normal
    yield "nearly dependent rows", normal * np.geomspace(1, 1e-7, 32)[:, None]
    yield "rank 1", np.outer(normal[0, :32], normal[1])
    yield "one large value", normal + 1e4 * np.eye(32, 100)[::-1] * (np.arange(100) < 1)
    yield "zero", 0 * normal


@pytest.mark.parametrize(
    ("name", "matrix"), [pytest.param(*one, id=one[0]) for one in matrices()]
)
def test_the_iteration_is_that_of_the_singular_values(name, matrix):
    """X = U S V^T becomes U f(S) V^T with the scalar iteration f, in float64."""
    matrix = matrix / max(np.linalg.norm(matrix), 1e-30)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = (left * values) @ right
    for turn in (np.asarray, np.transpose):
        found = orthogonalised(jnp.float32(turn(matrix)), 5)
        np.testing.assert_allclose(found, turn(expected), atol=2e-4, err_msg=name)


def test_it_keeps_the_precision_of_the_gradients_apart_from_its_own():
    matrix = jnp.float32(draw(0)["tall"]) / 100
    exact = orthogonalised(matrix, 5)
    found = orthogonalised(matrix.astype(jnp.bfloat16), 5)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(found), exact, atol=0.02)


@pytest.mark.parametrize(
    "steps", [5, 10, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 6, 7, 8))]
)
@pytest.mark.parametrize("rank", [1, 32, pytest.param(4, marks=pytest.mark.slow)])
def test_a_gradient_without_full_rank_gets_its_polar_factor(rank, steps):
    """The reference is U V^T of the directions that the gradient has, in float64."""
    rng = np.random.default_rng(rank)
    matrix = rng.normal(size=(64, rank)) @ rng.normal(size=(rank, 300))
    matrix /= np.linalg.norm(matrix)
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    for turn in (np.asarray, np.transpose):
        found = np.float64(orthogonalised(jnp.float32(turn(matrix)), steps))
        found = turn(found)
        inside = left.T @ found @ right.T
        outside = found - left @ inside @ right
        assert np.linalg.norm(outside, 2) < max(1e-3, 5e-8 * 3.4445**steps)
        expected = values
        for _ in range(steps):
            expected = 3.4445 * expected - 4.775 * expected**3 + 2.0315 * expected**5
        np.testing.assert_allclose(inside, np.diag(expected), atol=2e-3)
        if steps >= 5:
            polar = left @ right
            assert np.linalg.norm(found - polar, 2) < 0.33  # 0.68 to 1.21, not 1


@pytest.mark.parametrize("steps", [0, -1, 1.5, 11, True, "5"])
def test_a_number_of_steps_that_makes_no_sense_is_an_error(steps):
    with pytest.raises(UserError, match="ns_steps of muon is"):
        muon(0.1, ns_steps=steps)
