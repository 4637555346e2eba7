"""Downloads CIFAR-10 or CIFAR-100, or reads an archive, and shows the images.

    python -m experiments.prepare_data
    python -m experiments.prepare_data --dataset=cifar100
    python -m experiments.prepare_data --data_archive=cifar-10-binary.tar.gz

It draws training images with their class names, and below each image a few augmented
versions of it, as in training.
"""

import pathlib
import sys
import time

import numpy as np
from absl import flags
from rich.console import Console

from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import define_settings, settings_from_flags
from cifar_flax.data import Dataset, default_data_dir, prepare_cifar
from cifar_flax.data.archive import open_archive
from cifar_flax.data.tfds_source import can_prepare
from cifar_flax.runs.data_record import values_in_words
from cifar_flax.runs.recipe_choice import OF_AUGMENTATION
from cifar_flax.show.console import make_console, print_pairs
from cifar_flax.show.figures import FORMATS, plot_images, save_figure

FLAGS = flags.FLAGS

# If there are more classes, not all of them are listed.
MAX_CLASSES = 20


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        console = make_console()
        settings = settings_from_flags()
        picture = pathlib.Path(FLAGS.picture)
        cli.check_ending("picture", FORMATS)
        start = time.perf_counter()
        dataset = settings.load_data()
        seconds = time.perf_counter() - start
        figure = plot_images(dataset, settings.make_recipe().augmentation)
        save_figure(figure, picture, f"--picture={picture}")
        if FLAGS.data_archive:
            take_in(FLAGS.data_archive, FLAGS.archive_sha256, console)
        val, reading = "", dataset.reading
        values = values_in_words(reading.low, reading.high, reading.white)
        if dataset.val_labels is not None:
            val = f"{len(dataset.val_labels):,} for validation, "
        shape = " x ".join(map(str, dataset.train_images.shape[1:]))
        print_pairs(
            console,
            [
                (
                    "data",
                    f"{dataset.name} ({dataset.source}), loaded in {seconds:.1f} s",
                ),
                (
                    "images",
                    f"{len(dataset.train_labels):,} for training, {val}"
                    f"{len(dataset.test_labels):,} for the test, {shape}",
                ),
                ("values", values),
                ("classes", classes_in_words(dataset)),
                *(("note", note) for note in reading.notes),
                ("mean", "  ".join(f"{value:.4f}" for value in dataset.mean)),
                ("std", "  ".join(f"{value:.4f}" for value in dataset.std)),
                ("sha256", dataset.fingerprint),
                ("picture", str(picture)),
            ],
        )
    return 0


def classes_in_words(dataset: Dataset) -> str:
    """Returns the classes with the number of their images, abbreviated if many."""
    names = dataset.class_names
    counts = np.bincount(dataset.train_labels, minlength=len(names))
    if len(names) <= MAX_CLASSES:
        pairs = zip(names, counts, strict=True)
        return ", ".join(f"{name} {count:,}" for name, count in pairs)
    low, high = f"{counts.min():,}", f"{counts.max():,}"
    images = f"{low} images each" if low == high else f"{low} to {high} images"
    return f"{len(names)}, {images}: {', '.join(names[:3])}, ..., {names[-1]}"


def take_in(path: str, sha256: str | None, console: Console) -> None:
    """Prepares an official archive, so that later runs find it without a flag."""
    archive = open_archive(path, sha256)
    if archive.trust == "official" and can_prepare():
        name = archive.cifar.name
        prepare_cifar(name, path, FLAGS.data_dir or default_data_dir())
        console.print(f"later runs find it with --dataset={name}")
        return
    why = "this is not an official archive"
    if archive.trust == "official":
        why = "array_record, which is not installed, would prepare the archive"
    console.print(f"{why}; later runs need the same flags")


if __name__ == "__main__":
    define_settings(
        *("dataset", "data_dir", "data_archive", "archive_sha256", "image_size"),
        *("recipe", *OF_AUGMENTATION),
    )
    cli.define_path("picture", "training_images.png", "File for the drawn images.")
    sys.exit(main())
