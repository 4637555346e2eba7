"""Trains replicas in compiled chunks of steps, without files and flags."""

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

# A compiled call takes about this many seconds. This is long enough to make the cost of
# a call negligible, and short enough for a progress bar and for an interrupt.
CHUNK_SECONDS = 1.0

RATES_AT_ONCE = 1024  # steps

# A model's initialisers get images of at most this many pixels in total, which is 5,000
# images of 32 x 32, and more than half of it if there are enough images.
INIT_PIXELS = 5_000 * 32 * 32

# The seeds that jax.random.key takes as int32.
SEED_RANGE = range(-(2**31), 2**31)


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """The progress of training after a compiled chunk of steps.

    Attributes:
      step: number of steps done.
      diverged_at: see ``TrainState``.
      epoch_done: whether an epoch has just ended. Loss and accuracy are means over that
        epoch; otherwise over the steps of the current epoch so far.
      learning_rate: rate of the last step.
      train_loss: mean loss of the training images during training, float64 [R]; NaN
        for a replica that has diverged.
      train_accuracy: share of the training images classified correctly during training,
        float64 [R]; NaN for a replica that has diverged.
      losses: mean loss of the batch of each step of the last chunk, float32 [R, S]; NaN
        for the steps that a diverged replica did not do.
      images: number of training images of the last chunk, over all replicas.
      seconds: duration of the last chunk.
      spread: the state, spread over the devices.
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
        """The state of all replicas. Further training does not change it."""
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
    """Returns the steps of the next compiled call from the time of the last one."""
    return max(1, int(CHUNK_SECONDS * steps / seconds))


def check_seeds(seeds: Any) -> tuple[int, ...]:
    """Returns seeds as a tuple; raises a UserError unless they differ and are int32."""
    try:
        found = tuple(int(seed) for seed in seeds)
        if found != tuple(seeds):
            raise ValueError("not whole numbers")
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--seeds={seeds}: give whole numbers, such as 0,1,2 (in Python a tuple)"
        ) from error
    if not found or len(set(found)) < len(found):
        raise UserError(
            f"--seeds={','.join(map(str, found))}: give one or more different numbers, "
            "such as 0,1,2"
        )
    if wrong := [seed for seed in found if seed not in SEED_RANGE]:
        raise UserError(
            f"--seeds={wrong[0]}: a seed must be from {SEED_RANGE[0]} to "
            f"{SEED_RANGE[-1]}"
        )
    return found


def check_recipe(recipe: Recipe, spec: DataSpec) -> None:
    """Raises a UserError if recipe and data are not valid or do not fit together."""
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
    """Raises a UserError if the device cannot hold the training images."""
    device = jax.local_devices()[0]
    # A CPU has no limit; the images are in its memory already.
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
    """Trains R replicas of a model, one per seed, with one recipe.

    Each call takes the data; the trainer does not keep them. Every random number is a
    function of the seed and the step. Training from any state of a run therefore gives
    the same bits, for any size of the chunks and in any process.

    A replica whose loss becomes NaN or infinite has diverged. It ends with that step,
    and the others continue.

    Attributes:
      layers: of the model, as ``models.summary`` counts them.
      lowering: of the model's convolutions, resolved for this device.
      steps_per_epoch: number of whole batches in the training split. The images that do
        not fill a batch differ from epoch to epoch.
      total_steps: number of steps of the whole recipe.
      schedule: the learning rate, a function of the step.
      stages: the stages of the recipe.
      train_step: the training step of one replica if no phase freezes parameters.
      predictor: computes logits in evaluation.
      compile_seconds: time spent so far on compiling the training programs.
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
        """Makes the programs and checks the arguments; nothing is compiled yet.

        Args:
          model: see ``models.calling``.
          recipe: how to train.
          spec: of the data, ``Splits.spec``.
          seeds: one per replica.
          lowering: of the model's convolutions; see ``layers.Conv``.
          mesh: the devices, see ``placement.make_mesh``; None for a single device.

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
            self.lowering = "product"  # the compiler cannot divide the kernels' batches
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
        # A custom make_optimizer takes only the schedule; its recipe has no such
        # stages.
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
        """Makes the programs, which are compiled when they are first called."""
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
            # The program runs once, and optimising it would take seconds.
            compiler_options={"xla_backend_optimization_level": 0},
        )
        self._orders = jax.jit(orders)
        self._rates = jax.jit(
            lambda first: jax.vmap(schedule)(first + jnp.arange(RATES_AT_ONCE))
        )
        self._programs = {_kind(stage): self._program(stage) for stage in self.stages}

    def _program(self, stage: Stage) -> Any:
        """Makes the training program of a stage."""
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
        """Floating-point operations of one replica's training with the whole recipe.

        A step counts as three times the multiplications and additions of the forward
        pass (see ``models.summary``), on images of the size of its phase.
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
        """Returns the state of all replicas before the first step.

        Args:
          split: the training images; evenly spaced ones initialise the model. None:
            images of NaN do, which is enough for a model whose initial values do not
            depend on them.

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
        """Returns ``init()`` without its check, as a template for a restored state.

        Initial values that depend on images are NaN.
        """
        images = np.full((1, *self.spec.image_shape), np.nan, np.float32)
        return self._init(jnp.asarray(self.seeds), images)

    @known_settings()
    def start_from(self, variables: dict[str, Any]) -> TrainState:
        """Returns the state before the first step, with given variables.

        Args:
          variables: of all replicas, every array with a leading axis.

        Raises:
          UserError: the variables are not those of this trainer's model.
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
        """Moves a training split to the device, padded for the augmentation.

        Raises:
          UserError: the split does not have the size that the program was made for.
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
        """Returns the learning rates of the recipe's first steps, float32 [steps]."""
        # Pieces of equal length need only one compilation.
        pieces = [
            np.asarray(self._rates(jnp.int32(first)))
            for first in range(0, steps, RATES_AT_ONCE)
        ]
        return np.concatenate([*pieces, np.empty(0, np.float32)])[:steps]

    def run(self, state: TrainState, split: Split) -> Iterator[Progress]:
        """Trains from a state to the end of the recipe.

        Args:
          state: from ``init``, from a ``Progress``, or restored; it is not changed.
          split: the training images.

        Yields:
          The progress after every chunk of about ``CHUNK_SECONDS`` and at the end of
          every epoch. Training ends early if all replicas have diverged.

        Raises:
          UserError: the state or the images do not fit this trainer.
        """
        _check_tree("state", state, self._template)
        return self._run(state, self.put(split))

    @known_settings()
    def evaluate(self, state: TrainState, split: Split) -> Evaluation:
        """Computes loss and accuracy of every replica on a split.

        Raises:
          UserError: the state or the images do not fit this trainer.
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
        """Returns the orders of an epoch, [R, N], on the devices of the replicas."""
        return self.placement.spread(self._orders(keys, np.int32(epoch)))

    def _check_split(self, what: str, split: Split) -> None:
        if not isinstance(split, Split):
            raise UserError(f"the {what} is a {type(split).__name__}; give a Split")
        check_images(what, split.images, self.spec.image_shape)
        check_labels(what, split.labels, len(split), self.spec.num_classes)


def _kind(stage: Stage) -> tuple[str | None, int | None]:
    """Returns the properties of a stage that its compiled program depends on."""
    return stage.freeze, stage.image_size


def _train_steps(
    train_step: TrainStep,
    steps_per_epoch: int,
    states: TrainState,
    orders: jax.Array,
    data: DeviceData,
    stop: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """Trains R replicas up to step ``stop``, within the epoch of ``orders``.

    Returns:
      The states, and the loss of each step of the epoch, [R, S]; NaN for the steps that
      were not done.
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
    """Returns the shapes of a state of R replicas without tracing the model again."""
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
    """Raises a UserError if a tree's arrays are not those that the program takes."""
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
