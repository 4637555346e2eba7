"""How fast this machine computes, and about how long a run takes on it."""

import time

import jax

from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.models.summary import layer_rows
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.settings import RANGE_SEEDS, Settings

# Of the speed of a large matrix product; a rough guess for a model never run here.
USUAL_SHARE = 0.35
START_SECONDS = 10.0


def peak_gflops(tries: int = 10) -> float:
    """The best of some products of two 2048 x 2048 matrices, float32."""
    size = 2048
    matrix = jax.numpy.ones((size, size))
    product = jax.jit(lambda a, b: a @ b)
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best / 1e9


def estimate_seconds(
    settings: Settings, epochs: float, speeds: dict[str, float]
) -> float:
    """Seconds for a run, roughly.

    Args:
      settings: of the run.
      epochs: of its recipe.
      speeds: images/s of models that are known; others are added, from their
        operations and the machine's speed.
    """
    if settings.model not in speeds:
        flops = sum(row.flops for row in layer_rows(settings.make_model(10)))
        speeds[settings.model] = USUAL_SHARE * peak_gflops(tries=3) * 1e9 / (3 * flops)
    val_size = VAL_SIZE if settings.val_size is None else settings.val_size
    images = settings.train_size or 50_000 - val_size
    of_all_seeds = epochs * len(settings.seeds)
    if settings.lr == AUTO:
        of_all_seeds += len(RANGE_SEEDS)
    return START_SECONDS + of_all_seeds * images / speeds[settings.model]
