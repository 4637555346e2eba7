"""Figures on files."""

import pathlib
from typing import TYPE_CHECKING

from cifar_flax.errors import UserError
from cifar_flax.runs.observers import Observer, RangeTestResult, RunResult

if TYPE_CHECKING:  # matplotlib starts slowly, and most runs draw nothing
    from matplotlib.figure import Figure

FORMATS = (".png", ".jpg", ".webp", ".svg", ".pdf")
RANGE_FIGURE = "lr_find.png"


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
