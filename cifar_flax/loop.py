"""Training and evaluation as compiled chunks of steps; no files and no flags."""

import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from cifar_flax.data import Split, Splits
from cifar_flax.data.augment import (
    Augmentation,
    normalise,
    pad_images,
    sample_images,
)
from cifar_flax.errors import UserError
from cifar_flax.recipes import Recipe
from cifar_flax.reports.predictions import log_softmax
from cifar_flax.state import TrainState, init_state
from cifar_flax.steps import train_step

# A compiled call does about this many seconds of work: long enough that its start
# costs nothing, short enough that a progress bar moves and an interrupt is heeded.
CHUNK_SECONDS = 1.0


Data = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Exact figures of R replicas on a split.

    Attributes:
      logits: float32 [R, N, K].
      loss: mean cross-entropy, float64 [R].
      accuracy: share of the images classified correctly, float64 [R].
    """

    logits: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Progress:
    """Where training stands after a compiled chunk of steps.

    Attributes:
      state: of all replicas; the next chunk consumes it. ``state.diverged_at`` tells
        which of them have ended.
      step: steps done.
      epoch_done: whether an epoch has just ended; the figures are then of that epoch,
        and before of its steps so far.
      learning_rate: of the last step.
      train_loss: mean over the images as they were seen, float64 [R]; NaN for a
        replica that has diverged.
      train_accuracy: share classified correctly as they were seen, float64 [R]; NaN
        likewise.
      images: training images of the last chunk, over all replicas.
      seconds: that the last chunk took.
    """

    state: TrainState
    step: int
    epoch_done: bool
    learning_rate: float
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    images: int
    seconds: float


def next_chunk(steps: int, seconds: float) -> int:
    """Steps for the next compiled call, after one of so many took so long."""
    return max(1, int(CHUNK_SECONDS * steps / seconds))


def map_replicas(fn: Callable) -> Callable:
    """Maps a function of one replica over the leading axis of its first argument.

    An accelerator runs the replicas side by side (``vmap``); a CPU, which one replica
    keeps busy and where grouped convolutions are slow, runs one after the other.

    Args:
      fn: a function of one replica and of what all of them share.
    """

    def mapped(replicas, *shared):
        def of_one(replica):
            return fn(replica, *shared)

        if jax.default_backend() == "cpu":
            return lax.map(of_one, replicas)
        return jax.vmap(of_one)(replicas)

    return mapped


class Trainer:
    """Trains R replicas of a model, one a seed, on one data set with one recipe.

    Every random number is a function of the seed and the step. A state taken from any
    point of a run therefore goes on to the same bits, whatever the size of the chunks
    and in whatever process.

    A replica whose loss is no finite number has diverged and ends with that step; the
    others go on.

    Attributes:
      steps_per_epoch: whole batches in the training split; the images that are left
        over differ from epoch to epoch.
      total_steps: steps of the whole recipe.
      data: padded training images, uint8 [N, H + 2p, W + 2p, C], and labels [N], on
        the device.
      compile_seconds: what ``compile`` took, else 0.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        recipe: Recipe,
        seeds: Sequence[int] = (0,),
        *,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (frozen)
        eval_batch_size: int = 125,
    ):
        """Makes the program; nothing is compiled or trained yet.

        Args:
          model: called as ``model.apply(variables, images, train=...)`` on normalised
            images [N, H, W, C], returning logits [N, K].
          splits: the data.
          recipe: how to train.
          seeds: one a replica.
          augmentation: of the training images.
          eval_batch_size: images at a time in the evaluation; more of them would
            leave a CPU's cache.
        """
        if len(splits.train) < recipe.batch_size:
            raise UserError(
                f"batch_size is {recipe.batch_size}, but there are only "
                f"{len(splits.train)} training images; lower it"
            )
        self.model, self.splits, self.recipe = model, splits, recipe
        self.seeds, self.augmentation = tuple(seeds), augmentation
        self.eval_batch_size = eval_batch_size
        self.steps_per_epoch = len(splits.train) // recipe.batch_size
        self.total_steps = self.steps_per_epoch * recipe.epochs
        self.schedule = recipe.schedule(self.steps_per_epoch)
        self.tx = recipe.optimizer(self.schedule)
        self.compile_seconds = 0.0
        self.data: Data = (
            jnp.asarray(pad_images(splits.train.images, augmentation)),
            jnp.asarray(splits.train.labels),
        )
        # A trainer that held itself, by way of these, would keep its data until Python
        # looks for cycles, and so would those after it.
        me = weakref.proxy(self)
        self._jitted = jax.jit(
            lambda *args: me._train_steps_of_all(*args), donate_argnums=0
        )
        self._train_steps: Callable[..., TrainState] = self._jitted
        self._orders = jax.jit(map_replicas(lambda *args: me.epoch_order(*args)))
        self._predict = jax.jit(map_replicas(lambda *args: me._predict_of_one(*args)))

    def init(self) -> TrainState:
        """The state of all replicas before the first step."""
        shape = self.splits.train.images.shape[1:]

        def init_of_one(seed):
            return init_state(jax.random.key(seed), self.model, self.tx, shape)

        # A program that runs once: optimising it would take seconds.
        options = {"xla_backend_optimization_level": 0}
        program = jax.jit(map_replicas(init_of_one), compiler_options=options)
        return program(jnp.asarray(self.seeds))

    def compile(self, state: TrainState) -> None:
        """Compiles the training program, so that ``run`` starts at full speed."""
        start = time.perf_counter()
        orders = self._orders(state.key, jnp.int32(0))
        args = (state, orders, self.data, jnp.int32(0))
        self._train_steps = self._jitted.lower(*args).compile()
        self.compile_seconds = time.perf_counter() - start

    def run(self, state: TrainState) -> Iterator[Progress]:
        """Trains from a state to the end of the recipe.

        Args:
          state: from ``init``, from a ``Progress``, or restored; it is consumed.

        Yields:
          Where training stands, after every chunk of about ``CHUNK_SECONDS`` and at
          the end of every epoch; for the last time when all replicas have diverged.
        """
        steps, chunk, epoch_end = np.asarray(state.step), 1, 0
        while (step := int(steps.max())) < self.total_steps and not state.all_diverged:
            start = time.perf_counter()
            if step >= epoch_end:
                epoch = step // self.steps_per_epoch
                epoch_end = (epoch + 1) * self.steps_per_epoch
                orders = self._orders(state.key, jnp.int32(epoch))
            stop = min(step + chunk, epoch_end)
            state = self._train_steps(state, orders, self.data, jnp.int32(stop))
            before, totals = steps, jax.device_get(state.totals)  # waits for the chunk
            seconds = time.perf_counter() - start
            chunk = next_chunk(stop - step, seconds)
            steps = np.asarray(state.step)
            epoch_done = steps.max() == epoch_end
            if epoch_done:
                state = dataclasses.replace(state, totals=state.totals.cleared())
            lost = np.array([at is not None for at in state.diverged_at])
            yield Progress(
                state=state,
                step=int(steps.max()),
                epoch_done=bool(epoch_done),
                learning_rate=float(self.schedule(steps.max() - 1)),
                train_loss=np.where(lost, np.nan, totals.loss / totals.count),
                train_accuracy=np.where(lost, np.nan, totals.correct / totals.count),
                images=int((steps - before).sum()) * self.recipe.batch_size,
                seconds=seconds,
            )

    def evaluate(self, state: TrainState, split: Split) -> Evaluation:
        """Exact loss and accuracy of every replica on a split.

        One compiled call takes all batches. The last one is filled up to the common
        size; what the filling gives is cut off before anything is summed.
        """
        size = min(self.eval_batch_size, len(split))
        fill = [(0, -len(split) % size)] + [(0, 0)] * 3
        images = np.pad(split.images, fill)
        batches = images.reshape(-1, size, *images.shape[1:])
        logits = np.asarray(self._predict(state.variables, batches))[:, : len(split)]
        losses = -log_softmax(logits)[:, np.arange(len(split)), split.labels]
        correct = logits.argmax(-1) == split.labels
        return Evaluation(logits, losses.mean(1), correct.mean(1))

    def epoch_order(self, key: jax.Array, epoch: jax.Array) -> jax.Array:
        """The order in which a replica sees the training images in an epoch, [N].

        Args:
          key: of the replica, ``TrainState.key``.
          epoch: counted from 0.
        """
        shuffle_key, _ = jax.random.split(key)
        return jax.random.permutation(
            jax.random.fold_in(shuffle_key, epoch), len(self.splits.train)
        )

    def batch(
        self, key: jax.Array, step: jax.Array, indices: jax.Array, data: Data
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What a replica trains on at a step.

        Args:
          key: of the replica, ``TrainState.key``.
          step: counted from 0; with the key it decides all that is drawn.
          indices: of the training images, [B].
          data: ``Trainer.data``, an argument of the compiled program: a constant of
            that size would take seconds to compile.

        Returns:
          Augmented and normalised images [B, H, W, C], labels [B], and a key for what
          the model draws.
        """
        _, step_key = jax.random.split(key)
        augment_key, model_key = jax.random.split(jax.random.fold_in(step_key, step))
        padded, labels = data
        images = sample_images(augment_key, padded, indices, self.augmentation)
        images = normalise(images, self.splits.mean, self.splits.std)
        return images, labels[indices], model_key

    def first_batches(self, key: jax.Array, steps: int) -> jax.Array:
        """The indices of a replica's images in the first steps, [steps, B].

        Args:
          key: of the replica, ``TrainState.key``.
          steps: how many; more than an epoch if you like.
        """
        size, epochs = self.recipe.batch_size, -(-steps // self.steps_per_epoch)
        orders = jax.vmap(lambda epoch: self.epoch_order(key, epoch))(
            jnp.arange(epochs)
        )
        whole = orders[:, : self.steps_per_epoch * size]
        return whole.reshape(-1, size)[:steps]

    def train_step(
        self,
        state: TrainState,
        step: jax.Array,
        indices: jax.Array,
        data: Data,
        tx: optax.GradientTransformation,
    ) -> TrainState:
        """One step of one replica on the images with these indices; see ``batch``.

        Args:
          state: of the replica.
          step: counted from 0.
          indices: [B].
          data: ``Trainer.data``.
          tx: the optimizer.
        """
        images, labels, key = self.batch(state.key, step, indices, data)
        return train_step(
            state,
            images,
            labels,
            key=key,
            model=self.model,
            tx=tx,
            label_smoothing=self.recipe.label_smoothing,
        )

    def _train_steps_of_all(self, state, orders, data, stop):
        """Steps up to ``stop``, all within the epoch that ``orders`` [R, N] are of."""
        run = map_replicas(self._train_steps_of_one)
        return run((state, orders), data, stop)

    def _train_steps_of_one(self, replica, data, stop):
        state, order = replica
        size = self.recipe.batch_size

        def goes_on(state):
            return (state.step < stop) & jnp.isfinite(state.totals.loss)

        def body(state):
            first = state.step % self.steps_per_epoch * size
            indices = lax.dynamic_slice(order, (first,), (size,))
            return self.train_step(state, state.step, indices, data, self.tx)

        return lax.while_loop(goes_on, body, state)

    def _predict_of_one(self, variables, batches):
        """Logits [M * B, K] of images [M, B, H, W, C]."""

        def predict(images):
            images = normalise(images, self.splits.mean, self.splits.std)
            return self.model.apply(variables, images, train=False)

        logits = lax.map(predict, batches)
        return logits.reshape(-1, logits.shape[-1])
