"""The parts of ``benchmarks.gpu_check``, each in a process of its own.

    python -m benchmarks.gpu_parts PART OPTIONS

writes each figure as a line of JSON as soon as it is known. OPTIONS are JSON, too:
``dry_run``, and where CIFAR-10 is.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.benchmark import call, contenders, take_turns
from benchmarks.kernels import times_by_kernel, times_by_kind
from benchmarks.our_turns import Ours, random_splits
from benchmarks.turns import ROOT, json_lines, worker
from cifar_flax.analysis.statistics import compare
from cifar_flax.data import Splits, split_dataset
from cifar_flax.errors import UserError, one_line
from cifar_flax.models import MODELS, create_model
from cifar_flax.runs.environment import (
    device_name,
    package_versions,
    use_compilation_cache,
)
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.estimates import peak_gflops
from cifar_flax.training import trainer as trainer_module
from cifar_flax.training.named_recipes import recipe_for
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import Trainer

Write = Callable[[Any], None]

NO_TORCH = "PyTorch is not installed: pip install -e '.[bench]'"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
      models: nets whose steps are measured.
      at_once: nets that are compiled at the same time.
      rounds: turns of each contender.
      images: to train on and to evaluate.
      batch_size: images of a step.
      recipes: of ``airbench``, for the time to an accuracy.
      compared: the recipe that is trained in float32 and in bfloat16.
      seeds: number of seeds of each recipe.
      side_by_side: numbers of seeds whose steps are measured.
      wide_batch: images of a step of ``airbench``.
      matrix: rows of the matrices whose product is the peak.
      started: the net whose start is timed.
      fields: of ``airbench``, if they are not the usual ones.
    """

    models: tuple[str, ...] = tuple(MODELS)
    at_once: int = 4
    rounds: int = 2
    images: tuple[int, int] = (50_000, 10_000)
    batch_size: int = 256
    recipes: tuple[str, ...] = ("airbench94", "fast90")
    compared: str = "fast85"
    seeds: int = 10
    side_by_side: tuple[int, ...] = (1, 2, 5, 10)
    wide_batch: int = 1024
    matrix: int = 8192
    started: str = "convbn"
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)


TINY = Sizes(
    models=("simplenet",),
    rounds=1,
    images=(16, 16),
    batch_size=8,
    recipes=("modern",),
    compared="modern",
    seeds=2,
    side_by_side=(1, 2),
    wide_batch=8,
    matrix=256,
    started="simplenet",
    fields={"features": (8, 8, 8)},
)


@dataclasses.dataclass(frozen=True)
class Given:
    """What a part is given.

    Attributes:
      dry_run: whether to use tiny sizes and random images.
      data: settings that say where CIFAR-10 is.
    """

    dry_run: bool
    data: Mapping[str, Any]

    @property
    def sizes(self) -> Sizes:
        """How much to measure."""
        return TINY if self.dry_run else Sizes()

    def splits(self) -> Splits:
        """Returns CIFAR-10 without a validation split."""
        if self.dry_run:
            return random_splits(*self.sizes.images)
        return split_dataset(Settings("airbench", **self.data).load_data(), 0)

    def model(self, name: str, dtype: str) -> nn.Module:
        """Returns a model that computes in a dtype."""
        fields = self.sizes.fields if name == "airbench" else {}
        return create_model(name, dtype=jnp.dtype(dtype), **fields)

    def recipe(self, name: str) -> Recipe:
        """Returns a recipe of ``airbench`` that fits the images."""
        recipe = recipe_for(name, "airbench")
        assert recipe is not None
        size = self.sizes.batch_size if self.dry_run else recipe.batch_size
        return dataclasses.replace(recipe, batch_size=size)


def machine(given: Given, write: Write) -> None:
    """Writes what the device and the libraries are."""
    row = {
        "device": device_name(),
        "versions": package_versions(),
        "matmul_precision": jax.config.values["jax_default_matmul_precision"],
    }
    if util.find_spec("torch"):
        import torch

        row["versions"]["torch"] = version("torch")
        row["torch_tf32"] = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "products": torch.backends.cuda.matmul.allow_tf32,
        }
    write(row)


def steps(given: Given, write: Write) -> None:
    """Measures step and evaluation of each net, ours and PyTorch's in turns.

    The contenders of several nets compile at the same time, because that is most of the
    time; their turns are one after the other.
    """
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # they share the memory
    sizes = given.sizes
    python = sys.executable if util.find_spec("torch") else None
    if python is None:
        write({"note": NO_TORCH})
    commands = contenders(["auto"], python, sizes.batch_size, *sizes.images)
    commands.pop("torch eager", None)
    ours = next(iter(commands))
    for first in range(0, len(sizes.models), sizes.at_once):
        models = sizes.models[first : first + sizes.at_once]
        with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
            workers = {
                (model, name): stack.enter_context(worker(*command, model))
                for model in models
                for name, command in commands.items()
            }
            answers = {
                key: pool.submit(call, one, "ready") for key, one in workers.items()
            }
            for (model, name), answer in answers.items():
                if error := answer.exception():
                    write({"model": model, "contender": name, "error": one_line(error)})
            for model in models:
                good = [n for n in commands if not answers[model, n].exception()]
                if ours not in good:
                    continue
                ready = {name: answers[model, name].result() for name in good}
                own = {name: workers[model, name] for name in good}
                rows = take_turns(model, own, ready, sizes.rounds, sizes.batch_size)
                for row in rows:
                    write(row)


def trainings(
    given: Given,
    splits: Splits,
    name: str,
    dtype: str,
    groups: Sequence[Sequence[int]],
) -> Iterator[dict[str, Any]]:
    """Trains ``airbench`` with a recipe.

    Args:
      given: see there.
      splits: the data; training images are on the device before the clock starts.
      name: of the recipe.
      dtype: of the computation.
      groups: seeds that train side by side, group after group. The first group also
        compiles.

    Yields:
      A row for each group. ``wall_seconds`` are from the first initial value to the end
      of training, ``seconds`` are those of its steps without compilation.
    """
    model, recipe, data = given.model("airbench", dtype), given.recipe(name), None
    for seeds in groups:
        trainer = Trainer(model, recipe, splits.spec, seeds)
        data = trainer.put(splits.train) if data is None else data
        jax.block_until_ready(data)
        start, seconds = time.perf_counter(), 0.0
        for progress in trainer.chunks(trainer.init(splits.train), data):
            seconds += progress.seconds
        wall = time.perf_counter() - start
        found = trainer.evaluate(progress.state, splits.test)
        yield {
            "library": "cifar_flax",
            "recipe": name,
            "dtype": dtype,
            "seeds": list(seeds),
            "seconds": seconds,
            "wall_seconds": wall,
            "compile_seconds": trainer.compile_seconds,
            "accuracies": found.accuracy.tolist(),
        }


def accuracy(given: Given, write: Write) -> None:
    """Trains each recipe, one seed at a time and all side by side, in bfloat16."""
    splits, seeds = given.splits(), range(given.sizes.seeds)
    for name in given.sizes.recipes:
        for groups in ([[seed] for seed in seeds], [list(seeds)]):
            for row in trainings(given, splits, name, "bfloat16", groups):
                write(row)


def torch_accuracy(given: Given, write: Write) -> None:
    """Trains airbench94 and airbench94_muon in PyTorch: half precision, compiled."""
    if not util.find_spec("torch"):
        write({"note": NO_TORCH})
        return
    from benchmarks.torch_muon import MuonTraining
    from benchmarks.torch_training import Training

    splits = given.splits()
    for name, kind in (("airbench94", Training), ("airbench94_muon", MuonTraining)):
        training = kind(splits.train, not given.dry_run, is_half=True)
        compiling = training.warm_up(splits.test)
        for seed in range(given.sizes.seeds):
            seconds = training.train(seed)
            write(
                {
                    "library": "torch",
                    "recipe": name,
                    "dtype": str(training.dtype).removeprefix("torch."),
                    "seeds": [seed],
                    "seconds": seconds,
                    "wall_seconds": seconds + (0 if seed else compiling),
                    "compile_seconds": 0 if seed else compiling,
                    "accuracies": [training.accuracy(splits.test)],
                }
            )


def dtypes(given: Given, write: Write) -> None:
    """Trains the same seeds in bfloat16 and in float32, and compares their accuracy."""
    splits, seeds, found = given.splits(), list(range(given.sizes.seeds)), []
    for dtype in ("bfloat16", "float32"):
        (row,) = trainings(given, splits, given.sizes.compared, dtype, [seeds])
        found.append(dict(zip(seeds, row["accuracies"], strict=True)))
        write(row)
    half, single = found
    difference = compare(half, single, images=len(splits.test))
    assert difference is not None
    fields = ("mean", "half_width", "p", "test")
    write({"bfloat16 - float32": {name: getattr(difference, name) for name in fields}})


def seeds(given: Given, write: Write) -> None:
    """Measures a step of ``airbench`` for several numbers of seeds side by side."""
    sizes = given.sizes
    trainer_module.CHUNK_SECONDS = 0.3
    for count in sizes.side_by_side:
        try:
            model = given.model("airbench", "bfloat16")
            batch = sizes.wide_batch
            ours = Ours(model, "auto", batch, *sizes.images, seeds=range(count))
            ready = ours.ready()
            times = [ours.train() for _ in range(sizes.rounds)]
        except jax.errors.JaxRuntimeError as error:  # such as too little memory
            write({"seeds": count, "error": one_line(error)})
            return
        memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        write(
            {
                "seeds": count,
                "step_seconds_of_a_seed": float(np.median(times)),
                "compile_seconds": ready["compile_seconds"],
                "peak_device_memory_bytes": memory,
            }
        )


def peak(given: Given, write: Write) -> None:
    """Measures the share of the peak, and the time of each kind of kernel."""
    sizes = given.sizes
    trainer_module.CHUNK_SECONDS = 0.1  # of one trace
    for model, dtype, batch in (
        ("airbench", "bfloat16", sizes.wide_batch),
        ("airbench", "float32", sizes.wide_batch),
        ("convbn", "float32", sizes.batch_size),
    ):
        ours = Ours(given.model(model, dtype), "auto", batch, *sizes.images)
        flops = 3 * ours.ready()["flops_per_image"] * batch
        step = float(np.median([ours.train() for _ in range(sizes.rounds)]))
        most = peak_gflops(size=sizes.matrix, dtype=dtype)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                before = time.perf_counter()
                ours.train()
                wall = time.perf_counter() - before
            kernels = times_by_kernel(pathlib.Path(folder))
        longest = sorted(kernels.items(), key=lambda one: -one[1])[:15]
        write(
            {
                "model": model,
                "dtype": dtype,
                "batch_size": batch,
                "step_seconds": step,
                "gflops": flops / step / 1e9,
                "peak_gflops": most,
                "share_of_peak": flops / step / 1e9 / most,
                "kernel_seconds_of_wall": sum(kernels.values()) / wall,
                "share_of_kernel_time": times_by_kind(kernels),
                "longest_kernels": dict(longest),
            }
        )


def start(given: Given, write: Write) -> None:
    """Times the same command with an empty cache of programs, and again."""
    with tempfile.TemporaryDirectory() as name:
        environment = {k: v for k, v in os.environ.items() if "COMPILATION" not in k}
        environment["XDG_CACHE_HOME"] = name
        data = ["--dataset=shapes", f"--data_dir={name}/data"]
        words = [f"--model={given.sizes.started}", "--train_size=256", "--val_size=0"]

        def seconds(command: str, *more: str) -> float:
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", f"experiments.{command}", *data, *more],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.DEVNULL,
                check=True,
            )
            return time.perf_counter() - begun

        seconds("prepare_data", f"--picture={name}/images.png")
        for cache in ("empty", "filled"):
            place = f"--workdir={name}/{cache}"
            found = seconds("run", *words, "--lr=0.03", "--epochs=1", place)
            write({"cache": cache, "seconds": found})


PARTS: dict[str, Callable[[Given, Write], None]] = {
    part.__name__: part
    for part in (
        *(machine, steps, accuracy, torch_accuracy, dtypes),
        *(seeds, peak, start),
    )
}


if __name__ == "__main__":
    with json_lines() as write:
        given = Given(**json.loads(sys.argv[2]))
        if given.dry_run:  # it measures nothing
            use_compilation_cache()
        try:
            PARTS[sys.argv[1]](given, write)
        except UserError as error:
            sys.exit(f"error: {error}")
