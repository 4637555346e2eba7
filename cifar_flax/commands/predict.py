"""Classifies pictures with a trained model.

python -m experiments.predict --run=runs/convbn-cifar10-1 picture.png folder/

Pictures of any size are cropped to a square and resized. With several seeds, the
probabilities are means over the seeds that have not diverged.
"""

import json
import pathlib
import sys

import numpy as np
from absl import flags

from cifar_flax.analysis.predictions import mean_of_seeds
from cifar_flax.commands import cli
from cifar_flax.data.folders import find_images
from cifar_flax.data.images import read_image
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.tables import make_table
from cifar_flax.show.console import make_console

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command(takes_words=True) as places:
        if not places:
            raise flags.ValidationError("give pictures, or folders of pictures")
        if FLAGS.run is None:
            raise flags.ValidationError("--run is missing; give the folder of a run")
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
    flags.DEFINE_bool("best", False, "Use the checkpoint of best validation accuracy.")
    flags.DEFINE_integer("top", 3, "Number of the most likely classes to print.", 1)
    flags.DEFINE_bool("json", False, "Print a line of JSON for each picture.")
    sys.exit(main())
