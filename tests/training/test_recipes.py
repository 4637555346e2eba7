"""Schedules against their closed form, and recipes against the lesson."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_flax.data.augment import Augmentation
from cifar_flax.errors import UserError
from cifar_flax.training.named_recipes import (
    AIRBENCH94,
    FAST,
    LESSON,
    MODERN,
    own_name,
    recipe_for,
)
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import (
    Constant,
    Cosine,
    Linear,
    OneCycle,
    Sgdr,
    Trapezoid,
)
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.schedules import sgdr

STEPS = 7
ONE_EPOCH = (Constant(0.1, 1),)
ONE = (Constant(0.1, 1),)


def closed_form(peak, cycles, length, mult):
    """Computes SGDR's rates from the definition, one per step."""
    rates = []
    for _ in range(cycles):
        rates += [
            peak * (1 + math.cos(math.pi * t / length)) / 2 for t in range(length)
        ]
        length *= mult
    return rates


def evaluate(schedule, steps):
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(steps)))


@pytest.mark.parametrize("mult", [1, 2, 3])
def test_sgdr_is_its_closed_form_at_every_step(mult):
    expected = closed_form(0.1, 4, STEPS, mult)
    rates = evaluate(sgdr(0.1, [STEPS * mult**i for i in range(4)]), len(expected))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mult", [1, 2])
def test_sgdr_restarts_at_the_step_after_a_cycle(mult):
    starts = np.cumsum([0] + [STEPS * mult**i for i in range(3)])
    rates = evaluate(sgdr(0.3, [STEPS * mult**i for i in range(4)]), starts[-1] + 1)
    np.testing.assert_allclose(rates[starts], 0.3, rtol=1e-6)
    assert (rates[starts[1:] - 1] < 0.3 * 0.06).all()


def test_sgdr_ends_at_zero():
    np.testing.assert_allclose(sgdr(0.1, [STEPS] * 2)(2 * STEPS), 0, atol=1e-8)


def test_sgdr_may_start_slowly_in_its_first_cycle():
    phase = Sgdr(0.2, 2, cycle_len=1, slow_start=0.05)
    rates = evaluate(phase.schedule(50), 100)
    expected = np.array(evaluate(Sgdr(0.2, 2).schedule(50), 100))
    expected[:3] = 0.002  # 5 % of 50 steps are 2.5
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_phases_follow_one_another():
    recipe = Recipe((Constant(0.5, 2), Sgdr(0.2, 2, 1, 2), Constant(0.1, 1)))
    expected = [0.5] * 2 * STEPS + closed_form(0.2, 2, STEPS, 2) + [0.1] * STEPS
    assert recipe.epochs == 6
    assert len(expected) == 6 * STEPS
    rates = evaluate(recipe.schedule(STEPS), len(expected))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-8)


def test_a_cosine_rises_in_its_warm_up_and_then_falls():
    phase = Cosine(0.4, 3, warmup=1, final=0.1)
    rates = evaluate(phase.schedule(STEPS), 3 * STEPS)
    expected = [0.4 * (t + 1) / (STEPS + 1) for t in range(STEPS)]
    for t in range(2 * STEPS):
        share = (1 + math.cos(math.pi * t / (2 * STEPS))) / 2
        expected.append(0.4 * (0.1 + 0.9 * share))
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def line_through(points, steps):
    """Returns the rate in the middle of each step."""
    return np.interp(np.arange(steps) + 0.5, *zip(*points, strict=True))


def test_one_cycle_goes_up_down_and_to_nothing():
    rates = evaluate(OneCycle(0.5, 10, start=0.2, tail=0.1).schedule(10), 100)
    points = [(0, 0.1), (45, 0.5), (90, 0.1), (100, 0)]
    np.testing.assert_allclose(rates, line_through(points, 100), rtol=1e-5)
    assert rates.min() > 0


@pytest.mark.parametrize(("rise", "fall"), [(0.1, 0.4), (0, 0.5), (0.5, 0.5), (0, 0)])
def test_a_trapezoid_is_its_lines(rise, fall):
    rates = evaluate(Trapezoid(0.5, 10, rise, fall).schedule(10), 100)
    points = [(0, 0.0), (100 * rise, 0.5), (100 - 100 * fall, 0.5), (100, 0.0)]
    np.testing.assert_allclose(rates, line_through(points, 100), rtol=1e-5)


@pytest.mark.parametrize("per_epoch", [1, 7, 175])
@pytest.mark.parametrize("length", [1, 1.5, 2.3, 10 / 3])
def test_fractions_of_epochs_do_not_add_up_to_other_lengths(per_epoch, length):
    recipe = Recipe((Constant(0.5, length), Sgdr(0.2, 4, length), Cosine(0.1, length)))
    steps = recipe.count_steps(per_epoch)
    assert steps == round(6 * length * per_epoch)
    rates = evaluate(recipe.schedule(per_epoch), steps)
    start = round(length * per_epoch)
    assert (rates[:start] == 0.5).all()
    assert rates[start] == pytest.approx(0.2)


@pytest.mark.parametrize("name", LESSON)
def test_a_stretched_recipe_has_the_same_shape(name):
    recipe, longer = LESSON[name], LESSON[name].stretched(3 * LESSON[name].epochs)
    assert longer.epochs == pytest.approx(3 * recipe.epochs)
    rates = evaluate(recipe.schedule(30), recipe.count_steps(30))
    every_third = evaluate(longer.schedule(30), longer.count_steps(30))[::3]
    np.testing.assert_allclose(every_third, rates, rtol=1e-5, atol=1e-8)
    assert recipe.stretched(recipe.epochs / 4).count_steps(100) == pytest.approx(
        25 * recipe.epochs, abs=1
    )


def test_lesson_has_a_recipe_for_every_model_with_its_length():
    assert {name: recipe.epochs for name, recipe in LESSON.items()} == {
        "simplenet": 4,
        "convnet": 6,
        "convnet2": 4,
        "convbn": 6,
        "convbn2": 4,
        "resnet": 41,
        "resnet2": 41,
    }
    assert {recipe.batch_size for recipe in LESSON.values()} == {256}
    assert {recipe.momentum for recipe in LESSON.values()} == {0.9}
    assert LESSON["resnet"].weight_decay == 1e-5


def test_a_recipe_reads_like_the_lesson():
    assert str(LESSON["resnet"]) == (
        "2 epochs at 0.01, then cosine cycles of 1 + 2 + 4 epochs from 0.01, then "
        "cosine cycles of 4 + 4 + 4 + 4 + 4 + 4 + 4 + 4 epochs from 0.01"
    )
    assert str(Recipe((Constant(0.5, 1), Sgdr(0.2, 1, 3)))) == (
        "1 epoch at 0.5, then a cosine cycle of 3 epochs from 0.2"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"momentum": 0.0, "weight_decay": 0.1},
        {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
    ],
)
def test_optimizer_takes_the_steps_of_pytorchs_sgd(settings):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(4, 5))

    theirs = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.SGD([theirs], lr=0.1, **settings)
    tx = Recipe((Constant(0.1, 1),), **settings).make_optimizer(lambda step: 0.1)
    ours = jnp.asarray(start, jnp.float32)
    state = tx.init(ours)
    for grad in grads:
        theirs.grad = torch.tensor(grad)
        optimizer.step()
        updates, state = tx.update(jnp.asarray(grad, jnp.float32), state, ours)
        ours = optax.apply_updates(ours, updates)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Constant(-0.1, 1), "rate is -0.1"),
        (lambda: Constant(math.nan, 1), "rate is nan"),
        (lambda: Constant(1e39, 1), "rate is 1e\\+39"),
        (lambda: Constant(1e-40, 1), "rate is 1e-40"),
        (lambda: Constant(0.1, 0), "epochs is 0"),
        (lambda: Constant(0.1, 2**31), "epochs is 2147483648"),
        (lambda: Sgdr(0.1, 10**9), "cycles is 1000000000"),
        (lambda: Sgdr(0.1, 32, cycle_mult=2), "more than 2147483647 epochs"),
        (lambda: Sgdr(0.1, 0), "cycles is 0"),
        (lambda: Sgdr(0.1, 1, cycle_len=0), "cycle_len is 0"),
        (lambda: Recipe(()), "phases"),
        (lambda: Recipe(Constant(0.1, 1)), "phases is Constant"),
        (
            lambda: Recipe((0.1, 2)),
            "a phase is 0.1; it must be a phase such as Constant",
        ),
        (lambda: Constant("0.1", 1), "rate is '0.1'"),
        (lambda: Constant(True, 1), "rate is True"),
        (lambda: Constant(0.1, math.inf), "epochs is inf; it must be a number above 0"),
        (lambda: Constant(0.1, "1"), "epochs is '1'; it must be a number above 0"),
        (lambda: Cosine(0.1, 2, warmup=2), "warmup is 2; it must be shorter"),
        (lambda: Cosine(0.1, 2, final=1), "final is 1; it must be in"),
        (lambda: OneCycle(0.1, 2, tail=-1), "tail is -1; it must be in"),
        (lambda: Trapezoid(0.1, 2, 0.7, 0.7), "together is 1.4; it must be 1 at most"),
        (
            lambda: Recipe((Constant(0.1, 0.1),)).schedule(3),
            "0.1 epochs of 3 steps",
        ),
        (lambda: Sgdr(0.1, "2"), "cycles is '2'"),
        (lambda: Recipe((Constant(0.1, 1),), batch_size=2.5), "batch_size is 2.5"),
        (lambda: Recipe((Constant(0.1, 1),), momentum=None), "momentum is None"),
        (lambda: Augmentation("4"), "padding is '4'; it must be"),
        (lambda: Augmentation(flip=1), "flip is 1; it must be true or false"),
        (lambda: Recipe((Constant(0.1, 1),), momentum=1.0), "momentum is 1.0"),
        (lambda: Recipe((Constant(0.1, 1),), batch_size=0), "batch_size is 0"),
        (
            lambda: Recipe((Constant(0.1, 1),), label_smoothing=1),
            "label_smoothing is 1",
        ),
        (lambda: Recipe((Constant(0.1, 1),), weight_decay=-1), "weight_decay is -1"),
        (lambda: Recipe((Constant(0.1, 10**9),)).schedule(3), "1000000000 epochs of 3"),
        (lambda: Recipe(ONE, optimizer="adam w"), "optimizer is 'adam w'; .* adamw,"),
        (lambda: Recipe(ONE, optimizer="lbfgs"), "optimizer is 'lbfgs'"),
        (
            lambda: Recipe(ONE, optimizer="adamw", options={"beta": 0.9}),
            "adamw has no option beta; its options are b1, b2",
        ),
        (
            lambda: Recipe(ONE, optimizer="adamw", options={"b1": "x"}),
            "adamw cannot be used with {'b1': 'x'}",
        ),
        (
            lambda: Recipe(ONE, optimizer="adamw", options={"b1": [0.9]}),
            r"b1 of adamw is \[0.9\]; it must be a number",
        ),
        (
            lambda: Recipe(ONE, optimizer="lion", nesterov=True),
            "options of sgd; give the options",
        ),
        (lambda: Recipe(ONE, ema=1), "ema is 1"),
        (lambda: Recipe(ONE, clip_norm=0), "clip_norm is 0"),
        (lambda: Recipe(ONE, accumulate=0), "accumulate is 0"),
        (lambda: Recipe(ONE, decay="none"), "decay is 'none'; it must be all or"),
        (lambda: Recipe(ONE, groups=("stem",)), "a group is 'stem'"),
        (lambda: Group("["), r"of a group is '\[', which is not a regular"),
        (lambda: Group("a", rate=-1), "rate of a group is -1"),
    ],
)
def test_wrong_values_are_named(make, words):
    with pytest.raises(UserError, match=words):
        make()


def test_a_recipe_can_be_changed_like_any_dataclass():
    recipe = dataclasses.replace(LESSON["convbn"], batch_size=64)
    assert recipe.batch_size == 64
    assert recipe.phases == LESSON["convbn"].phases


def test_a_line_goes_from_one_rate_to_another():
    phase = Linear(0.5, 2, start=0.2, end=1.0)
    rates = evaluate(phase.schedule(10), 20)
    middles = (np.arange(20) + 0.5) / 20  # each step has the rate in its middle
    np.testing.assert_allclose(rates, 0.1 + 0.4 * middles, rtol=1e-5)
    assert str(phase) == "2 epochs from 0.1 to 0.5"
    with pytest.raises(UserError, match=r"end is 1\.5; it must be from 0 to 1"):
        Linear(0.5, 2, end=1.5)


def test_lookahead_needs_an_average():
    with pytest.raises(UserError, match="lookahead is 5; it must be given together"):
        Recipe(ONE_EPOCH, lookahead=5)
    with pytest.raises(UserError, match="lookahead_start is 1; it must be given toge"):
        Recipe(ONE_EPOCH, lookahead_start=1)
    words = Recipe(ONE_EPOCH, lookahead=5, ema=0.95).optimizer_in_words
    assert words.endswith("moving average 0.95, Lookahead every 5")


def test_named_recipes_are_for_their_models():
    for name in ("simplenet", "resnet"):
        assert recipe_for("modern", name).epochs == LESSON[name].epochs
        assert recipe_for("airbench94", name) is None
    assert recipe_for("modern", "mine").epochs == MODERN.epochs
    assert recipe_for("lesson", "airbench") is None
    assert recipe_for(own_name("airbench"), "airbench") == AIRBENCH94


def test_the_original_recipe_differs_from_the_lessons_in_what_its_library_does():
    for model, lesson in LESSON.items():
        original = recipe_for("original", model)
        assert original.epochs == lesson.epochs
        assert original.restart_momentum
        assert not original.augmentation.last_offset
        rates, usual = (evaluate(r.schedule(40), 160) for r in (original, lesson))
        slow = rates != usual
        assert slow.sum() == slow[80:82].sum() == 2  # 5 % of the first cycle
        np.testing.assert_allclose(rates[slow], usual.max() / 100, rtol=1e-6)
    assert recipe_for("original", "airbench") is None


def test_the_rate_of_airbench94_is_the_published_one():
    """A triangle over ceil(9.9 * 48) steps, at the start of each; see the paper.

    Its unit is 11.5 for the sum over 1,024 examples, with the factor of Nesterov.
    """
    steps = AIRBENCH94.count_steps(48)
    assert steps == 476
    rates = evaluate(AIRBENCH94.schedule(48), steps)
    top = int(0.23 * steps)
    expected = np.interp(np.arange(steps), [0, top, steps], [0.2, 1, 0.07])
    highest = 11.5 / (1 + 1 / (1 - 0.85))
    np.testing.assert_allclose(rates, highest * expected, rtol=1e-5)
    assert [stage.start for stage in AIRBENCH94.stages(48)] == [0, 3 * 48]
    assert AIRBENCH94.stretched(5).lookahead_start == pytest.approx(5 * 3 * 48 / 476)


@pytest.mark.parametrize("name", FAST)
def test_a_fast_recipe_ends_with_whole_images_and_a_rate_of_0(name):
    recipe = recipe_for(name, "airbench")
    assert recipe_for(name, "convbn") is None
    steps = recipe.count_steps(50)
    rates = evaluate(recipe.schedule(50), steps)
    middles = np.arange(steps) + 0.5
    expected = np.interp(middles, [0, 0.2 * steps, steps], [0.2, 1, 0])
    np.testing.assert_allclose(rates, 0.06 * expected, rtol=1e-4)
    sizes = [stage.image_size for stage in recipe.stages(50)]
    assert sizes[-1] is None
    assert sizes[:-1] == sorted(set(sizes[:-1]))


def test_a_group_may_decay_by_a_share():
    groups = (Group("bias", rate=4, decay=0.25),)
    recipe = Recipe(ONE_EPOCH, momentum=0, weight_decay=0.5, groups=groups)
    tx = recipe.make_optimizer(lambda step: 0.1)
    params = {"bias": jnp.ones(2), "kernel": jnp.ones(2)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5)
    np.testing.assert_allclose(updates["bias"], -4 * 0.1 * 0.5 * 0.25)
    words = "bias at 4 times the rate and 0.25 times the decay"
    assert recipe.optimizer_in_words.endswith(words)
