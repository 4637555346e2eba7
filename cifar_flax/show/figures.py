"""Draws figures of runs and data sets, and saves them."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax import records
from cifar_flax.data import Dataset
from cifar_flax.data.augment import (
    Augmentation,
    denormalise,
    mix,
    normalise,
    pad_images,
    sample_images,
    vary,
    vary_further,
)
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user, replacing
from cifar_flax.models.streams import Stream
from cifar_flax.runs.observers import Observer, RangeTestResult, RunResult
from cifar_flax.training.lr_range import smooth

if TYPE_CHECKING:  # matplotlib starts slowly, and most runs draw nothing
    from matplotlib.figure import Figure

FORMATS = (".png", ".jpg", ".webp", ".svg", ".pdf")
RANGE_FIGURE = "lr_find.png"
LOSS_SMOOTHING = 0.95  # share of the moving average that a step keeps
VARIANTS = 3  # of each training image


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """Draws with Matplotlib's defaults and the user's fonts, as a decorator, too.

    With other settings of a matplotlibrc, a name that is not LaTeX would be an error,
    and a figure would not have the size that it was made for.
    """
    import matplotlib.style

    fonts = {n: matplotlib.rcParams[n] for n in ("font.family", "font.sans-serif")}
    with matplotlib.style.context(["default", fonts]):
        yield


class RangeFigure(Observer):
    """Draws the curves of a range test to ``lr_find.png`` in its folder."""

    @own_style()
    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Draws the curves."""
        if not isinstance(result, RangeTestResult) or result.curves is None:
            return
        if result.folder is None:
            return
        figure = new_figure(8, 5)
        axis = figure.subplots()
        result.curves.plot(axis)
        axis.set_title(f"{result.model}: learning-rate range test")
        path = result.folder / RANGE_FIGURE
        save_figure(figure, path, str(path))


def new_figure(width: float, height: float) -> "Figure":
    """Makes a figure, in inches, without changing the backend of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


@own_style()
def plot_loss(run: RunResult | str | pathlib.Path) -> "Figure":
    """Draws the training loss of a run over its steps, as it is and smoothed.

    Args:
      run: the result of ``run``, or the folder of a run, finished or not.

    Raises:
      UserError: the folder has no record of its steps.
    """
    steps, name, seeds = _steps_of(run)
    figure = new_figure(8, 4.5)
    axis = figure.subplots()
    at = np.arange(steps.losses.shape[1]) + 1
    smoothed = smooth(np.asarray(steps.losses, np.float64), LOSS_SMOOTHING)
    pairs = zip(seeds, steps.losses, smoothed, strict=True)
    for number, (seed, each, line) in enumerate(pairs):
        color = f"C{number % 10}"
        axis.plot(at, each, color=color, alpha=0.25, linewidth=0.6)
        axis.plot(at, line, color=color, linewidth=1.4, label=f"seed {seed}")
    finite = steps.losses[np.isfinite(steps.losses)]
    if finite.size:  # a few very high losses would hide the others
        low, high = np.quantile(finite, [0, 0.99])
        axis.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-6)
    axis.set(xlabel="step", ylabel="training loss", title=name)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure


@own_style()
def plot_lr(run: RunResult | str | pathlib.Path) -> "Figure":
    """Draws the learning rate of a run; arguments as in ``plot_loss``."""
    steps, name, _ = _steps_of(run)
    figure = new_figure(8, 3.5)
    axis = figure.subplots()
    axis.plot(np.arange(len(steps.rates)) + 1, steps.rates, color="C0")
    axis.set(xlabel="step", ylabel="learning rate", title=name, ylim=(0, None))
    axis.grid(alpha=0.3)
    return figure


def _steps_of(
    run: RunResult | str | pathlib.Path,
) -> tuple[records.Steps, str, Sequence[int]]:
    """Returns the steps of a run, the name of its model, and its seeds."""
    if isinstance(run, RunResult):
        name = run.record.model if run.record else type(run.trainer.model).__name__
        return run.steps, name, run.trainer.seeds
    folder = expand_user(run)
    config = records.read_config(folder)
    seeds: Any = config.settings["seeds"]
    return records.read_steps(folder), config.model, seeds


@own_style()
def plot_images(dataset: Dataset, augmentation: Augmentation) -> "Figure":
    """Draws an image of each of the first ten classes, and augmented versions of it.

    The images are processed as in training (padded, cropped, flipped, normalised,
    varied, mixed) and converted back to pixels.
    """
    classes = range(min(dataset.num_classes, 10))
    first = [int(np.argmax(dataset.train_labels == label)) for label in classes]
    images, labels = dataset.train_images[first], dataset.train_labels[first]
    padded = jnp.asarray(pad_images(images, augmentation))
    rows = [images]
    for key in jax.random.split(jax.random.key(0), VARIANTS):
        batch = sample_images(key, padded, jnp.arange(len(first)), augmentation)
        batch = normalise(batch, dataset.mean, dataset.std)
        batch = vary(Stream.VARY.of(key), batch, dataset.std, augmentation)
        own = Stream.FURTHER.of(key), batch, jnp.asarray(labels)
        batch = vary_further(*own, dataset.mean, dataset.std, augmentation)
        if augmentation.mixes:
            batch, _ = mix(Stream.MIX.of(key), batch, augmentation)
        rows.append(denormalise(batch, dataset.mean, dataset.std))
    figure = new_figure(1.15 * len(first), 1.25 * len(rows))
    axes = figure.subplots(len(rows), len(first), squeeze=False)
    for row, (line, images_of_row) in enumerate(zip(axes, rows, strict=True)):
        for label, (axis, image) in enumerate(zip(line, images_of_row, strict=True)):
            # Colours if the channels can be some, else the first channel in grey.
            shown = image[..., :3] if image.shape[-1] > 2 else image[..., 0]
            axis.imshow(shown, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            if row == 0:
                axis.set_title(dataset.class_names[label], fontsize=9, parse_math=False)
        line[0].set_ylabel(f"augmented {row}" if row else "original", fontsize=9)
    figure.suptitle(f"{dataset.name}: training images", fontsize=11, parse_math=False)
    return figure


@own_style()
def save_figure(figure: "Figure", path: pathlib.Path, named: str) -> None:
    """Writes a figure to a file.

    Args:
      figure: of matplotlib.
      path: of the file; its suffix decides the format.
      named: the file's name in an error message.

    Raises:
      UserError: the file cannot be written.
    """
    try:
        with replacing(path) as file:
            figure.savefig(file, format=path.suffix[1:].lower())
    except OSError as error:
        raise UserError(f"cannot write {named}: {error.strerror}") from error
