"""Exports a run to files for other programs, and compares each file with the run.

``safetensors``  the variables of a seed by their paths, and how to use them
``stablehlo``    the program of a seed from pixels to logits, for ``jax.export``

A file gets its final name only after it was read back and agrees with the run.
"""

import dataclasses
import functools
import importlib
import json
import logging
import operator
import os
import pathlib
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from cifar_flax import records
from cifar_flax.data.cache import only_read
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import expand_user, replacing
from cifar_flax.jax_settings import known_settings
from cifar_flax.runs.inference import Run
from cifar_flax.runs.settings import Settings
from cifar_flax.training.evaluation import logits_of_pixels
from cifar_flax.training.optimizers import path_in_words

PLATFORMS = ("cpu", "cuda", "tpu")

# Number of random images for the comparison of a file with its run.
DRAWN_IMAGES = 256

# Images at a time that the program of a file computes.
_BATCH = 250

# The largest difference of two logits that rounding can explain, as a share of the
# largest logit. Sums in another order differ by 1e-7 to 2e-6 in float32, and by up to
# 7e-3 in bfloat16 (the models of this library, 1,000 images, on a CPU).
_TOLERANCE = 1e-4
_LOW_TOLERANCE = 0.05

_SETTINGS_OF_DATA = ("dataset", "image_size", *records.PLACES)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Exported:
    """A written file, and how well it agrees with the run.

    Attributes:
      path: of the file.
      seed: of the replica in the file.
      difference: the largest difference between a logit of the file and of the run.
      tolerance: the largest difference that is allowed.
      agreeing: number of images for which both predict the same class.
      count: number of images of the comparison.
    """

    path: pathlib.Path
    seed: int
    difference: float
    tolerance: float
    agreeing: int
    count: int


def export_safetensors(
    run: Run, folder: str | pathlib.Path, images: np.ndarray | None = None
) -> list[Exported]:
    """Writes the variables of each seed to ``seedN.safetensors``.

    The names are paths, such as ``params/stem/kernel``. The metadata are strings:
    ``model``, ``seed``, ``step``, ``tta``, ``cifar_flax`` (the version), and as JSON
    ``class_names``, ``image_shape``, ``mean`` and ``std``.

    Args:
      run: the run to export.
      folder: for the files.
      images: images for the comparison, uint8 [N, H, W, C]; None for random pixels.

    Raises:
      UserError: the package safetensors is missing, a file exists or cannot be written,
        or the written file does not hold the same bits.
    """
    library = _import("safetensors")
    numpy_part = _import("safetensors.numpy")

    def write(seed: int, variables: Any) -> bytes:
        try:
            named = _named_arrays(variables)
            return numpy_part.save(named, metadata=_about(run, seed))
        except (TypeError, library.SafetensorError) as error:
            raise UserError(
                f"safetensors cannot hold these variables: {one_line(error)}"
            ) from error

    def read(path: pathlib.Path, variables: Any, images: np.ndarray) -> np.ndarray:
        with library.safe_open(path, framework="np") as file:
            found = jax.tree.map_with_path(
                lambda where, _: file.get_tensor(path_in_words(where)), variables
            )
        if not all(jax.tree.leaves(jax.tree.map(_same_bits, variables, found))):
            raise UserError("the variables in the file do not have the bits of the run")
        return _logits_of(run, found, images)

    return _export(run, folder, images, "safetensors", write, read)


def export_stablehlo(
    run: Run, folder: str | pathlib.Path, images: np.ndarray | None = None
) -> list[Exported]:
    """Writes the program of each seed to ``seedN.stablehlo``.

    The program maps uint8 images [N, H, W, C] to float32 logits [N, K] for any N. It
    includes the normalisation, the views of the run's test-time augmentation, and the
    model with its variables. It runs on any of ``PLATFORMS`` and needs only JAX and the
    package flatbuffers: ``jax.export.deserialize(content).call(images)``.

    Args:
      run: the run to export.
      folder: for the files.
      images: images for the comparison, uint8 [N, H, W, C]; None for random pixels.

    Raises:
      UserError: the package flatbuffers is missing, the model cannot become a program
        for any number of images, a file exists or cannot be written, or the written
        file does not agree with the run.
    """
    _import("flatbuffers")

    def write(seed: int, variables: Any) -> bytes:
        sizes = ", ".join(map(str, ("n", *run.image_shape)))
        images = jax.ShapeDtypeStruct(export.symbolic_shape(sizes), np.uint8)
        program = jax.jit(functools.partial(_program, run, variables))
        try:
            exported = export.export(program, platforms=PLATFORMS)(images)
            return bytes(exported.serialize())
        except Exception as error:  # the code of a model may raise anything
            raise UserError(
                "the model cannot become a program for any number of images (use "
                "x.shape[0] and not len(x)) and any platform: "
                f"{type(error).__name__}: {one_line(error)}"
            ) from error

    def read(path: pathlib.Path, variables: Any, images: np.ndarray) -> np.ndarray:
        call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
        starts = range(0, len(images), _BATCH)
        return np.concatenate([call(images[i : i + _BATCH]) for i in starts])

    return _export(run, folder, images, "stablehlo", write, read)


# Functions by the name of their format.
FORMATS = {"safetensors": export_safetensors, "stablehlo": export_stablehlo}


def check_finished(folder: pathlib.Path) -> None:
    """Raises a UserError unless a folder holds a finished run."""
    records.read_config(folder)
    if records.read_result(folder) is None:
        raise UserError(
            f"the run in {folder} is not finished; continue it with experiments.run "
            "--resume"
        )


def read_test_images(folder: pathlib.Path, count: int) -> np.ndarray:
    """Returns the first test images of a run's data set; downloads and writes nothing.

    Args:
      folder: of the run.
      count: largest number of images.

    Returns:
      uint8 [N, H, W, C].

    Raises:
      UserError: the data set is not on this machine, or it has changed.
    """
    config = records.read_config(folder)
    where, info = str(folder / records.CONFIG), config.dataset
    settings = Settings.from_record(config, where, _SETTINGS_OF_DATA)
    if settings.dataset == "auto":  # it may choose another data set now
        settings = dataclasses.replace(settings, dataset=info.name)
    with only_read():  # a record may name any folder
        dataset = settings.load_data(fetch=False)
    if dataset.fingerprint != info.fingerprint:
        raise UserError(f"{dataset.name} ({dataset.source}) has changed since the run")
    return dataset.test_images[:count]


@known_settings()
def _export(
    run: Run,
    folder: str | pathlib.Path,
    images: np.ndarray | None,
    ending: str,
    write: Callable[[int, Any], bytes],
    read: Callable[[pathlib.Path, Any, np.ndarray], np.ndarray],
) -> list[Exported]:
    """Writes a file for each seed and compares it with the run.

    Args:
      run: the run to export.
      folder: for the files; it is made if it is missing.
      images: images for the comparison; None for random ones.
      ending: suffix of the files' names.
      write: returns the content of a file from a seed and its variables.
      read: returns the logits [N, K] of images from a file, variables of the same
        structure and the images.
    """
    folder = expand_user(folder)
    paths = [folder / f"seed{seed}.{ending}" for seed in run.seeds]
    if there := [path for path in paths if os.path.lexists(path)]:
        raise UserError(f"{there[0]} already exists; remove it, or give another folder")
    if images is None:
        shape = (DRAWN_IMAGES, *run.image_shape)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    done = []
    for number, (seed, path) in enumerate(zip(run.seeds, paths, strict=True)):
        variables = jax.tree.map(operator.itemgetter(number), run.variables)
        logits = _logits_of(run, variables, images)
        if not np.isfinite(logits).all():
            logger.warning("seed %d is left out: its logits are NaN or infinite", seed)
            continue
        tolerance = _tolerance(run, variables) * float(np.abs(logits).max())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(write(seed, variables))
                file.flush()
                found = read(pathlib.Path(file.name), variables, images)
                done.append(_compare(path, seed, logits, found, tolerance))
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; give another folder"
            ) from error
        except UserError as error:
            raise UserError(f"{path} is not written: {error}") from error
    if not done:
        raise UserError("the logits of all seeds are NaN or infinite")
    return done


def _compare(
    path: pathlib.Path,
    seed: int,
    logits: np.ndarray,
    found: np.ndarray,
    tolerance: float,
) -> Exported:
    """Compares the logits of a file; raises a UserError if they do not agree."""
    difference = float(np.abs(found - logits).max())
    if not difference <= tolerance:  # it may be NaN
        raise UserError(
            f"a logit of the file differs from the run's by {difference:.2g}, and "
            f"rounding can explain only {tolerance:.2g}"
        )
    agreeing = int((found.argmax(-1) == logits.argmax(-1)).sum())
    return Exported(path, seed, difference, tolerance, agreeing, len(logits))


def _program(run: Run, variables: Any, images: jax.Array) -> jax.Array:
    """Computes float32 logits [N, K] of uint8 images with XLA's own operations."""
    logits = logits_of_pixels(run.model, variables, images, run.spec, tta=run.tta)
    return logits.astype(jnp.float32)


def _logits_of(run: Run, variables: Any, images: np.ndarray) -> np.ndarray:
    """Computes the logits [N, K] of the run with the variables of one seed."""
    replica = jax.tree.map(lambda leaf: leaf[None], variables)
    return run.predictor(replica, images)[0]


def _tolerance(run: Run, variables: Any) -> float:
    """Returns the largest effect of rounding on a logit, as a share of the largest.

    It is larger if the model computes in a dtype of fewer bits, or the device
    multiplies with fewer bits, as GPUs and TPUs do by default.
    """
    images = jax.ShapeDtypeStruct((1, *run.image_shape), np.uint8)
    program = str(jax.make_jaxpr(functools.partial(_program, run))(variables, images))
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    by_device = jax.default_backend() != "cpu" and precision not in _FULL_PRECISION
    is_low = by_device or re.search(r"\b(bf16|f16)\[", program) is not None
    return _LOW_TOLERANCE if is_low else _TOLERANCE


_FULL_PRECISION = ("highest", "float32")


def _named_arrays(variables: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree.leaves_with_path(variables)
    return {path_in_words(path): np.array(leaf, order="C") for path, leaf in leaves}


def _about(run: Run, seed: int) -> dict[str, str]:
    """Returns the metadata of a file: strings, some of them JSON."""
    return {
        "model": run.model_name,
        "seed": str(seed),
        "step": str(run.step),
        "tta": run.tta,
        "cifar_flax": metadata.version("cifar-flax"),
        "class_names": json.dumps(run.class_names),
        "image_shape": json.dumps(run.image_shape),
        "mean": json.dumps(run.mean),
        "std": json.dumps(run.std),
    }


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    same_kind = a.dtype == b.dtype and a.shape == b.shape
    return same_kind and np.asarray(a).tobytes() == b.tobytes()


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise UserError(
            f"this format needs {package}: pip install 'cifar-flax[export]'"
        ) from error
