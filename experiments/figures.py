"""Figures on files. Import it where a figure is drawn: matplotlib starts slowly."""

import pathlib

import matplotlib

from cifar_flax.errors import UserError

matplotlib.use("agg")
import matplotlib.pyplot as plt

FORMATS = (".png", ".jpg", ".webp", ".svg", ".pdf")


def save_figure(figure: plt.Figure, path: pathlib.Path, named: str) -> None:
    """Writes a figure to a file and closes it.

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
    finally:
        plt.close(figure)
