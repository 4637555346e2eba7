"""Our side of the benchmark: the same trainer as in ``experiments.run``.

    python -m benchmarks.our_turns LOWERING BATCH_SIZE TRAIN_IMAGES EVAL_IMAGES MODEL

answers the requests of ``experiments.benchmark``.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from benchmarks.strangers import STRANGERS
from benchmarks.turns import serve
from cifar_flax.data import Split, Splits
from cifar_flax.runs.environment import device_name
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.estimates import peak_gflops
from cifar_flax.training.phases import Constant
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer

FIRST_TURNS = 4  # until a turn takes about a second

# A turn takes at most an epoch, and there are at most a thousand rounds.
EPOCHS = 1_000 + FIRST_TURNS


def random_splits(train_images: int, eval_images: int) -> Splits:
    """Makes random images of ten classes."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        return Split(images, rng.integers(0, 10, count).astype(np.int32))

    parts = split(train_images), None, split(eval_images)
    return Splits(*parts, 10, (0.5,) * 3, (0.25,) * 3)


class Ours:
    """A trainer with random data."""

    def __init__(
        self,
        model: str | nn.Module,
        lowering: Any,
        batch_size: int,
        train_images: int,
        eval_images: int,
        seeds: Sequence[int] = (0,),
    ):
        """Makes the data and the trainer."""
        self.splits = random_splits(train_images, eval_images)
        if isinstance(model, nn.Module):
            net = model
        elif model in STRANGERS:
            net = STRANGERS[model]()
        else:
            net = Settings(model).make_model(10)
        recipe = Recipe((Constant(0.01, EPOCHS),), batch_size)
        spec = self.splits.spec
        self.trainer = Trainer(net, recipe, spec, seeds, lowering=lowering)

    def ready(self) -> dict[str, Any]:
        """Compiles, and measures the speed of the device."""
        state = self.trainer.init(self.splits.train)
        self.test = self.trainer.hold(self.splits.test)
        self.progress = self.trainer.run(state, self.splits.train)
        for _ in range(FIRST_TURNS):
            self.train()
        self.evaluate()
        return {
            "compile_seconds": self.trainer.compile_seconds,
            "flops_per_image": sum(row.flops for row in self.trainer.layers),
            "peak_gflops": peak_gflops(),
            "device": device_name(),
            "lowering": self.trainer.lowering,
        }

    def train(self) -> float:
        """Trains for about a second; returns the seconds of a step of one seed."""
        done = next(self.progress)
        self.state = done.state
        return done.seconds * self.trainer.recipe.batch_size / done.images

    def evaluate(self) -> float:
        """Returns the time for the logits of the test images in seconds."""
        start = time.perf_counter()
        self.trainer.evaluate(self.state, self.test)
        return time.perf_counter() - start


if __name__ == "__main__":
    lowering, *sizes, model = sys.argv[1:]
    batch, train, test = map(int, sizes)
    ours = Ours(model, lowering, batch, train, test)
    serve({"ready": ours.ready, "train": ours.train, "evaluate": ours.evaluate})
