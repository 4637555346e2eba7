"""Makes tables for a terminal and for a notebook."""

import html

import flax.linen as nn
import numpy as np
from rich.console import Console
from rich.table import Table

from cifar_flax import records
from cifar_flax.analysis.range_curve import Consensus
from cifar_flax.analysis.statistics import (
    interval_of_accuracy,
    mean_of_finite,
    percent_with_interval,
)
from cifar_flax.models.summary import layer_rows
from cifar_flax.training.rate_check import RateCheck

# Columns that hold words instead of numbers; they are aligned to the left.
WORDS = (
    "",
    "model",
    "data",
    "method",
    "cell",
    "node",
    "recipe",
    "image",
    "layer",
    "kind",
    "class",
)


def make_table(*columns: str, title: str | None = None) -> Table:
    """Makes a table without lines; columns of numbers are aligned to the right."""
    table = Table(
        show_edge=False,
        pad_edge=False,
        box=None,
        padding=(0, 2, 0, 0),
        title=title,
        title_justify="left",
    )
    for name in columns:
        table.add_column(name, justify="left" if name in WORDS else "right")
    return table


def as_html(table: Table) -> str:
    """Converts a table to HTML for a notebook."""
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    heads = "".join(f"<th>{html.escape(str(c.header))}</th>" for c in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in zip(*columns, strict=True)
    )
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"


class Summary:
    """The layers of a model with their shapes, parameters and operations."""

    def __init__(
        self,
        model: nn.Module,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        name: str | None = None,
    ):
        """Traces the model without computing anything.

        Args:
          model: see ``models.calling``.
          image_shape: (H, W, C).
          name: name of the model; None for the name of its class.

        Raises:
          UserError: the images are too small for the model.
        """
        self.rows = layer_rows(model, image_shape)
        self._name = name or type(model).__name__

    @property
    def num_params(self) -> int:
        """Number of parameters of all layers."""
        return sum(row.num_params for row in self.rows)

    @property
    def flops(self) -> int:
        """Floating-point operations for one image; see ``LayerRow``."""
        return sum(row.flops for row in self.rows)

    @property
    def table(self) -> Table:
        """Table with a row for each layer, and the sums."""
        table = make_table("layer", "kind", "output", "parameters", "FLOPs")
        for row in self.rows:
            shape = " x ".join(map(str, row.output_shape))
            params, flops = f"{row.num_params:,}", f"{row.flops:,}"
            table.add_row(row.path, row.kind, shape, params, flops)
        table.add_section()
        output = " x ".join(map(str, self.rows[-1].output_shape))
        sums = f"{self.num_params:,}", f"{self.flops:,}"
        table.add_row(self._name, "", output, *sums)
        return table

    def __repr__(self) -> str:
        console = Console(
            width=100, color_system=None, force_jupyter=False, force_terminal=False
        )
        with console.capture() as capture:
            console.print(self.table)
        return capture.get().rstrip()

    def _repr_html_(self) -> str:
        return as_html(self.table)


def trials_table(check: RateCheck) -> Table:
    """Makes a table of the rates that were checked by training."""
    table = make_table("rate", "loss after the beginning of training", "diverging")
    for trial in check.trials:
        table.add_row(
            f"{trial.rate:.3g}",
            ", ".join(loss_in_words(loss) for loss in trial.last),
            f"{trial.breaks.sum()} of {len(trial.breaks)} seeds",
        )
    return table


def suggestions_table(seeds: tuple[int, ...], found: list[Consensus]) -> Table:
    """Makes a table of the rate that each method of a range test suggests."""
    table = make_table(
        "method", *(f"seed {seed}" for seed in seeds), "consensus", "spread"
    )
    for one in found:
        table.add_row(
            one.method,
            *(f"{rate:.2g}" if np.isfinite(rate) else "-" for rate in one.rates),
            "none" if one.rate is None else f"{one.rate:g}",
            "-" if one.spread is None else f"x {one.spread:.1f}",
        )
    return table


def result_table(result: records.Result) -> Table:
    """Makes a table with a row for each seed of a run."""
    names = [f"{name} accuracy" for name in result.also_test]
    names += [name.replace("_", " ") for name in result.test_metrics]
    table = make_table("model", "data", "seed", "test accuracy", "test loss", *names)
    columns = (result.seeds, result.test_accuracy, result.test_loss, result.diverged_at)
    for index, (seed, accuracy, loss, at) in enumerate(zip(*columns, strict=True)):
        outcome = ["-", f"diverged at step {at}"]
        if at is None and accuracy is not None and loss is not None:
            outcome = [percent(accuracy), loss_in_words(loss)]
        outcome += [percent(one.accuracy[index]) for one in result.also_test.values()]
        outcome += [number(values[index]) for values in result.test_metrics.values()]
        table.add_row(result.model, result.dataset, str(seed), *outcome)
    return table


def number(value: float | None) -> str:
    """Returns a number, or a dash."""
    return "-" if value is None or not np.isfinite(value) else f"{value:.4g}"


def percent(share: float | None) -> str:
    """Returns a share in per cent, or a dash."""
    return "-" if share is None else f"{100 * share:.2f} %"


def mean_and_interval(result: records.Result) -> str:
    """Returns a run's mean test accuracy over its finished seeds, in per cent."""
    count, finished = len(result.seeds), result.finished
    interval = interval_of_accuracy(finished, result.test_size)
    if interval is None:
        return "none: every seed diverged"
    text = f"{percent_with_interval(mean_of_finite(finished), interval)} %"
    some = f", {len(finished)} of {count} seeds" if len(finished) < count else ""
    return text + some


def accuracy_in_words(result: records.Result) -> str:
    """Returns ``mean_and_interval``, and the share of the largest class beside it."""
    share = result.largest_class
    beside = "" if share is None else f" (largest class {100 * share:.2f} %)"
    return mean_and_interval(result) + beside


def loss_in_words(value: float) -> str:
    """Returns a loss as text."""
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.3g}"
