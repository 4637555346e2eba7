"""Shows what a model is made of, layer by layer.

python -m experiments.summary --model=convbn
python -m experiments.summary --model=all
"""

import sys

from absl import flags
from rich.table import Table

from cifar_flax.models import MODELS, create_model
from cifar_flax.models.summary import layer_rows
from cifar_flax.runs.console import make_console, make_table
from cifar_flax.runs.settings import Settings
from experiments import cli
from experiments.setting_flags import define_settings

FLAGS = flags.FLAGS

flags.DEFINE_integer("num_classes", 10, "Number of logits.", lower_bound=1)


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        console = make_console()
        if FLAGS.model == "all":
            console.print(all_models())
        else:
            settings = settings_of(FLAGS.model)
            console.print(one_model(settings))
        console.print(
            "\nFLOPs are of the products of one 32x32 image: a multiplication and its "
            "addition count 2."
        )
    return 0


def settings_of(name: str) -> Settings:
    """The settings of the model that is named."""
    with cli.usage_errors():
        return Settings(model=name, model_args=FLAGS.model_args)


def one_model(settings: Settings) -> Table:
    """A row for each layer, and the sums."""
    name, model = settings.model_label, settings.make_model(FLAGS.num_classes)
    rows = layer_rows(model)
    table = make_table("layer", "kind", "output", "parameters", "FLOPs")
    for row in rows:
        table.add_row(
            row.path,
            row.kind,
            " x ".join(map(str, row.output_shape)),
            f"{row.num_params:,}",
            f"{row.flops:,}",
        )
    table.add_section()
    params, flops = (
        sum(getattr(row, name) for row in rows) for name in ("num_params", "flops")
    )
    table.add_row(name, "", str(FLAGS.num_classes), f"{params:,}", f"{flops:,}")
    return table


def all_models() -> Table:
    """A row for each model."""
    table = make_table("model", "class", "layers", "parameters", "FLOPs")
    for name in MODELS:
        model = create_model(name, FLAGS.num_classes)
        rows = layer_rows(model)
        table.add_row(
            name,
            type(model).__name__,
            str(sum(row.flops > 0 for row in rows)),
            f"{sum(row.num_params for row in rows):,}",
            f"{sum(row.flops for row in rows):,}",
        )
    return table


if __name__ == "__main__":
    cli.define_text(
        "model", "convbn", "Architecture, as of experiments.run, or all of ours."
    )
    define_settings("model_args")
    sys.exit(main())
