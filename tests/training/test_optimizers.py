"""Optimizers and groups of parameters, against formulas and PyTorch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_flax.errors import UserError
from cifar_flax.training.optimizers import Group, names, options_of
from cifar_flax.training.phases import (
    Constant,
    Cosine,
    Linear,
    OneCycle,
    Sgdr,
    Trapezoid,
)
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.stages import make_stages, spans_of
from cifar_flax.training.steps import update_average


class Halves:
    """A phase of a user's own."""

    epochs = 2

    def schedule(self, steps_per_epoch):
        return lambda step: 0.1 / (1 + step // steps_per_epoch)


ONE = (Constant(0.1, 1),)
RNG = np.random.default_rng(0)
PARAMS = {
    "stem": {"kernel": RNG.normal(size=(3, 3, 2, 4)), "bias": RNG.normal(size=4)},
    "head": {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)},
}
GRADS = [jax.tree.map(lambda p: RNG.normal(size=p.shape), PARAMS) for _ in range(4)]


def train(recipe, grads=GRADS, rate=lambda step: 0.1):
    tx = optax.with_extra_args_support(recipe.make_optimizer(rate))
    params = jax.tree.map(jnp.float32, PARAMS)
    state, update = tx.init(params), jax.jit(tx.update)
    for grad in grads:
        grad = jax.tree.map(jnp.float32, grad)
        updates, state = update(grad, state, params, value=1.0)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(ours, theirs, **tolerance):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, **tolerance)


def torch_steps(make, grads=GRADS):
    """Takes the same steps with an optimizer of PyTorch."""
    torch = pytest.importorskip("torch")
    leaves, tree = jax.tree.flatten(PARAMS)
    params = [torch.nn.Parameter(torch.tensor(leaf)) for leaf in leaves]
    optimizer = make(torch, params)
    for grad in grads:
        for param, one in zip(params, jax.tree.leaves(grad), strict=True):
            param.grad = torch.tensor(one)
        optimizer.step()
    return jax.tree.unflatten(tree, [param.detach().numpy() for param in params])


def test_decay_is_decoupled_where_that_is_the_optimizers_meaning():
    ours = train(Recipe(ONE, optimizer="adamw", weight_decay=0.3))
    assert_close(
        ours, torch_steps(lambda t, p: t.optim.AdamW(p, lr=0.1, weight_decay=0.3))
    )
    ours = train(Recipe(ONE, optimizer="adam", weight_decay=0.3))
    assert_close(
        ours, torch_steps(lambda t, p: t.optim.Adam(p, lr=0.1, weight_decay=0.3))
    )


def test_options_reach_the_optimizer():
    options = {"decay": 0.8, "momentum": 0.7, "eps": 1e-8, "eps_in_sqrt": False}
    ours = train(Recipe(ONE, optimizer="rmsprop", options=options))
    assert_close(
        ours,
        torch_steps(lambda t, p: t.optim.RMSprop(p, lr=0.1, alpha=0.8, momentum=0.7)),
        err_msg="PyTorch's momentum is of the gradient over its root, as optax's is",
    )


def test_lion_takes_steps_of_one_size():
    """Chen et al. 2023, https://arxiv.org/abs/2302.06675, with its defaults."""
    ours = train(Recipe(ONE, optimizer="lion", weight_decay=0.5))

    def expected(param, *grads):
        mean = np.zeros_like(param)
        for grad in grads:
            update = np.sign(0.9 * mean + 0.1 * grad) + 0.5 * param
            param, mean = param - 0.1 * update, 0.99 * mean + 0.01 * grad
        return param

    assert_close(ours, jax.tree.map(expected, PARAMS, *GRADS))


def test_muon_takes_kernels_as_matrices_of_their_outputs():
    """The steps of a kernel are nearly orthogonal; those of a bias are Adam's."""
    start = jax.tree.map(jnp.float32, PARAMS)
    moved = train(Recipe(ONE, optimizer="muon"), GRADS[:1])
    step = (start["stem"]["kernel"] - moved["stem"]["kernel"]).reshape(18, 4)
    values = np.linalg.svd(step, compute_uv=False)
    assert values.max() / values.min() < 2
    grad = GRADS[0]["stem"]["kernel"].reshape(18, 4)
    spread = np.linalg.svd(grad, compute_uv=False)
    assert spread.max() / spread.min() > values.max() / values.min()
    bias = start["head"]["bias"] - moved["head"]["bias"]
    np.testing.assert_allclose(np.abs(bias), np.abs(bias[0]), rtol=1e-3)


@pytest.mark.parametrize("name", names())
def test_every_optimizer_that_can_be_named_trains(name):
    recipe = Recipe(ONE, optimizer=name, groups=[Group("head", rate=0.5)])
    moved = train(recipe, rate=lambda step: 0.01 / (1 + step))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved))
    assert isinstance(options_of(name), list)


def test_groups_have_their_own_rate_and_decay_or_none():
    groups = (
        Group("^head/bias$", frozen=True),
        Group("^head", rate=2.0, decay=False),
        Group("bias"),
    )
    recipe = Recipe(ONE, momentum=0, weight_decay=0.3, groups=groups)
    moved = train(recipe, GRADS[:1])

    def sgd(param, grad, rate, decay):
        return param - rate * (grad + decay * param)

    grad, stem, head = GRADS[0], PARAMS["stem"], PARAMS["head"]
    expected = {
        "stem": jax.tree.map(lambda p, g: sgd(p, g, 0.1, 0.3), stem, grad["stem"]),
        "head": {
            "kernel": sgd(head["kernel"], grad["head"]["kernel"], 0.2, 0),
            "bias": head["bias"],
        },
    }
    assert_close(moved, expected)
    frozen = np.float32(head["bias"])
    assert np.array_equal(train(recipe)["head"]["bias"], frozen)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_kernels_alone_decay(optimizer):
    settings = {"optimizer": optimizer, "weight_decay": 0.3}
    without, every, kernels = (
        train(Recipe(ONE, **settings | changes))
        for changes in ({"weight_decay": 0.0}, {}, {"decay": "kernels"})
    )
    for layer in PARAMS:
        assert_close(kernels[layer]["kernel"], every[layer]["kernel"])
        assert_close(kernels[layer]["bias"], without[layer]["bias"])
        assert not np.allclose(every[layer]["bias"], without[layer]["bias"])


def test_a_group_of_nothing_is_named():
    with pytest.raises(UserError, match=r"'steem' is found in no .*stem/kernel"):
        train(Recipe(ONE, groups=[Group("stem"), Group("steem")]))


def test_gradients_are_scaled_to_a_norm():
    recipe = Recipe(ONE, momentum=0, clip_norm=0.5)
    moved = train(recipe, GRADS[:1])
    leaves = jax.tree.leaves(jax.tree.map(lambda p, m: p - m, PARAMS, moved))
    norm = np.sqrt(sum((leaf**2).sum() for leaf in leaves))
    assert norm == pytest.approx(0.1 * 0.5, rel=1e-3)
    short = jax.tree.map(lambda g: 1e-3 * g, GRADS[0])
    unclipped = dataclasses.replace(recipe, clip_norm=None)
    assert_close(train(recipe, [short]), train(unclipped, [short]))


@pytest.mark.parametrize("every", [2, 4])
@pytest.mark.parametrize(
    "phase",
    [
        *(Linear(0.1, 3), OneCycle(0.1, 3), Trapezoid(0.1, 3), Constant(0.1, 3)),
        *(Sgdr(0.1, 2, 1.5), Cosine(0.1, 3, warmup=1), Sgdr(0.1, 3, slow_start=0.5)),
    ],
    ids=lambda phase: type(phase).__name__,
)
def test_accumulated_gradients_have_the_rates_of_the_large_batch(phase, every):
    """Twelve steps an epoch, in groups, are steps of a batch of that many batches."""
    phases = (phase, Constant(0.3, 1))
    steps = np.arange(48)
    rates = jax.vmap(Recipe(phases, accumulate=every).schedule(12))(steps)
    large = jax.vmap(Recipe(phases).schedule(12 // every))(steps // every)
    np.testing.assert_allclose(rates, large, rtol=1e-6)


@pytest.mark.parametrize("phase", [OneCycle(0.1, 2), Cosine(0.1, 0.2), Halves()])
def test_groups_that_do_not_divide_an_epoch_have_one_rate_each(phase):
    recipe = Recipe((Constant(0.2, 1), phase), accumulate=4)
    rates = jax.vmap(recipe.schedule(10))(np.arange(recipe.count_steps(10)))
    np.testing.assert_array_equal(rates, np.repeat(rates[::4], 4)[: len(rates)])
    assert (np.asarray(rates[:12]) == np.float32(0.2)).all()
    assert ((rates >= 0) & (rates <= np.float32(0.2))).all()


def test_accumulated_gradients_make_one_step_at_the_rate_of_the_first():
    def rates(step):
        return 0.1 / (1 + step)

    recipe = Recipe(ONE, accumulate=2)
    means = [
        jax.tree.map(lambda a, b: (a + b) / 2, *pair) for pair in (GRADS[:2], GRADS[2:])
    ]
    expected = train(Recipe(ONE), means, lambda step: rates(2 * step))
    assert_close(train(recipe, rate=rates), expected)


def test_the_average_is_its_formula_and_takes_counts_as_they_are():
    values = RNG.normal(size=(20, 3)).astype(np.float32)
    average = {"params": values[0], "count": np.int32(0)}
    expected = values[0].astype(np.float64)
    for step, value in enumerate(values[1:]):
        variables = {"params": value, "count": np.int32(step)}
        average = update_average(average, variables, jnp.int32(step), 0.6)
        keep = min(0.6, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
    np.testing.assert_allclose(average["params"], expected, rtol=1e-5)
    assert average["count"] == 18


FREEZING = (
    Constant(0.1, 2, freeze="stem"),
    Sgdr(0.05, 1, 3),
    Constant(0.02, 1, freeze="bias"),
)


@pytest.mark.parametrize(
    "settings",
    [{"weight_decay": 0.1}, {"optimizer": "adam"}, {"optimizer": "lion"}],
    ids=["sgd", "adam", "lion"],
)
def test_what_a_phase_freezes_stands_still_with_its_optimizer(settings):
    """As if the steps with frozen parameters did not exist, except for the rate."""
    recipe = Recipe(FREEZING, **settings)
    stages, schedule = recipe.stages(2), recipe.schedule(2)
    assert [(s.start, s.stop, s.freeze) for s in stages] == [
        (0, 4, "stem"),
        (4, 10, None),
        (10, 12, "bias"),
    ]
    rng = np.random.default_rng(5)
    steps = [
        jax.tree.map(lambda p: rng.normal(size=p.shape).astype("f"), PARAMS)
        for _ in range(12)
    ]
    tx = recipe.make_optimizer(schedule, stages)
    first = params = jax.tree.map(jnp.float32, PARAMS)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for grads in steps:
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)

    for layer, trained in [("stem", range(4, 12)), ("head", range(12))]:
        for name in ("kernel", "bias"):
            kept = [s for s in trained if name == "kernel" or s < 10]
            rates = np.float32([schedule(s) for s in kept])
            alone = dataclasses.replace(recipe, phases=(Constant(1.0, 1),))
            one = alone.make_optimizer(
                lambda count, rates=rates: jnp.take(rates, count)
            )
            expected = first[layer][name]
            own = one.init(expected)
            for s in kept:
                updates, own = one.update(steps[s][layer][name], own, expected)
                expected = optax.apply_updates(expected, updates)
            np.testing.assert_allclose(params[layer][name], expected, rtol=2e-5)


def test_each_phase_may_start_without_momentum():
    phases = (Constant(0.5, 1), Constant(0.25, 2))
    recipe = Recipe(phases, momentum=0.9, restart_momentum=True)
    stages = recipe.stages(2)
    assert [stage.start for stage in stages] == [0, 2]
    tx = recipe.make_optimizer(recipe.schedule(2), stages)
    weight, state = jnp.float32(1.0), tx.init(jnp.float32(1.0))
    grads = np.float32([1, -2, 3, 4, 0.5, -1])
    seen = []
    for grad in grads:
        update, state = tx.update(jnp.asarray(grad), state, weight)
        weight = weight + update
        seen.append(float(weight))
    expected, value, buffer = [], 1.0, 0.0
    for step, grad in enumerate(grads):
        buffer = 0.9 * (0.0 if step == 2 else buffer) + grad
        value -= (0.5 if step < 2 else 0.25) * buffer
        expected.append(value)
    np.testing.assert_allclose(seen, expected, rtol=1e-6)


def test_momentum_restarts_only_for_sgd():
    with pytest.raises(UserError, match="restart_momentum is true and the optimizer"):
        Recipe(ONE, optimizer="adamw", restart_momentum=True)


def test_a_mean_gradient_counts_where_the_parameter_is_trained_in_all_its_steps():
    stages = make_stages([3, 6, 2], ["stem", None, "stem"], [None] * 3)
    assert spans_of("stem/kernel", stages, 1) == ((3, 9),)
    assert spans_of("stem/kernel", stages, 2) == ((2, 4),)
    assert spans_of("stem/kernel", stages, 8) == ()
    assert spans_of("head", stages, 2) == ((0, 5),)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"phases": (Constant(0.1, 1, freeze="."),)}, "every parameter is frozen"),
        ({"groups": [Group(".", frozen=True)]}, "every parameter is frozen"),
        ({"phases": (Constant(0.1, 1, freeze="steem"),)}, "'steem' is found in no"),
    ],
)
def test_a_recipe_that_trains_nothing_is_refused(settings, words):
    recipe = Recipe(**{"phases": ONE, **settings})
    tx = recipe.make_optimizer(recipe.schedule(2), recipe.stages(2))
    with pytest.raises(UserError, match=words):
        tx.init(PARAMS)


def test_patterns_of_phases_are_checked_where_they_are_made():
    with pytest.raises(UserError, match=r"freeze of a phase is '\['"):
        Constant(0.1, 1, freeze="[")
    with pytest.raises(UserError, match="freeze of a phase is 3"):
        Sgdr(0.1, 1, freeze=3)
