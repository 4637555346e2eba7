"""Batch norm against its formulas, in NumPy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cifar_flax.errors import UserError
from cifar_flax.layers import BatchNorm

SHAPE = (16, 4, 4, 3)


def make_inputs(mean=0.0, std=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return (mean + std * rng.normal(size=SHAPE)).astype(np.float32)


def make_variables():
    rng = np.random.default_rng(5)

    def draw():
        return rng.uniform(0.5, 1.5, SHAPE[-1]).astype(np.float32)

    return {
        "params": {"scale": draw(), "bias": draw()},
        "batch_stats": {"mean": draw(), "var": draw()},
    }


def normalised(inputs, mean, var, params, epsilon=1e-5):
    inputs = inputs.astype(np.float64)
    return params["scale"] * (inputs - mean) / np.sqrt(var + epsilon) + params["bias"]


@functools.partial(jax.jit, static_argnums=0)
def train(layer, variables, inputs):
    outputs, updated = layer.apply(
        variables, inputs, train=True, mutable=["batch_stats"]
    )
    return outputs, updated["batch_stats"]


def moments(inputs):
    flat = inputs.astype(np.float64).reshape(-1, inputs.shape[-1])
    return flat.mean(0), flat.var(0)


def test_training_normalises_with_the_batch_and_moves_the_averages():
    inputs, variables = make_inputs(2, 3), make_variables()
    outputs, stats = train(BatchNorm(momentum=0.9), variables, inputs)
    mean, var = moments(inputs)
    expected = normalised(inputs, mean, var, variables["params"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    old = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * old["mean"] + 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 * old["var"] + 0.1 * var, rtol=1e-5)


def test_evaluation_normalises_with_the_running_statistics():
    inputs, variables = make_inputs(2, 3), make_variables()
    outputs = BatchNorm(epsilon=0.5).apply(variables, inputs, train=False)
    stats = variables["batch_stats"]
    expected = normalised(
        inputs, stats["mean"], stats["var"], variables["params"], epsilon=0.5
    )
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_momentum_zero_evaluates_with_the_last_batch():
    layer, variables = BatchNorm(momentum=0.0), make_variables()
    _, stats = train(layer, variables, make_inputs(seed=1))
    inputs = make_inputs(5, 2, seed=2)
    outputs, stats = train(layer, {**variables, "batch_stats": stats}, inputs)
    evaluated = layer.apply({**variables, "batch_stats": stats}, inputs, train=False)
    np.testing.assert_allclose(evaluated, outputs, rtol=1e-5, atol=1e-5)


def test_frozen_trains_with_the_running_statistics_and_keeps_them():
    layer, variables, inputs = BatchNorm(frozen=True), make_variables(), make_inputs(2)
    outputs, stats = train(layer, variables, inputs)
    evaluated = layer.apply(variables, inputs, train=False)
    np.testing.assert_array_equal(outputs, evaluated)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


@pytest.mark.parametrize("mean", [1e2, -1e4])
def test_variance_is_sound_where_the_mean_is_far_larger(mean):
    """``E[x^2] - E[x]^2`` in float32 would lose all digits of the variance."""
    inputs, variables = make_inputs(mean, 0.5), make_variables()
    outputs, stats = train(BatchNorm(momentum=0.0), variables, inputs)
    exact_mean, exact_var = moments(inputs)
    np.testing.assert_allclose(stats["mean"], exact_mean, rtol=1e-6)
    np.testing.assert_allclose(stats["var"], exact_var, rtol=1e-3)
    expected = normalised(inputs, exact_mean, exact_var, variables["params"])
    np.testing.assert_allclose(outputs, expected, atol=5e-3)


def test_a_dead_channel_gives_the_bias_and_finite_gradients():
    inputs, variables = make_inputs(), make_variables()
    inputs[..., 1] = 0

    def loss(params, inputs):
        outputs, _ = train(BatchNorm(), {**variables, "params": params}, inputs)
        return jnp.square(outputs).sum(), outputs

    grads, outputs = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(
        variables["params"], inputs
    )
    np.testing.assert_allclose(outputs[..., 1], variables["params"]["bias"][1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_gradients_are_those_of_the_formula():
    """The reference is central differences of the formula in float64."""
    inputs, variables = make_inputs(1, 2), make_variables()
    weights = np.random.default_rng(3).normal(size=SHAPE)

    def ours(inputs):
        return (train(BatchNorm(), variables, inputs)[0] * weights).sum()

    def formula(inputs):
        mean, var = moments(inputs)
        return (normalised(inputs, mean, var, variables["params"]) * weights).sum()

    direction = np.random.default_rng(4).normal(size=SHAPE)
    grad = np.asarray(jax.grad(ours)(inputs), np.float64)
    wide = inputs.astype(np.float64)
    numeric = (
        formula(wide + 1e-5 * direction) - formula(wide - 1e-5 * direction)
    ) / 2e-5
    assert (grad * direction).sum() == pytest.approx(numeric, rel=1e-3)


def test_replicas_have_statistics_of_their_own():
    variables = make_variables()
    inputs = np.stack([make_inputs(0), make_inputs(7)])
    both, stats = jax.vmap(lambda x: train(BatchNorm(), variables, x))(inputs)
    for i in range(2):
        alone, alone_stats = train(BatchNorm(), variables, inputs[i])
        np.testing.assert_allclose(both[i], alone, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(stats["mean"][i], alone_stats["mean"], rtol=1e-5)


def test_a_sharded_batch_is_normalised_as_a_whole():
    variables = make_variables()
    inputs = make_inputs()
    inputs[8:] += 10  # the two halves differ
    expected, stats = train(BatchNorm(), variables, inputs)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(inputs, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(lambda x: train(BatchNorm(), variables, x))
    outputs, sharded_stats = compiled(sharded)
    assert len(outputs.sharding.device_set) == 2
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sharded_stats["var"], stats["var"], rtol=1e-5)

    by_name = BatchNorm(axis_name="data")
    mapped = jax.shard_map(
        lambda x: train(by_name, variables, x),
        mesh=mesh,
        in_specs=PartitionSpec("data"),
        out_specs=(PartitionSpec("data"), PartitionSpec()),
    )
    outputs, mapped_stats = jax.jit(mapped)(inputs)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mapped_stats["var"], stats["var"], rtol=1e-5)


def test_initialising_leaves_the_statistics_alone():
    variables = BatchNorm().init(jax.random.key(0), make_inputs(3), train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))


def test_bfloat16_inputs_keep_float32_statistics():
    inputs = jnp.asarray(make_inputs(3), jnp.bfloat16)
    outputs, stats = train(BatchNorm(), make_variables(), inputs)
    assert outputs.dtype == jnp.bfloat16
    assert stats["mean"].dtype == jnp.float32


def test_a_batch_of_no_images_has_no_statistics():
    layer, images = BatchNorm(), np.zeros((0, 4, 4, 3), np.float32)
    found = layer.apply(make_variables(), images, train=False)
    assert found.shape == images.shape
    with pytest.raises(UserError, match="a batch of 0 images has no mean"):
        layer.apply(make_variables(), images, train=True, mutable=["batch_stats"])
