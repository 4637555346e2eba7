"""Shows the layers of a model with shapes, parameters and operations.

python -m experiments.summary --model=convbn
python -m experiments.summary --model=all
python -m experiments.summary --model=families
"""

import sys
from collections.abc import Iterable

from absl import flags
from rich.table import Table

from cifar_flax.commands import cli
from cifar_flax.commands.setting_flags import define_settings
from cifar_flax.models import FAMILIES, MODELS, create_model
from cifar_flax.runs.settings import Settings
from cifar_flax.runs.tables import Summary, make_table
from cifar_flax.show.console import make_console

FLAGS = flags.FLAGS

flags.DEFINE_integer("num_classes", 10, "Number of logits.", lower_bound=1)


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        console = make_console()
        if FLAGS.model in ("all", "families"):
            console.print(table_of(FAMILIES if FLAGS.model == "families" else MODELS))
        else:
            settings = settings_of(FLAGS.model)
            model = settings.make_model(FLAGS.num_classes)
            console.print(Summary(model, name=settings.model_label).table)
        console.print(
            "\nFLOPs count the multiplications and additions of products for one 32 x "
            "32 image."
        )
    return 0


def settings_of(name: str) -> Settings:
    """Returns the settings of the named model."""
    with cli.usage_errors():
        return Settings(model=name, model_args=FLAGS.model_args)


def table_of(names: Iterable[str]) -> Table:
    """Makes a table with a row for each of these models."""
    table = make_table("model", "class", "layers", "parameters", "FLOPs")
    for name in names:
        model = create_model(name, FLAGS.num_classes)
        summary = Summary(model)
        table.add_row(
            name,
            type(model).__name__,
            str(sum(row.flops > 0 for row in summary.rows)),
            f"{summary.num_params:,}",
            f"{summary.flops:,}",
        )
    return table


if __name__ == "__main__":
    cli.define_text(
        "model",
        "convbn",
        "Architecture, as for experiments.run, or all of ours, or families.",
    )
    define_settings("model_args")
    sys.exit(main())
