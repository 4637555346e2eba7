"""Exports a finished run to files for other programs, and checks the files.

    python -m experiments.export --run=runs/convbn-cifar10-1 --format=safetensors
    python -m experiments.export --run=runs/convbn-cifar10-1 --format=stablehlo

Each seed gets a file. A safetensors file holds the variables. A stablehlo file holds
the whole program from pixels to logits, which ``jax.export`` runs without this project.
Each file is read back and must give the logits of the run, on test images if the data
set is on this machine.
"""

import pathlib
import sys

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.errors import UserError
from cifar_flax.files import printable
from cifar_flax.runs.environment import use_compilation_cache
from cifar_flax.runs.export import (
    DRAWN_IMAGES,
    FORMATS,
    Exported,
    check_finished,
    read_test_images,
)
from cifar_flax.runs.inference import Run

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        for name in ("run", "format"):
            if FLAGS[name].value is None:
                raise flags.ValidationError(f"--{name} is missing; see --help")
        folder = pathlib.Path(FLAGS.run)
        check_finished(folder)
        use_compilation_cache()
        run = Run.load(folder, FLAGS.best, FLAGS.model)
        try:
            images, kind = read_test_images(folder, FLAGS.images), "test images"
        except UserError as error:
            images, kind = None, "images of random pixels"
            cli.logger.warning(
                "the comparison uses %d %s, because the test images are missing: %s",
                DRAWN_IMAGES,
                kind,
                error,
            )
        output = folder if FLAGS.output is None else FLAGS.output
        print_files(FORMATS[FLAGS.format](run, output, images), kind)
    return 0


def print_files(files: list[Exported], kind: str) -> None:
    """Prints a line for each file."""
    for file in files:
        print(
            f"{printable(str(file.path))}: logits differ from the run's by "
            f"at most {file.difference:.2g} ({file.tolerance:.2g} is allowed); the "
            f"same class for {file.agreeing:,} of {file.count:,} {kind}"
        )


if __name__ == "__main__":
    cli.define_path("run", None, "Folder of the finished run.")
    flags.DEFINE_enum("format", None, list(FORMATS), "Format of the files.")
    cli.define_text(
        "model",
        None,
        "Your own model, if the run trained one: FILE.py:NAME or MODULE:NAME.",
    )
    flags.DEFINE_bool("best", False, "Use the checkpoint of best validation accuracy.")
    cli.define_path("output", None, "Folder for the files (default: the run's).")
    flags.DEFINE_integer(
        "images", 1_000, "Largest number of test images to compare on.", 1
    )
    sys.exit(main())
