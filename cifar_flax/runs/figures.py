"""Figures on files."""

import pathlib
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from cifar_flax.data import Dataset
from cifar_flax.data.augment import (
    Augmentation,
    denormalise,
    mix,
    normalise,
    pad_images,
    sample_images,
    vary,
)
from cifar_flax.errors import UserError
from cifar_flax.runs.observers import Observer, RangeTestResult, RunResult

if TYPE_CHECKING:  # matplotlib starts slowly, and most runs draw nothing
    from matplotlib.figure import Figure

FORMATS = (".png", ".jpg", ".webp", ".svg", ".pdf")
RANGE_FIGURE = "lr_find.png"
VARIANTS = 3  # of each training image


class RangeFigure(Observer):
    """Draws the curves of a range test to ``lr_find.png`` in its folder."""

    def ended(self, result: RunResult | RangeTestResult | None) -> None:
        """Draws them."""
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
    """A figure, in inches, that leaves the backend of pyplot alone."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def draw_images(dataset: Dataset, augmentation: Augmentation) -> "Figure":
    """Draws an image of each of the first ten classes, and variants of it.

    The images take the way that training takes: padded, cropped, flipped, normalised,
    varied, mixed; and back to pixels.
    """
    classes = range(min(dataset.num_classes, 10))
    first = [int(np.argmax(dataset.train_labels == label)) for label in classes]
    images = dataset.train_images[first]
    padded = jnp.asarray(pad_images(images, augmentation))
    rows = [images]
    for key in jax.random.split(jax.random.key(0), VARIANTS):
        batch = sample_images(key, padded, jnp.arange(len(first)), augmentation)
        batch = normalise(batch, dataset.mean, dataset.std)
        if augmentation.varies:
            batch = vary(jax.random.fold_in(key, 1), batch, dataset.std, augmentation)
        if augmentation.mixes:
            batch, _ = mix(jax.random.fold_in(key, 2), batch, augmentation)
        rows.append(denormalise(batch, dataset.mean, dataset.std))
    figure = new_figure(1.15 * len(first), 1.25 * len(rows))
    axes = figure.subplots(len(rows), len(first), squeeze=False)
    for row, (line, images_of_row) in enumerate(zip(axes, rows, strict=True)):
        for label, (axis, image) in enumerate(zip(line, images_of_row, strict=True)):
            axis.imshow(image.squeeze(), cmap="gray" if image.shape[-1] == 1 else None)
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.set_title(dataset.class_names[label], fontsize=9)
        line[0].set_ylabel(f"augmented {row}" if row else "original", fontsize=9)
    figure.suptitle(f"{dataset.name}: training images", fontsize=11)
    return figure


def save_figure(figure: "Figure", path: pathlib.Path, named: str) -> None:
    """Writes a figure to a file.

    Args:
      figure: of matplotlib.
      path: of the file; its ending tells the format.
      named: the file in the words of an error.

    Raises:
      UserError: it cannot be written.
    """
    try:
        figure.savefig(path)
    except OSError as error:
        raise UserError(f"cannot write {named}: {error.strerror}") from error
