"""Measures the speed of this machine, and estimates the duration of a run."""

import time

import jax

from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.models.summary import layer_rows
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.settings import RANGE_SEEDS, Settings
from cifar_flax.training.rate_check import CHECK_SEEDS, TRIAL_STEPS

# A model that was never run here is assumed to reach this share of the speed of a large
# matrix product.
USUAL_SHARE = 0.35
START_SECONDS = 10.0


def peak_gflops(
    tries: int = 10, size: int = 2048, dtype: jax.typing.DTypeLike = "float32"
) -> float:
    """Measures the speed of products of two square matrices, in GFLOP/s.

    Args:
      tries: number of products; the fastest counts.
      size: rows and columns. A large accelerator needs more for its full speed.
      dtype: of the matrices and of the product.
    """
    matrix = jax.numpy.ones((size, size), dtype)
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
    """Estimates the duration of a run in seconds.

    Args:
      settings: of the run.
      epochs: of its recipe.
      speeds: known speeds of models in images/s; the speed of another model is
        estimated from its operations and added.
    """
    if settings.model not in speeds:
        flops = sum(row.flops for row in layer_rows(settings.make_model(10)))
        speeds[settings.model] = USUAL_SHARE * peak_gflops(tries=3) * 1e9 / (3 * flops)
    val_size = VAL_SIZE if settings.val_size is None else settings.val_size
    images = settings.train_size or 50_000 - val_size
    of_all_seeds = epochs * len(settings.seeds)
    if settings.lr == AUTO:
        of_all_seeds += len(RANGE_SEEDS)
        if settings.lr_check is not False:  # with the rate and with half of it
            trial = TRIAL_STEPS * settings.make_recipe().batch_size / images
            of_all_seeds += 2 * CHECK_SEEDS * min(1.0, epochs, trial)
    return START_SECONDS + of_all_seeds * images / speeds[settings.model]
