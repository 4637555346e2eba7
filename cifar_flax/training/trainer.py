"""Trains replicas in compiled chunks of steps, without files and flags."""

import copy
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cifar_flax.analysis.metrics import Metric
from cifar_flax.data import DataSpec, Split
from cifar_flax.data.augment import pad_images
from cifar_flax.errors import UserError
from cifar_flax.jax_settings import known_settings
from cifar_flax.layers import rule
from cifar_flax.layers.conv import Lowering, resolve
from cifar_flax.models.check import check_image_size, check_model
from cifar_flax.models.program import program_of
from cifar_flax.models.summary import layer_rows
from cifar_flax.training import processes, programs
from cifar_flax.training.arguments import (
    check_memory,
    check_rates,
    check_recipe,
    check_seeds,
    check_split,
    check_trains,
    check_tree,
)
from cifar_flax.training.evaluation import Evaluation, HeldSplit, Predictor, evaluate
from cifar_flax.training.optimizers import path_in_words
from cifar_flax.training.placement import Placement
from cifar_flax.training.progress import Progress
from cifar_flax.training.recipe_identity import identify
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.stages import Stage
from cifar_flax.training.state import TrainState, ended_at, shapes_of_state
from cifar_flax.training.steps import DeviceData, TrainStep

# A compiled call takes about this many seconds. This is long enough to make the cost of
# a call negligible, and short enough for a progress bar and for an interrupt.
CHUNK_SECONDS = 1.0

# A model's initialisers get images of at most this many pixels in total, which is 5,000
# images of 32 x 32, and more than half of it if there are enough images.
INIT_PIXELS = 5_000 * 32 * 32


def first_images(split: Split) -> np.ndarray:
    """Returns the images that initialise a model: the first ones, as airbench94 does.

    If a class is not among them, the images are sorted in some way, and evenly spaced
    ones are returned instead.
    """
    images, labels = split.images, split.labels
    pixels = images.shape[1] * images.shape[2]
    count = max(1, INIT_PIXELS // pixels)
    if set(labels[:count].tolist()) == set(labels.tolist()):
        return images[:count]
    return images[:: -(-len(split) * pixels // INIT_PIXELS)]


def next_chunk(steps: int, seconds: float) -> int:
    """Returns the steps of the next compiled call from the time of the last one."""
    return max(1, int(CHUNK_SECONDS * steps / seconds))


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
      program: what the model computes.
      recipe_program: what the recipe trains with.
      template: the shapes of a state.
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
          lowering: of all convolutions; see ``layers.conv.resolve``.
          mesh: the devices, see ``placement.make_mesh``; None for a single device.

        Raises:
          UserError: model, recipe, data or seeds do not fit together.
        """
        check_recipe(recipe, spec)
        recipe = recipe.with_code()
        check_memory(spec, recipe.augmentation.padding)
        self.model, self.recipe, self.spec = model, recipe, spec
        self.seeds = check_seeds(seeds)
        self.layers, variables = check_model(model, spec.image_shape, spec.num_classes)
        self.placement = Placement(len(self.seeds), mesh)
        self.lowering = resolve(lowering)
        if self.placement.columns > 1 and self.lowering == "native":
            self.lowering = "product"  # the compiler cannot divide the kernels' batches
        self.steps_per_epoch = spec.train_size // recipe.batch_size
        steps = recipe.count_steps(self.steps_per_epoch)
        check_trains("lookahead", recipe.lookahead, steps)
        if not recipe.has_own_optimizer:
            check_trains("accumulate", recipe.accumulate, steps)
        check_rates(recipe, self.steps_per_epoch)
        stages = tuple(recipe.stages(self.steps_per_epoch))
        for size in filter(None, {stage.image_size for stage in stages}):
            check_image_size(model, variables, (size, size, spec.image_shape[-1]))
        self.program = program_of(model, spec.image_shape)
        self.recipe_program = identify(recipe, self.steps_per_epoch, variables, spec)
        known = self.program.unknown is None
        self.predictor = Predictor(
            model,
            spec,
            lowering=self.lowering,
            tta=recipe.tta,
            placement=self.placement,
            computes=self.program.sha256 if known else None,
        )
        self._variables = variables
        step = TrainStep(model, recipe, spec, self.lowering, stages=stages)
        if known and self.recipe_program.unknown is None:
            both = self.program.sha256, self.recipe_program.sha256
            step = dataclasses.replace(step, computes=both)
        self._follow(step)

    def _follow(self, step: TrainStep) -> None:
        """Takes over the learning rate and the stages of a step."""
        self.train_step, self.schedule, self.stages = step, step.schedule, step.stages
        self.total_steps = step.stages[-1].stop
        self.compile_seconds = 0.0
        # Kept, because a step that has no value equals only itself.
        self._of_stage = {
            kind: dataclasses.replace(step, freeze=kind[0], image_size=kind[1])
            for kind in {stage.kind for stage in self.stages}
        }
        self.template = shapes_of_state(
            self._variables, step.make_tx(), self.recipe.has_average, len(self.seeds)
        )

    @known_settings()
    def along(self, ramp: optax.Schedule, steps: int, stage: Stage) -> "Trainer":
        """Returns a trainer for a training with another learning rate, in one stage.

        Args:
          ramp: the learning rate, a function of the step. It replaces that of the
            recipe, whose other settings stay, also the number of steps that Lookahead
            counts with.
          steps: number of steps.
          stage: the stage whose ``freeze`` and ``image_size`` all steps have.
        """
        if not self.recipe.has_own_optimizer:
            check_trains("accumulate", self.recipe.accumulate, steps)
        only = dataclasses.replace(stage, start=0, stop=steps)
        other = copy.copy(self)
        other._follow(dataclasses.replace(self.train_step, ramp=ramp, stages=(only,)))
        return other

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
          split: the training images; some of them initialise the model, see
            ``first_images``. None: images of NaN do, which is enough for a model whose
            initial values do not depend on them.

        Raises:
          UserError: an initial value is NaN or infinite.
        """
        if split is None:
            state = self.blank()
        else:
            check_split("split to start from", split, self.spec)
            state = self._initial(first_images(split))
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
        return self._initial(images)

    def _initial(self, images: np.ndarray) -> TrainState:
        program = programs.initial(self.train_step, jax.default_backend())
        with rule.lowering(self.lowering):
            return program(jnp.asarray(self.seeds), images)

    @known_settings()
    def start_from(self, variables: dict[str, Any]) -> TrainState:
        """Returns the state before the first step, with given variables.

        Args:
          variables: of all replicas, every array with a leading axis.

        Raises:
          UserError: the variables are not those of this trainer's model.
        """
        check_tree("variables", variables, self.template.trained)
        params = variables["params"]
        return dataclasses.replace(
            self.blank(),
            params=params,
            collections={n: value for n, value in variables.items() if n != "params"},
            opt_state=self._optimizer_state(params),
            average=variables if self.recipe.has_average else None,
        )

    @known_settings()
    def restarted(self, state: TrainState) -> TrainState:
        """Returns a state before the first step, with the variables and key of another.

        The optimizer starts anew, too.
        """
        step, totals = jax.tree.map(jnp.zeros_like, (state.step, state.totals))
        opt_state = self._optimizer_state(state.params)
        return dataclasses.replace(state, step=step, totals=totals, opt_state=opt_state)

    def _optimizer_state(self, params: Any) -> optax.OptState:
        return programs.optimizer_states(self.train_step)(params)

    @known_settings()
    def put(self, split: Split) -> DeviceData:
        """Moves a training split to the device, padded for the augmentation.

        Raises:
          UserError: the split does not have the size that the program was made for.
        """
        check_split("training split", split, self.spec)
        if len(split) != self.spec.train_size:
            raise UserError(
                f"the training split has {len(split)} images; this trainer was made "
                f"for {self.spec.train_size}"
            )
        padded = pad_images(split.images, self.recipe.augmentation)
        return self.placement.share((jnp.asarray(padded), jnp.asarray(split.labels)))

    @known_settings()
    def rates(self, steps: int) -> np.ndarray:
        """Returns the learning rates of the recipe's first steps, float32 [steps]."""
        # Pieces of equal length need only one compilation.
        program = programs.rates(self.train_step)
        pieces = [
            np.asarray(program(jnp.int32(first)))
            for first in range(0, steps, programs.RATES_AT_ONCE)
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
        return self.chunks(state, self.put(split))

    def chunks(
        self,
        state: TrainState,
        data: DeviceData,
        *,
        rate: float | None = None,
        stop: int | None = None,
    ) -> Iterator[Progress]:
        """Trains as ``run`` does, on data that are on the device.

        Args:
          state: see ``run``.
          data: from ``put``.
          rate: factor of the learning rate; all rates share a program. None: no factor.
          stop: the step to stop at; None: the end of the recipe.

        Raises:
          UserError: the state does not fit this trainer.
        """
        check_tree("state", state, self.template)
        end = self.total_steps if stop is None else min(stop, self.total_steps)
        factor = None if rate is None else np.float32(rate)
        return self._chunks(state, data, factor, end)

    def _chunks(
        self, state: TrainState, data: DeviceData, rate: np.float32 | None, end: int
    ) -> Iterator[Progress]:
        place, step, chunk, epoch_end = self.placement, int(state.step.max()), 1, 0
        done, keys, spread = np.asarray(state.step), state.key, place.spread(state)
        going, program_end = not state.all_diverged, 0
        while step < end and going:
            with known_settings(), rule.lowering(self.lowering):
                start, compiling = time.perf_counter(), 0.0
                first = step - step % self.steps_per_epoch
                if step >= epoch_end:
                    epoch_end = min(first + self.steps_per_epoch, self.total_steps)
                    orders = self._spread_order(keys, step // self.steps_per_epoch)
                if step >= program_end:
                    stage_end, jitted = self._stage(step, place)
                    lowered = jitted.lower(spread, orders, data, np.int32(0), rate)
                    fewer = place.halved()
                    program = programs.compile_fitting(lowered, last=fewer == place)
                    compiling = time.perf_counter() - start
                    self.compile_seconds += compiling
                    if program is None:
                        place = self.placement = self.predictor.placement = fewer
                        continue
                    program_end = stage_end
                stop = min(step + chunk, epoch_end, program_end, end)
                spread, losses = program(spread, orders, data, np.int32(stop), rate)
                told = (spread.totals, spread.step, losses)
                totals, done_now, losses = jax.device_get(place.collect(told))  # waits
                seconds = time.perf_counter() - start - compiling
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

    def _stage(self, step: int, place: Placement) -> tuple[int, Any]:
        """Returns the end of the stage of a step, and its program."""
        stage = next(stage for stage in self.stages if step < stage.stop)
        steps, backend = self._of_stage[stage.kind], jax.default_backend()
        return stage.stop, programs.training(steps, place, backend)

    def _spread_order(self, keys: jax.Array, epoch: int) -> jax.Array:
        """Returns the orders of an epoch, [R, N], on the devices of the replicas."""
        orders = programs.epoch_orders(keys, np.int32(epoch), self.spec.train_size)
        return self.placement.spread(orders)

    def hold(self, split: Split) -> HeldSplit:
        """Keeps the images of a split on the device, to ``evaluate`` on it repeatedly.

        Raises:
          UserError: the images do not fit this trainer.
        """
        check_split("split to evaluate", split, self.spec)
        return self.predictor.hold(split)

    @known_settings()
    def evaluate(
        self,
        state: TrainState,
        split: Split | HeldSplit,
        metrics: Sequence[Metric] = (),
    ) -> Evaluation:
        """Computes loss, accuracy and other metrics of every replica on a split.

        Args:
          state: as for ``run``.
          split: images with labels; one from ``hold`` is copied to the device once.
          metrics: others to compute.

        Raises:
          UserError: the state or the images do not fit this trainer.
        """
        plain = split.split if isinstance(split, HeldSplit) else split
        check_split("split to evaluate", plain, self.spec)
        variables = getattr(state, "variables", None)
        check_tree("state", variables, self.template.variables)
        return evaluate(self.predictor, variables, split, metrics)
