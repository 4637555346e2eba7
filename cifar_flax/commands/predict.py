"""Classifies pictures with a trained model, or evaluates it on labelled images.

python -m experiments.predict --run=runs/convbn-cifar10-1 picture.png folder/
python -m experiments.predict --run=runs/convbn-cifar10-1 --dataset=npz:corrupt.npz

Pictures of any size are cropped to a square and resized. With several seeds, the
probabilities are means over the seeds that have not diverged.

--dataset takes what it takes for a run, and evaluates on its test images. A file or a
folder may also have only these: arrays images and labels, or CLASS/*.png. The classes
are those of the run, or some of them.
"""

import json
import pathlib
import sys

import numpy as np
from absl import flags

from cifar_flax.analysis.predictions import largest_class, mean_of_seeds
from cifar_flax.analysis.statistics import (
    interval_of_accuracy,
    mean_of_finite,
    percent_with_interval,
)
from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import define_settings
from cifar_flax.data.folders import find_images
from cifar_flax.data.images import read_image
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.own_metrics import check_metric_names
from cifar_flax.runs.tables import loss_in_words, make_table, number, percent
from cifar_flax.show.console import make_console, print_pairs

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command(takes_words=True) as places:
        if bool(places) == (FLAGS.dataset is not None):
            raise flags.ValidationError(
                "give pictures, or folders of pictures, or labelled images as --dataset"
            )
        if FLAGS.run is None:
            raise flags.ValidationError("--run is missing; give the folder of a run")
        if FLAGS.dataset is not None:
            print_evaluation(Run.load(FLAGS.run, FLAGS.best, FLAGS.model))
            return 0
        paths = find_images(map(pathlib.Path, places))
        run = Run.load(FLAGS.run, FLAGS.best, FLAGS.model)
        seen, images = [], []
        for path in paths:
            try:
                images.append(read_image(path, *run.image_shape, run.white))
                seen.append(path)
            except UserError as error:
                cli.logger.error("%s", error)
        top = min(FLAGS.top, len(run.class_names))
        found = run.predict(np.stack(images)) if images else np.empty((0, 0, 0))
        rows = []
        for path, p, of_seeds in zip(
            seen, mean_of_seeds(found), found.swapaxes(0, 1), strict=True
        ):
            known = np.isfinite(p).all()
            if lost := int(np.isnan(of_seeds).any(-1).sum()):
                log = cli.logger.warning if known else cli.logger.error
                text = "%s: the logits of %d of %d seeds are NaN or infinite"
                log(text, path, lost, len(of_seeds))
            if known:
                likeliest = p.argsort()[::-1][:top]
                classes = [(run.class_names[k], float(p[k])) for k in likeliest]
                rows.append((str(path), classes))
        print_rows(rows, top)
        return 0 if len(rows) == len(paths) else 1


def print_evaluation(run: Run) -> None:
    """Prints accuracy and loss of each seed, as a table or as a line of JSON each."""
    labelled = run.load_labelled(
        FLAGS.dataset,
        data_dir=FLAGS.data_dir,
        archive=FLAGS.data_archive,
        archive_sha256=FLAGS.archive_sha256,
    )
    with cli.usage_errors():
        names = check_metric_names(FLAGS.metrics or ())
    labels, count = labelled.split.labels, len(labelled.split)
    found = run.evaluate(labelled.split, names)
    figures = {"accuracy": found.accuracy, "loss": found.loss, **found.metrics}
    if FLAGS.json:
        for index, seed in enumerate(run.seeds):
            known = {name: float(values[index]) for name, values in figures.items()}
            line = {n: v if np.isfinite(v) else None for n, v in known.items()}
            print(json.dumps({"seed": seed, "images": count, **line}, allow_nan=False))
        return
    table = make_table("seed", *figures)
    for index, seed in enumerate(run.seeds):
        accuracy, loss, *others = (values[index] for values in figures.values())
        shown = percent(accuracy if np.isfinite(accuracy) else None)
        table.add_row(str(seed), shown, loss_in_words(loss), *map(number, others))
    screen = make_console()
    screen.print(table)
    accuracies = found.accuracy[np.isfinite(found.accuracy)].tolist()
    about = [("images", f"{count:,} ({labelled.source})")]
    about += [("note", note) for note in labelled.notes]
    if interval := interval_of_accuracy(accuracies, count):
        over = "seeds" if len(accuracies) > 1 else "images, not over seeds"
        words = percent_with_interval(mean_of_finite(accuracies), interval)
        about.append(("accuracy", f"{words} % (95 % interval over {over})"))
    sizes = np.bincount(labels, minlength=len(run.class_names))
    if largest := largest_class(sizes):
        index, share = largest
        words = f"{percent(share)} of the images are {run.class_names[index]}"
        about.append(("largest class", words))
    screen.print()
    print_pairs(screen, about)


def print_rows(rows: list[tuple[str, list[tuple[str, float]]]], top: int) -> None:
    """Prints a table, or a line of JSON for each picture."""
    if FLAGS.json:
        for path, classes in rows:
            likeliest = [{"class": name, "probability": p} for name, p in classes]
            line = {"image": path, "classes": likeliest}
            print(json.dumps(line, allow_nan=False))
        return
    table = make_table("image", *[""] * top)
    for path, classes in rows:
        table.add_row(path, *(f"{name} {100 * p:.1f} %" for name, p in classes))
    make_console().print(table)


if __name__ == "__main__":
    cli.define_path("run", None, "Folder of the run.")
    cli.define_text(
        "model",
        None,
        "Your own model, if the run trained one: FILE.py:NAME or MODULE:NAME.",
    )
    cli.define_text(
        "dataset",
        None,
        "Labelled images to evaluate on: npz:PATH, folder:PATH, cifar10 or the name of "
        "another data set.",
    )
    define_settings("data_dir", "data_archive", "archive_sha256", "metrics")
    flags.DEFINE_bool("best", False, "Use the checkpoint of best validation accuracy.")
    flags.DEFINE_integer("top", 3, "Number of the most likely classes to print.", 1)
    flags.DEFINE_bool("json", False, "Print a line of JSON for each picture or seed.")
    sys.exit(main())
