"""Training: what the results depend on, and what they must not depend on."""

import dataclasses
import functools
import gc
import types
import weakref
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cifar_flax.data.augment import NO_AUGMENTATION, Augmentation, mix, normalise
from cifar_flax.data.splits import Split, Splits
from cifar_flax.errors import UserError
from cifar_flax.layers import BatchNorm
from cifar_flax.models import SimpleNet, create_model
from cifar_flax.models.streams import Stream
from cifar_flax.training import programs
from cifar_flax.training import trainer as trainer_module
from cifar_flax.training.evaluation import Predictor
from cifar_flax.training.losses import cross_entropy
from cifar_flax.training.phases import Constant, Sgdr
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.state import init_state
from cifar_flax.training.steps import TrainStep, epoch_order
from cifar_flax.training.trainer import Trainer

RECIPE = Recipe((Constant(0.02, 2), Sgdr(0.05, 1)), batch_size=16)


class NormNet(nn.Module):
    """Batch norm between dense layers on 64 patches, which compiles in a second."""

    @nn.compact
    def __call__(self, images, *, train):
        patches = images.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
        x = nn.relu(nn.Dense(8, name="stem")(patches))
        x = BatchNorm()(x, train=train)
        return nn.Dense(4)(x.reshape(len(x), -1))


def make_trainer(splits, seeds=(0,), recipe=RECIPE, model=None, **settings):
    return Trainer(model or NormNet(), recipe, splits.spec, seeds, **settings)


def host(state):
    """Copies a state to the host, with keys as arrays."""
    words = state.replace(key=jax.random.key_data(state.key))
    return jax.tree.map(np.array, words)


def train(trainer, splits, state=None):
    """Trains to the end; returns the metrics of each epoch and the last state."""
    figures = []
    state = trainer.init() if state is None else state
    for progress in trainer.run(state, splits.train):
        state = progress.state
        if progress.epoch_done:
            figures.append(
                (progress.step, progress.train_loss, progress.train_accuracy)
            )
    return figures, host(state)


def assert_same_bits(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_it_learns(splits):
    recipe = Recipe((Constant(3e-4, 6),), batch_size=16, momentum=0)
    trainer = make_trainer(splits, recipe=recipe, model=SimpleNet(4))
    figures, _ = train(trainer, splits)
    first, last = figures[0], figures[-1]
    assert trainer.steps_per_epoch == 6
    assert last[0] == trainer.total_steps == 36
    losses = [line[1][0] for line in figures]
    assert losses == sorted(losses, reverse=True)
    assert last[2] > first[2] > 1 / 4


def test_same_seed_same_bits_other_seed_other_ones(splits):
    one, again, other = (
        train(make_trainer(splits, (seed,)), splits)[1] for seed in (3, 3, 4)
    )
    assert_same_bits(one, again)
    assert np.abs(one.params["stem"]["kernel"] - other.params["stem"]["kernel"]).max()


def test_bits_do_not_depend_on_the_size_of_the_chunks(splits, monkeypatch):
    expected = train(make_trainer(splits), splits)
    monkeypatch.setattr(trainer_module, "CHUNK_SECONDS", 0.0)  # one step per chunk
    assert_same_bits(train(make_trainer(splits), splits), expected)


@pytest.mark.parametrize("stop", [4, 6])  # within an epoch, and at its end
def test_a_run_goes_on_from_any_step_to_the_same_bits(splits, monkeypatch, stop):
    figures, expected = train(make_trainer(splits), splits)
    monkeypatch.setattr(trainer_module, "CHUNK_SECONDS", 0.0)
    for progress in make_trainer(splits).run(make_trainer(splits).init(), splits.train):
        if progress.step == stop:
            break
    rest, state = train(make_trainer(splits), splits, progress.state)
    assert_same_bits(state, expected)
    assert_same_bits(rest, [line for line in figures if line[0] > stop])


@pytest.mark.slow
def test_a_replica_beside_others_is_the_one_alone(splits):
    figures, together = train(make_trainer(splits, (5, 1, 7)), splits)
    for i, seed in enumerate((5, 1, 7)):
        alone_figures, alone = train(make_trainer(splits, (seed,)), splits)
        assert_same_bits(
            jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together), alone
        )
        assert alone_figures[-1][1] == figures[-1][1][i]


@pytest.mark.slow
def test_vmap_as_on_accelerators_gives_the_same_up_to_rounding(splits, monkeypatch):
    recipe = Recipe((Constant(0.02, 1),), batch_size=16)
    expected = train(make_trainer(splits, (0, 1), recipe), splits)[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    mapped = train(make_trainer(splits, (0, 1), recipe), splits)[1]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3),
        mapped.params,
        expected.params,
    )


TINY = SimpleNet(4, features=(3,))


@pytest.mark.parametrize("refusal", ["before it runs", "by the compiler"])
def test_seeds_that_do_not_fit_in_memory_train_in_groups(splits, monkeypatch, refusal):
    """Each of five seeds reaches what it reaches in the loop of a CPU."""
    recipe, seeds = Recipe((Constant(0.02, 1),), batch_size=16), (0, 1, 2, 3, 4)
    expected = train(make_trainer(splits, seeds, recipe, TINY), splits)[1]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    trainer = make_trainer(splits, seeds, recipe, TINY)
    compiled, training = [], programs.training
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
    no_memory = mock.Mock(compile=mock.Mock(side_effect=error))

    def watched(step, place, backend):
        compiled.append(place.side_by_side)
        if refusal == "by the compiler" and place.side_by_side != 2:
            return types.SimpleNamespace(lower=lambda *_: no_memory)
        return training(step, place, backend)

    def fits(program):
        return refusal == "by the compiler" or compiled[-1] == 2

    monkeypatch.setattr(programs, "training", watched)
    monkeypatch.setattr(programs, "_fits", fits)
    found = train(trainer, splits)[1]
    assert compiled == [None, 3, 2]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3),
        *(found.params, expected.params),
    )
    one = trainer.evaluate(found, splits.test).logits
    assert trainer.predictor.placement.side_by_side == 2
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    other = make_trainer(splits, seeds, recipe, TINY).evaluate(found, splits.test)
    np.testing.assert_allclose(one, other.logits, rtol=1e-4, atol=1e-4)


def test_one_seed_that_does_not_fit_in_memory_is_compiled_once(splits, monkeypatch):
    """It may fit after all; else the error of the device says what is full."""
    compiled, training = [], programs.training

    def watched(*args):
        compiled.append(args)
        return training(*args)

    monkeypatch.setattr(programs, "training", watched)
    monkeypatch.setattr(programs, "_fits", lambda program: False)
    recipe = Recipe((Constant(0.02, 1),), batch_size=16)
    train(make_trainer(splits, (3,), recipe, TINY), splits)
    assert len(compiled) == 1


def test_a_program_fits_if_its_temporaries_and_results_do(monkeypatch):
    """Arguments are in use already; results may take the place of arguments."""
    needs = types.SimpleNamespace(
        temp_size_in_bytes=70, output_size_in_bytes=30, alias_size_in_bytes=10
    )
    program = types.SimpleNamespace(memory_analysis=lambda: needs)
    stats = {"bytes_in_use": 10}
    device = types.SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(jax, "local_devices", lambda *_: [device])
    assert programs._fits(program)  # no limit is known
    for limit, fits in ((100, True), (99, False)):
        stats["bytes_limit"] = limit
        assert programs._fits(program) == fits


@pytest.fixture
def poisoned(splits, monkeypatch):
    """Two replicas after three of six steps; the second has weights of NaN."""
    monkeypatch.setattr(trainer_module, "CHUNK_SECONDS", 0.0)
    trainer = make_trainer(splits, (5, 1), model=TINY)
    for progress in trainer.run(trainer.init(), splits.train):
        if progress.step == 3:
            state = progress.state
            break

    def make():
        copied = jax.tree.map(jnp.array, state)
        head = copied.params["head"]
        head["kernel"] = head["kernel"].at[1].set(jnp.nan)
        return copied

    return make


@pytest.mark.parametrize(
    ("chunk_seconds", "backend"), [(0.0, "cpu"), (1.0, "cpu"), (1.0, "gpu")]
)
def test_a_replica_that_diverges_ends_there_and_the_others_go_on(
    splits, poisoned, monkeypatch, chunk_seconds, backend
):
    _, expected = train(make_trainer(splits, (5,), model=TINY), splits)
    monkeypatch.setattr(trainer_module, "CHUNK_SECONDS", chunk_seconds)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # vmap, or a loop
    figures, state = train(make_trainer(splits, (5, 1), model=TINY), splits, poisoned())
    assert [line[0] for line in figures] == [6, 12, 18]
    for _, *values in figures:
        assert np.isfinite([value[0] for value in values]).all()
        assert np.isnan([value[1] for value in values]).all()
    assert state.step.tolist() == [18, 4]
    assert state.diverged_at == (None, 4)
    assert not state.all_diverged
    first = jax.tree.map(lambda leaf: leaf[:1], state)
    if backend == "cpu":
        assert_same_bits(first, expected)
    else:
        np.testing.assert_allclose(
            first.params["head"]["kernel"], expected.params["head"]["kernel"], atol=2e-3
        )


def test_a_replica_that_has_ended_stays_so_when_the_run_goes_on(
    splits, poisoned, monkeypatch
):
    trainer = make_trainer(splits, (5, 1), model=TINY)
    _, expected = train(trainer, splits, poisoned())
    for progress in trainer.run(poisoned(), splits.train):
        if progress.step == 14:
            break
    _, state = train(trainer, splits, progress.state)
    assert_same_bits(state, expected)


@pytest.mark.parametrize("chunk_seconds", [0.0, 1.0])
def test_training_stops_where_all_have_diverged(splits, monkeypatch, chunk_seconds):
    monkeypatch.setattr(trainer_module, "CHUNK_SECONDS", chunk_seconds)
    recipe = Recipe((Constant(1e30, 3),), batch_size=16)
    trainer = make_trainer(splits, (0, 1), recipe, SimpleNet(4))
    *_, last = trainer.run(trainer.init(), splits.train)
    assert last.step == max(last.state.diverged_at) < trainer.steps_per_epoch
    assert not last.epoch_done
    assert last.state.all_diverged
    assert not list(trainer.run(last.state, splits.train))


def test_data_and_trainer_are_gone_with_their_last_user(splits, monkeypatch):
    put, given = Trainer.put, []

    def noted(self, split):
        data = put(self, split)
        given.append(weakref.ref(data[0]))
        return data

    monkeypatch.setattr(Trainer, "put", noted)
    trainer = make_trainer(splits)
    _, state = train(trainer, splits)
    trainer.evaluate(state, splits.test)
    program = weakref.ref(trainer)
    gc.disable()
    try:
        assert given[0]() is None
        del trainer
        assert program() is None
    finally:
        gc.enable()


def test_an_epoch_sees_every_image_once():
    """The model sums the pixels that it sees, and the images are powers of two."""
    count, batch = 12, 4
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, :, :, 0] = np.arange(count)[:, None, None]
    split = Split(images, np.zeros(count, np.int32))
    seen = []

    class Recorder(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            jax.debug.callback(lambda v: seen.append(np.array(v)), x[:, 0, 0, 0])
            bias = self.param("bias", nn.initializers.zeros, (2,))
            return jnp.zeros((x.shape[0], 2)) + bias

    splits = Splits(split, None, split, 2, (0.0,) * 3, (1 / 255,) * 3)
    trainer = make_trainer(
        splits,
        recipe=Recipe(
            (Constant(0.1, 3),), batch_size=batch, augmentation=NO_AUGMENTATION
        ),
        model=Recorder(),
    )
    state = trainer.init()
    jax.effects_barrier()
    seen.clear()
    train(trainer, splits, state)
    jax.effects_barrier()
    epochs = np.concatenate(seen).round().astype(int).reshape(3, count)
    assert (np.sort(epochs) == np.arange(count)).all()
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[1] != epochs[2]).any()


def test_train_figures_are_means_over_the_images_seen(splits):
    """With rate 0 and no augmentation they are those of the initial model."""
    recipe = Recipe(  # 96 images: three batches
        (Constant(0.0, 1),), batch_size=32, augmentation=NO_AUGMENTATION
    )
    trainer = make_trainer(splits, recipe=recipe, model=SimpleNet(4))
    expected = trainer.evaluate(trainer.init(), splits.train)
    (line,), state = train(trainer, splits)
    assert state.totals.count == 0  # the sums of the next epoch start from zero
    np.testing.assert_allclose(line[1], expected.loss, rtol=1e-5)
    np.testing.assert_allclose(line[2], expected.accuracy, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [7, 25, 100])
def test_evaluation_is_exact_for_any_batch_size(splits, batch_size):
    trainer = make_trainer(splits, (0, 1))
    trainer.predictor = Predictor(trainer.model, splits.spec, batch_size)
    state = trainer.init()
    found = trainer.evaluate(state, splits.test)
    assert found.logits.shape == (2, 25, 4)
    images = normalise(jnp.asarray(splits.test.images), splits.mean, splits.std)
    labels = splits.test.labels
    for i in range(2):
        variables = jax.tree.map(lambda leaf, i=i: leaf[i], state.variables)
        logits = np.asarray(trainer.model.apply(variables, images, train=False))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        np.testing.assert_allclose(found.logits[i], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.loss[i], losses.mean(), rtol=1e-5)
        assert found.accuracy[i] == (logits.argmax(-1) == labels).mean()


def test_one_step_is_the_gradient_step_of_the_mean_loss(splits):
    model = SimpleNet(4)
    how = {"momentum": 0, "label_smoothing": 0.1, "augmentation": NO_AUGMENTATION}
    recipe = Recipe((Constant(0.5, 1),), batch_size=8, **how)
    step = TrainStep(model, recipe, splits.spec)
    data = jnp.asarray(splits.train.images), jnp.asarray(splits.train.labels)
    shape, tx = (1, 32, 32, 3), step.make_tx()
    state = init_state(jax.random.key(0), model, tx, jnp.zeros(shape))
    images = normalise(data[0][8:16], splits.mean, splits.std)

    def loss(params):
        logits = model.apply({"params": params}, images, train=True)
        return cross_entropy(logits, data[1][8:16], 0.1).mean()

    grads = jax.grad(loss)(state.params)
    # The second batch of an order of three.
    carry = (state.replace(step=jnp.int32(4)), jnp.zeros(3))
    after, losses = jax.jit(step)(carry, jnp.arange(24), data)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(
            new, old - 0.5 * grad, rtol=1e-5, atol=1e-6
        ),
        after.params,
        state.params,
        grads,
    )
    assert after.step == 5
    assert after.totals.count == 8
    np.testing.assert_allclose(after.totals.loss / 8, loss(state.params), rtol=1e-5)
    np.testing.assert_allclose(losses, [0, loss(state.params), 0], rtol=1e-5)


def test_cross_entropy_is_its_formula():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 5))
    labels = rng.integers(0, 5, 6)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = 0.8 * np.eye(5)[labels] + 0.2 / 5
    np.testing.assert_allclose(
        cross_entropy(jnp.asarray(logits), jnp.asarray(labels)),
        -log_p[np.arange(6), labels],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        cross_entropy(jnp.asarray(logits), jnp.asarray(labels), 0.2),
        -(targets * log_p).sum(-1),
        rtol=1e-5,
    )


def test_a_batch_larger_than_the_training_split_is_refused(splits):
    with pytest.raises(UserError, match=r"batch_size is 97.*96 training images"):
        make_trainer(splits, recipe=Recipe((Constant(0.1, 1),), batch_size=97))


def test_augmentation_reaches_the_model(splits):
    plain, varied = (
        train(make_trainer(splits, recipe=recipe), splits)[1]
        for recipe in (
            dataclasses.replace(RECIPE, augmentation=NO_AUGMENTATION),
            RECIPE,
        )
    )
    assert np.abs(
        plain.params["stem"]["kernel"] - varied.params["stem"]["kernel"]
    ).max()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"mixup": 0.5},
        {"cutmix": 1.0},
        {"cutout": 8, "contrast": 0.2},
    ],
)
def test_the_loss_of_a_step_is_of_the_images_and_targets_as_mixed(splits, changes):
    recipe = dataclasses.replace(
        RECIPE, augmentation=Augmentation(**changes), label_smoothing=0.1
    )
    trainer = make_trainer(splits, recipe=recipe, model=SimpleNet(4))
    step, data = trainer.train_step, trainer.put(splits.train)
    state = jax.tree.map(lambda leaf: leaf[0], trainer.init())
    order = jnp.arange(len(splits.train))
    images, labels, _, key = step.batch(state, order, data)
    share, before = 1.0, np.roll(labels, 1)
    if "cutout" not in changes:
        images, share = mix(Stream.MIX.of(key), images, recipe.augmentation)
    logits = SimpleNet(4).apply(state.variables, images, train=True)
    own, other = (cross_entropy(logits, jnp.asarray(y), 0.1) for y in (labels, before))
    expected = (share * own + (1 - share) * other).sum()
    after, losses = jax.jit(step)((state, jnp.zeros(1)), order, data)
    assert float(after.totals.loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(losses[0]) == pytest.approx(float(expected) / len(labels), rel=1e-5)
    if share != 1.0:
        assert float(losses[0]) != pytest.approx(float(own.mean()), rel=1e-3)


@pytest.mark.slow
def test_alternating_flips_mirror_an_image_in_every_other_epoch(splits):
    """The images of a step show both sides over two epochs."""
    augmentation = Augmentation(padding=0, alternate=True)
    recipe = dataclasses.replace(RECIPE, augmentation=augmentation)
    trainer = make_trainer(splits, recipe=recipe, model=SimpleNet(4))
    data = trainer.put(splits.train)
    state = jax.tree.map(lambda leaf: leaf[0], trainer.init())
    order = jnp.arange(len(splits.train))
    seen = []
    for step in (0, trainer.steps_per_epoch, 2 * trainer.steps_per_epoch):
        now = dataclasses.replace(state, step=jnp.int32(step))
        seen.append(np.asarray(trainer.train_step.batch(now, order, data)[0]))
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_array_equal(seen[1], seen[0][:, :, ::-1])


@pytest.mark.parametrize("tta", ["flip", "multicrop"])
def test_test_time_augmentation_is_the_mean_of_its_views(splits, tta):
    model = NormNet()
    state = make_trainer(splits).init()
    images = splits.test.images

    def logits(images):
        return Predictor(model, splits.spec)(state.variables, images)

    views = [(1.0, images)]
    if tta == "multicrop":
        padded = np.pad(images, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="reflect")
        views = [(0.5, images), (0.25, padded[:, 2:, 2:]), (0.25, padded[:, :-2, :-2])]
    expected = sum(
        weight / 2 * (logits(view) + logits(view[:, :, ::-1])) for weight, view in views
    )
    predictor = Predictor(model, splits.spec, tta=tta)
    found = predictor(state.variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if tta == "flip":
        mirrored = predictor(state.variables, images[:, :, ::-1])
        np.testing.assert_allclose(mirrored, found, atol=1e-5)
    recipe = dataclasses.replace(RECIPE, tta=tta)
    evaluation = make_trainer(splits, recipe=recipe).evaluate(state, splits.test)
    np.testing.assert_array_equal(evaluation.logits, found)


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_the_training_program_can_be_made_for_any_platform(splits, platform):
    """This works on a machine with only a CPU; the kernels are only for a CPU."""
    model = create_model("convbn", 4, features=(2, 4, 4, 4, 4))
    trainer = make_trainer(splits, model=model)
    data, state = trainer.put(splits.train), trainer.init()
    orders = jnp.arange(len(splits.train))[None]
    steps = functools.partial(programs.train_steps, trainer.train_step)
    traced = jax.jit(steps).trace(state, orders, data, jnp.int32(1))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    kernels = "custom_call @cifar_flax" in program
    assert kernels == (platform == "cpu" and trainer.lowering == "native")
    # Three convolutions per layer, except for the gradient of the images.
    expected = 0 if platform == "cpu" else 14
    if trainer.lowering == "native":
        assert program.count("stablehlo.convolution") == expected


def test_images_that_the_device_cannot_hold_are_refused(splits, monkeypatch):
    """Their size includes a border of 4 pixels and labels of 4 bytes."""
    recipe = dataclasses.replace(RECIPE, augmentation=Augmentation(padding=4))
    needed = splits.spec.train_size * (40 * 40 * 3 + 4)
    stats = {"bytes_limit": needed}
    device = types.SimpleNamespace(memory_stats=lambda: stats, device_kind="A 1")
    with monkeypatch.context() as patch:
        patch.setattr(jax, "local_devices", lambda *_: [device])
        make_trainer(splits, recipe=recipe)
        stats["bytes_limit"] = needed - 1
        with pytest.raises(UserError, match=r"32 x 32 x 3 take 0\.00 GB, and A 1 has"):
            make_trainer(splits, recipe=recipe)


class Centred(nn.Module):
    """Subtracts the mean of the images that it is initialised with."""

    @nn.compact
    def __call__(self, images, *, train):
        mean = self.param("mean", lambda key: images.mean((0, 1, 2)))
        return nn.Dense(4)((images - mean).mean((1, 2)))


def test_initial_values_may_depend_on_the_training_images(splits, monkeypatch):
    monkeypatch.setattr(trainer_module, "INIT_PIXELS", 40 * 32 * 32)
    trainer = make_trainer(splits, (0, 1), model=Centred())
    pictures = splits.train.images
    by_class = Split(pictures, np.sort(splits.train.labels))
    assert len(pictures) == 96  # the first, or every third if these lack a class
    for split, given in ((splits.train, pictures[:40]), (by_class, pictures[::3])):
        images = normalise(given, splits.mean, splits.std)
        mean = trainer.init(split).params["mean"]
        np.testing.assert_allclose(mean, [images.mean((0, 1, 2))] * 2, atol=1e-5)
    with pytest.raises(UserError, match=r"params/mean is NaN or .*; give the training"):
        trainer.init()
    with pytest.raises(UserError, match="the split to start from is a ndarray"):
        trainer.init(splits.train.images)


def test_initial_values_of_other_models_do_not_depend_on_images(splits):
    trainer = make_trainer(splits)
    assert_same_bits(host(trainer.init()), host(trainer.init(splits.train)))


@pytest.mark.slow
@pytest.mark.parametrize(("ema", "start"), [(0.5, None), (0.9, None), (0.9, 0.5)])
def test_lookahead_is_the_average_that_training_goes_on_from(splits, ema, start):
    """The reference is plain steps with explicitly replaced variables.

    With a start after 3 steps the average begins after 5, and epochs of 6 end with it.
    """
    recipe = Recipe((Constant(0.05, 2),), batch_size=16, momentum=0.5)
    fields = {"ema": ema, "lookahead": 5, "lookahead_start": start}
    slow = make_trainer(splits, recipe=dataclasses.replace(recipe, **fields))
    _, found = train(slow, splits)
    plain = make_trainer(splits, recipe=recipe)
    data, state = plain.put(splits.train), jax.tree.map(lambda x: x[0], plain.init())
    average, step = state.trained, jax.jit(plain.train_step)
    for done in range(1, 13):
        order = epoch_order(state.key, (done - 1) // 6, 96)
        state, _ = step((state, jnp.zeros(6)), order, data)
        if done <= 5 and start:
            average = state.trained
        elif done % 5 == 0:
            keep = ema**5 * (done / 12) ** 3
            average = jax.tree.map(
                lambda a, b, keep=keep: keep * a + (1 - keep) * b,
                average,
                state.trained,
            )
        if done % 5 == 0 or (start and done % 6 == 0):
            collections = {n: v for n, v in average.items() if n != "params"}
            state = state.replace(params=average["params"], collections=collections)
    for ours, expected in [(found.variables, average), (found.trained, state.trained)]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-6),
            ours,
            expected,
        )


@pytest.mark.slow
def test_a_phase_may_train_on_smaller_images(splits):
    phases = (Constant(0.05, 1, image_size=16), Constant(0.05, 1))
    recipe, model = Recipe(phases, batch_size=16), create_model("convnet", 4)
    trainer = make_trainer(splits, recipe=recipe, model=model)
    data, state = trainer.put(splits.train), trainer.init()
    one = jax.tree.map(lambda leaf: leaf[0], state)
    order = jnp.arange(len(splits.train))
    large = trainer.train_step.batch(one, order, data)[0]
    small = dataclasses.replace(trainer.train_step, image_size=16)
    small = small.batch(one, order, data)[0]
    # Halved by a triangle of four pixels: 1, 3, 3, 1; at the border of three.
    inside = np.asarray(large)[:, 1:-1]
    weights = np.float32([1, 3, 3, 1]) / 8
    rows = sum(w * inside[:, i : i + 28 : 2] for i, w in enumerate(weights))
    rows = rows[:, :, 1:-1]
    expected = sum(w * rows[:, :, i : i + 28 : 2] for i, w in enumerate(weights))
    np.testing.assert_allclose(small[:, 1:-1, 1:-1], expected, atol=1e-5)
    assert [stage.image_size for stage in trainer.stages] == [16, None]
    small_flops, flops = (
        2 * (a**2 * 27 * 20 + b**2 * 180 * 40 + c**2 * 360 * 80 + 80 * 4)
        for a, b, c in ((7, 3, 1), (15, 7, 3))
    )
    assert trainer.train_flops == 3 * 6 * 16 * (small_flops + flops)
    figures, last = train(trainer, splits)
    assert [line[0] for line in figures] == [6, 12]
    assert np.isfinite(last.params["head"]["kernel"]).all()


def test_a_model_that_cannot_take_smaller_images_is_refused_at_once(splits):
    recipe = Recipe((Constant(0.05, 1, image_size=16),), batch_size=16)
    with pytest.raises(UserError, match=r"SimpleNet .* images of 16 x 16 pixels"):
        make_trainer(splits, recipe=recipe, model=TINY)
