"""Training as compiled chunks of steps; no files, no flags, and no data of its own."""

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cifar_flax.data import DataSpec, Split
from cifar_flax.data.augment import normalise, pad_images
from cifar_flax.data.dataset import check_images, check_labels
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.layers.conv import Lowering, resolve
from cifar_flax.models.check import check_image_size, check_model
from cifar_flax.models.summary import layer_rows
from cifar_flax.training import processes
from cifar_flax.training.evaluation import (
    Evaluation,
    Predictor,
    evaluate,
    replica_map,
)
from cifar_flax.training.optimizers import path_in_words
from cifar_flax.training.placement import Placement
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.stages import Stage
from cifar_flax.training.state import Totals, TrainState, ended_at, init_state
from cifar_flax.training.steps import Carry, DeviceData, TrainStep, epoch_order

# A compiled call does about this many seconds of work: long enough that its start
# costs nothing, short enough that a progress bar moves and an interrupt is heeded.
CHUNK_SECONDS = 1.0

RATES_AT_ONCE = 1024  # steps

# A model's initialisers are given images of this many pixels at most, and of more than
# half of it where there are as many: 5,000 images of 32 x 32.
INIT_PIXELS = 5_000 * 32 * 32

# What jax.random.key takes as int32.
SEED_RANGE = range(-(2**31), 2**31)


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """Where training stands after a compiled chunk of steps.

    Attributes:
      step: steps done.
      diverged_at: see ``TrainState``.
      epoch_done: whether an epoch has just ended; the figures are then of that epoch,
        and before of its steps so far.
      learning_rate: of the last step.
      train_loss: mean over the images as they were seen, float64 [R]; NaN for a
        replica that has diverged.
      train_accuracy: share classified correctly as they were seen, float64 [R]; NaN
        for a replica that has diverged.
      losses: of each step of the last chunk, float32 [R, S], the mean over its batch;
        NaN for the steps that a replica that has diverged did not do.
      images: training images of the last chunk, over all replicas.
      seconds: that the last chunk took.
      spread: the state as it is spread over the devices.
      placement: of the replicas.
    """

    step: int
    diverged_at: tuple[int | None, ...]
    epoch_done: bool
    learning_rate: float
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    losses: np.ndarray
    images: int
    seconds: float
    spread: TrainState
    placement: Placement

    @functools.cached_property
    def state(self) -> TrainState:
        """The state of all replicas, which stays as it is when training goes on."""
        return self.placement.collect(self.spread)

    def __repr__(self) -> str:
        loss = np.round(self.train_loss, 4).tolist()
        accuracy = np.round(self.train_accuracy, 4).tolist()
        return (
            f"Progress(step={self.step}, epoch_done={self.epoch_done}, "
            f"learning_rate={self.learning_rate:.3g}, train_loss={loss}, "
            f"train_accuracy={accuracy})"
        )


def next_chunk(steps: int, seconds: float) -> int:
    """Steps for the next compiled call, after one of so many took so long."""
    return max(1, int(CHUNK_SECONDS * steps / seconds))


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Seeds as a tuple; UserError where they are not different numbers of 32 bits."""
    try:
        found = tuple(int(seed) for seed in seeds)
        if found != tuple(seeds):
            raise ValueError("not whole numbers")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--seeds={seeds}: give whole numbers, as 0,1,2 (in Python a tuple)"
        ) from error
    if not found or len(set(found)) < len(found):
        raise UserError(
            f"--seeds={','.join(map(str, found))}: give one or more different numbers, "
            "as 0,1,2"
        )
    if wrong := [seed for seed in found if seed not in SEED_RANGE]:
        raise UserError(
            f"--seeds={wrong[0]}: a seed is from {SEED_RANGE[0]} to {SEED_RANGE[-1]}"
        )
    return found


def check_recipe(recipe: Recipe, spec: DataSpec) -> None:
    """UserError where they are something else, or do not fit together."""
    if not isinstance(recipe, Recipe):
        raise UserError(f"the recipe is {recipe!r}; it must be a Recipe")
    if not isinstance(spec, DataSpec):
        kind = type(spec).__name__
        raise UserError(f"the spec is a {kind}; give splits.spec, a DataSpec")
    if spec.train_size < recipe.batch_size:
        raise UserError(
            f"batch_size is {recipe.batch_size}, but there are only "
            f"{spec.train_size} training images; lower it"
        )


def _check_memory(spec: DataSpec, padding: int) -> None:
    """UserError where the training images are more than the device can hold."""
    device = jax.local_devices()[0]
    # None for a CPU, whose memory is the one that the images are in already.
    limit = (device.memory_stats() or {}).get("bytes_limit")
    height, width, channels = spec.image_shape
    size = (height + 2 * padding) * (width + 2 * padding) * channels + 4  # the label
    needed = spec.train_size * size
    if limit is not None and needed > limit:
        raise UserError(
            f"{spec.train_size:,} training images of {height} x {width} x {channels} "
            f"take {needed / 1e9:.2f} GB, and {device.device_kind} has "
            f"{limit / 1e9:.2f} GB for them; lower --train_size or --image_size"
        )


class Trainer:
    """Trains R replicas of a model, one a seed, with one recipe: a compiled program.

    The data are given to each call and not kept. Every random number is a function of
    the seed and the step. A state taken from any point of a run therefore goes on to
    the same bits, whatever the size of the chunks and in whatever process.

    A replica whose loss becomes NaN or infinite has diverged and ends with that step;
    the others go on.

    Attributes:
      layers: of the model, as ``models.summary`` counts them.
      lowering: of the model's convolutions, as it is here.
      steps_per_epoch: whole batches in the training split; the images that are left
        over differ from epoch to epoch.
      total_steps: steps of the whole recipe.
      schedule: the learning rate, a function of the step.
      stages: what phases freeze, in steps.
      train_step: what a replica does in a step in which no phase freezes anything.
      predictor: what a replica does in evaluation.
      compile_seconds: what compiling the training programs took so far.
    """

    @known_settings()
    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        spec: DataSpec,
        seeds: Sequence[int] = (0,),
        *,
        lowering: Lowering = "auto",
        mesh: jax.sharding.Mesh | None = None,
    ):
        """Makes the program and checks that it fits; nothing is compiled yet.

        Args:
          model: see ``models.calling``.
          recipe: how to train.
          spec: of the data, ``Splits.spec``.
          seeds: one a replica.
          lowering: of the model's convolutions; see ``layers.Conv``.
          mesh: devices to work on, see ``placement.make_mesh``; None for one.

        Raises:
          UserError: model, recipe, data or seeds do not fit together.
        """
        check_recipe(recipe, spec)
        _check_memory(spec, recipe.augmentation.padding)
        self.model, self.recipe, self.spec = model, recipe, spec
        self.seeds = check_seeds(seeds)
        self.layers, variables = check_model(model, spec.image_shape, spec.num_classes)
        self.placement = Placement(len(self.seeds), mesh)
        self.lowering = resolve(lowering)
        if self.placement.columns > 1 and self.lowering == "native":
            self.lowering = "product"  # the compiler cannot divide a kernel's batch
        self.steps_per_epoch = spec.train_size // recipe.batch_size
        self.total_steps = recipe.count_steps(self.steps_per_epoch)
        self.schedule = recipe.schedule(self.steps_per_epoch)
        self.compile_seconds = 0.0
        self.stages = recipe.stages(self.steps_per_epoch)
        for size in {stage.image_size for stage in self.stages}:
            if size is not None:
                check_image_size(model, variables, (size, size, spec.image_shape[-1]))
        needs_stages = recipe.restart_momentum or any(
            stage.freeze is not None for stage in self.stages
        )
        # A make_optimizer of one's own takes the schedule alone, and freezes nothing.
        given = (self.schedule, self.stages) if needs_stages else (self.schedule,)
        tx = recipe.make_optimizer(*given)
        self.train_step = TrainStep(
            model=model,
            tx=tx,
            spec=spec,
            augmentation=recipe.augmentation,
            batch_size=recipe.batch_size,
            label_smoothing=recipe.label_smoothing,
            ema=recipe.ema,
            lookahead=recipe.lookahead,
            total_steps=self.total_steps,
            is_frozen=recipe.is_frozen if recipe.groups else None,
            freeze_norms=recipe.freeze_norms,
            lowering=self.lowering,
        )
        self.predictor = Predictor(
            model,
            spec,
            lowering=self.lowering,
            tta=recipe.tta,
            placement=self.placement,
        )
        self._template = _shapes_of_state(variables, tx, recipe.ema, len(self.seeds))
        self._make_programs()

    def _make_programs(self) -> None:
        """Makes what is compiled when it is first called."""
        model, spec, tx = self.model, self.spec, self.train_step.tx
        ema, schedule = self.recipe.ema, self.schedule

        def init_of_all(seeds: jax.Array, images: jax.Array) -> TrainState:
            images = normalise(images, spec.mean, spec.std)
            return replica_map()(
                lambda seed: init_state(jax.random.key(seed), model, tx, images, ema),
                seeds,
            )

        def orders(keys: jax.Array, epoch: jax.Array) -> jax.Array:
            count = spec.train_size
            return replica_map()(lambda key: epoch_order(key, epoch, count), keys)

        self._init = jax.jit(
            init_of_all,
            # A program that runs once: optimising it would take seconds.
            compiler_options={"xla_backend_optimization_level": 0},
        )
        self._orders = jax.jit(orders)
        self._rates = jax.jit(
            lambda first: jax.vmap(schedule)(first + jnp.arange(RATES_AT_ONCE))
        )
        self._programs = {_kind(stage): self._program(stage) for stage in self.stages}

    def _program(self, stage: Stage) -> Any:
        """The training program of a stage."""
        train_step, is_frozen = self.train_step, self.recipe.is_frozen
        train_step = dataclasses.replace(train_step, image_size=stage.image_size)
        if stage.freeze is not None:
            train_step = dataclasses.replace(
                train_step, is_frozen=functools.partial(is_frozen, stage=stage)
            )
        steps = functools.partial(_train_steps, train_step, self.steps_per_epoch)
        return self.placement.map(steps, spread=2, shared=2)

    def __repr__(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return f"Trainer({type(self.model).__name__}, {self.recipe}, seeds {seeds})"

    @property
    def train_flops(self) -> int:
        """Floating-point operations of one replica's training by the whole recipe.

        A step counts three times the products of the forward pass (see
        ``models.summary``), on images of the size that they have in it.
        """
        steps: dict[int | None, int] = {}
        for stage in self.stages:
            done = steps.get(stage.image_size, 0)
            steps[stage.image_size] = done + stage.stop - stage.start
        total, channels = 0, self.spec.image_shape[-1]
        for size, count in steps.items():
            rows = self.layers
            if size is not None:
                rows = layer_rows(self.model, (size, size, channels))
            total += 3 * sum(row.flops for row in rows) * count * self.recipe.batch_size
        return total

    @known_settings()
    def init(self, split: Split | None = None) -> TrainState:
        """The state of all replicas before the first step.

        Args:
          split: the training images, some of which, evenly spaced, the model is
            initialised with; None: with images that are NaN, which does for a model
            whose initial values do not depend on them.

        Raises:
          UserError: an initial value is NaN or infinite.
        """
        if split is None:
            state = self.blank()
        else:
            self._check_split("split to start from", split)
            height, width, _ = self.spec.image_shape
            images = split.images[:: -(-len(split) * height * width // INIT_PIXELS)]
            state = self._init(jnp.asarray(self.seeds), images)
        for path, leaf in jax.tree.leaves_with_path(state.trained):
            if not np.isfinite(leaf).all():
                raise UserError(
                    f"the initial value of {path_in_words(path)} is NaN or infinite"
                    + ("; give the training split to init" if split is None else "")
                )
        return state

    @known_settings()
    def blank(self) -> TrainState:
        """The same as ``init()`` without the check, for a state that is read from disk.

        What depends on images is NaN.
        """
        images = np.full((1, *self.spec.image_shape), np.nan, np.float32)
        return self._init(jnp.asarray(self.seeds), images)

    @known_settings()
    def start_from(self, variables: dict[str, Any]) -> TrainState:
        """The state before the first step, with other variables than ``init`` draws.

        Args:
          variables: of all replicas, every array with a leading axis.

        Raises:
          UserError: they are not those of this trainer's model.
        """
        _check_tree("variables", variables, self._template.trained)
        params = variables["params"]
        return dataclasses.replace(
            self.blank(),
            params=params,
            collections={n: value for n, value in variables.items() if n != "params"},
            opt_state=jax.vmap(self.train_step.tx.init)(params),
            average=variables if self.recipe.ema else None,
        )

    @known_settings()
    def put(self, split: Split) -> DeviceData:
        """A training split on the device, padded as the augmentation needs it.

        Raises:
          UserError: it is not the training split that the program was made for.
        """
        self._check_split("training split", split)
        if len(split) != self.spec.train_size:
            raise UserError(
                f"the training split has {len(split)} images; this trainer was made "
                f"for {self.spec.train_size}"
            )
        padded = pad_images(split.images, self.train_step.augmentation)
        data = jnp.asarray(padded), jnp.asarray(split.labels)
        return self.placement.share(data)

    @known_settings()
    def rates(self, steps: int) -> np.ndarray:
        """The learning rates of the first steps of the recipe, float32 [steps]."""
        # In pieces of one length, which are compiled once.
        pieces = [
            np.asarray(self._rates(jnp.int32(first)))
            for first in range(0, steps, RATES_AT_ONCE)
        ]
        return np.concatenate([*pieces, np.empty(0, np.float32)])[:steps]

    def run(self, state: TrainState, split: Split) -> Iterator[Progress]:
        """Trains from a state to the end of the recipe.

        Args:
          state: from ``init``, from a ``Progress``, or restored; it stays as it is.
          split: the training images.

        Yields:
          Where training stands, after every chunk of about ``CHUNK_SECONDS`` and at
          the end of every epoch; for the last time when all replicas have diverged.

        Raises:
          UserError: state or images do not fit this trainer.
        """
        _check_tree("state", state, self._template)
        return self._run(state, self.put(split))

    @known_settings()
    def evaluate(self, state: TrainState, split: Split) -> Evaluation:
        """Exact loss and accuracy of every replica on a split.

        Raises:
          UserError: state or images do not fit this trainer.
        """
        self._check_split("split to evaluate", split)
        wanted = self._template.variables
        variables = getattr(state, "variables", None)
        _check_tree("state", variables, wanted)
        return evaluate(self.predictor, variables, split)

    def _run(self, state: TrainState, data: DeviceData) -> Iterator[Progress]:
        place, step, chunk, epoch_end = self.placement, int(state.step.max()), 1, 0
        done, keys, spread = np.asarray(state.step), state.key, place.spread(state)
        going = not state.all_diverged
        while step < self.total_steps and going:
            with known_settings():
                stage = next(stage for stage in self.stages if step < stage.stop)
                program, start = self._programs[_kind(stage)], time.perf_counter()
                if not isinstance(program, jax.stages.Compiled):
                    args = (spread, self._spread_order(keys, 0), data, np.int32(0))
                    program = program.lower(*args).compile()
                    self._programs[_kind(stage)] = program
                    self.compile_seconds += time.perf_counter() - start
                    start = time.perf_counter()
                first = step - step % self.steps_per_epoch
                if step >= epoch_end:
                    epoch_end = min(first + self.steps_per_epoch, self.total_steps)
                    orders = self._spread_order(keys, step // self.steps_per_epoch)
                stop = min(step + chunk, epoch_end, stage.stop)
                spread, losses = program(spread, orders, data, np.int32(stop))
                told = (spread.totals, spread.step, losses)
                totals, done_now, losses = jax.device_get(place.collect(told))  # waits
                seconds = time.perf_counter() - start
                chunk = int(processes.of_first(next_chunk(stop - step, seconds)))
                images = int((done_now - done).sum()) * self.recipe.batch_size
                done, before, step = done_now, step, int(done_now.max())
                if epoch_done := step == epoch_end:
                    cleared = spread.totals.cleared()
                    spread = dataclasses.replace(spread, totals=cleared)
                diverged_at = ended_at(totals, done)
                lost = np.array([at is not None for at in diverged_at])
                going = not lost.all()
                progress = Progress(
                    step=step,
                    diverged_at=diverged_at,
                    epoch_done=epoch_done,
                    learning_rate=float(self.schedule(step - 1)),
                    train_loss=np.where(lost, np.nan, totals.loss / totals.count),
                    train_accuracy=np.where(
                        lost, np.nan, totals.correct / totals.count
                    ),
                    losses=losses[:, before - first : step - first],
                    images=images,
                    seconds=seconds,
                    spread=spread,
                    placement=place,
                )
            yield progress

    def _spread_order(self, keys: jax.Array, epoch: int) -> jax.Array:
        """The orders of an epoch, [R, N], where the replicas are."""
        return self.placement.spread(self._orders(keys, np.int32(epoch)))

    def _check_split(self, what: str, split: Split) -> None:
        if not isinstance(split, Split):
            raise UserError(f"the {what} is a {type(split).__name__}; give a Split")
        check_images(what, split.images, self.spec.image_shape)
        check_labels(what, split.labels, len(split), self.spec.num_classes)


def _kind(stage: Stage) -> tuple[str | None, int | None]:
    """What the program of a stage is compiled for."""
    return stage.freeze, stage.image_size


def _train_steps(
    train_step: TrainStep,
    steps_per_epoch: int,
    states: TrainState,
    orders: jax.Array,
    data: DeviceData,
    stop: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """Takes R replicas on to step ``stop``, within the epoch that ``orders`` are of.

    Returns:
      The states, and the loss of each step by its place in the epoch, [R, S]; NaN for
      the steps that were not done.
    """

    def of_one(replica: tuple[TrainState, jax.Array]) -> Carry:
        state, order = replica
        return lax.while_loop(
            lambda carry: (carry[0].step < stop) & jnp.isfinite(carry[0].totals.loss),
            functools.partial(train_step, order=order, data=data),
            (state, jnp.full(steps_per_epoch, jnp.nan)),
        )

    return replica_map()(of_one, (states, orders))


def _shapes_of_state(
    variables: Any, tx: optax.GradientTransformation, ema: float, replicas: int
) -> TrainState:
    """A state of R replicas as shapes, without another trace of the model."""
    params = variables["params"]
    one = TrainState(
        step=jax.eval_shape(lambda: jnp.int32(0)),
        params=params,
        collections={n: value for n, value in variables.items() if n != "params"},
        opt_state=jax.eval_shape(tx.init, params),
        key=jax.eval_shape(lambda: jax.random.key(0)),
        totals=jax.eval_shape(Totals.zero),
        average=variables if ema else None,
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((replicas, *leaf.shape), leaf.dtype), one
    )


def _check_tree(what: str, tree: Any, wanted: Any) -> None:
    """UserError where the arrays of a tree are not those that the program takes."""
    found, expected = (
        {
            jax.tree_util.keystr(path): f"{leaf.dtype} {list(leaf.shape)}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(one)
            if hasattr(leaf, "shape")
        }
        for one in (tree, wanted)
    )
    if different := sorted(found.items() ^ expected.items()):
        path = different[0][0]
        raise UserError(
            f"the {what} is not of this trainer: {path} is "
            f"{found.get(path, 'missing')}; it must be "
            f"{expected.get(path, 'left out')}"
        )
