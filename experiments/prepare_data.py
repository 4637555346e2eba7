"""Fetches CIFAR-10 or takes in an archive of it, and shows what the images look like.

    python -m experiments.prepare_data
    python -m experiments.prepare_data --data_archive=cifar-10-binary.tar.gz

Draws a picture of training images with their class names: as they are, and below each
a few random crops and flips of it, as training sees them.
"""

import pathlib
import sys
import time

import numpy as np
from absl import flags
from rich.console import Console

from cifar_flax.data import default_data_dir, prepare_cifar10
from cifar_flax.data.archive import open_archive
from cifar_flax.runs.console import make_console, print_pairs
from cifar_flax.runs.figures import FORMATS, draw_images, save_figure
from cifar_flax.runs.recipe_choice import OF_AUGMENTATION
from experiments import cli
from experiments.setting_flags import define_settings, settings_from_flags

FLAGS = flags.FLAGS


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
        figure = draw_images(dataset, settings.make_recipe().augmentation)
        save_figure(figure, picture, f"--picture={picture}")
        if FLAGS.data_archive:
            take_in(FLAGS.data_archive, FLAGS.archive_sha256, console)
        counts = np.bincount(dataset.train_labels, minlength=dataset.num_classes)
        print_pairs(
            console,
            [
                (
                    "data",
                    f"{dataset.name} ({dataset.source}), loaded in {seconds:.1f} s",
                ),
                (
                    "images",
                    f"{len(dataset.train_labels):,} for training, "
                    f"{len(dataset.test_labels):,} for the test, 32 x 32 x 3",
                ),
                (
                    "classes",
                    ", ".join(
                        f"{name} {count:,}"
                        for name, count in zip(dataset.class_names, counts, strict=True)
                    ),
                ),
                ("mean", "  ".join(f"{value:.4f}" for value in dataset.mean)),
                ("std", "  ".join(f"{value:.4f}" for value in dataset.std)),
                ("sha256", dataset.fingerprint),
                ("picture", str(picture)),
            ],
        )
    return 0


def take_in(path: str, sha256: str | None, console: Console) -> None:
    """Prepares an official archive, so that later runs find it by themselves."""
    if open_archive(path, sha256).trust == "official":
        prepare_cifar10(path, FLAGS.data_dir or default_data_dir())
        console.print("later runs find it without --data_archive")
    else:
        console.print("not the official archive: later runs need the same flags")


if __name__ == "__main__":
    define_settings(
        *("dataset", "data_dir", "data_archive", "archive_sha256", "image_size"),
        *("recipe", *OF_AUGMENTATION),
    )
    cli.define_text("picture", "training_images.png", "File to draw the images to.")
    sys.exit(main())
