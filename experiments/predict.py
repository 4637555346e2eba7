"""Says what a trained model sees in pictures.

python -m experiments.predict --run=runs/convbn-cifar10-1 picture.png folder/

Pictures of any size are cut to a square and resized. With several seeds the
probabilities are their mean.
"""

import json
import pathlib

import numpy as np
from absl import flags

from cifar_flax.data.images import find_images, read_image
from cifar_flax.errors import UserError
from cifar_flax.inference import Run
from experiments import cli
from experiments.console import make_console, make_table
from experiments.text_flag import define_text

FLAGS = flags.FLAGS

# Pictures at a time: one compiled program, and little memory.
BATCH = 64


def main(places: list[str]) -> int:
    """Runs the command; returns the exit status."""
    if not places:
        raise flags.ValidationError("give pictures, or folders of them, to look at")
    if FLAGS.run is None:
        raise flags.ValidationError("--run: give the folder of a trained run")
    paths = find_images(map(pathlib.Path, places))
    run = Run.load(FLAGS.run, FLAGS.best)
    seen, images = [], []
    for path in paths:
        try:
            images.append(read_image(path, *run.image_shape[:2]))
            seen.append(path)
        except UserError as error:
            cli.logger.error("%s", error)
    top = min(FLAGS.top, len(run.class_names))
    rows = [
        (
            str(path),
            [(run.class_names[k], float(p[k])) for k in p.argsort()[::-1][:top]],
        )
        for path, p in zip(seen, probabilities(run, images), strict=True)
    ]
    print_rows(rows, top)
    return 0 if len(seen) == len(paths) else 1


def probabilities(run: Run, images: list[np.ndarray]) -> list[np.ndarray]:
    """Of each image, mean over the replicas: [K] each."""
    found: list[np.ndarray] = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        fill = [np.zeros_like(batch[0])] * (BATCH - len(batch))
        found += list(run.predict(np.stack(batch + fill)).mean(0)[: len(batch)])
    return found


def print_rows(rows: list[tuple[str, list[tuple[str, float]]]], top: int) -> None:
    """As a table, or as a line of JSON for each picture."""
    if FLAGS.json:
        for path, classes in rows:
            print(json.dumps({"image": path, "classes": dict(classes)}))
        return
    table = make_table("image", *[""] * top)
    for path, classes in rows:
        table.add_row(path, *(f"{name} {100 * p:.1f} %" for name, p in classes))
    make_console().print(table, markup=False)


if __name__ == "__main__":
    define_text("run", None, "Folder of the run.")
    flags.DEFINE_bool("best", False, "Use the checkpoint of best validation accuracy.")
    flags.DEFINE_integer("top", 3, "Classes to name at most, the likeliest first.", 1)
    flags.DEFINE_bool("json", False, "Print a line of JSON for each picture.")
    cli.main(main, arguments=True)
