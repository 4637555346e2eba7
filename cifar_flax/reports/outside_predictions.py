"""Reads the predictions of results that were made elsewhere: NumPy's .npz files."""

import pathlib

import numpy as np

from cifar_flax import records
from cifar_flax.errors import UserError, one_line
from cifar_flax.reports.outside_rows import Row


def file_of(row: Row) -> pathlib.Path | None:
    """Returns the file of predictions: absolute, or inside the folder of the table."""
    given = row.cells.get("predictions")
    if given is None:
        return None
    folder = row.path.absolute().parent
    path = folder / given
    inside = path.resolve().is_relative_to(folder.resolve())
    if not pathlib.Path(given).is_absolute() and not inside:
        raise row.error(
            f"predictions is {one_line(given, 100)}, which leads out of the folder of "
            "the table; give an absolute path, or put the file beside the table"
        )
    return path


def predictions_of(row: Row, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, bool]:
    """Reads the predictions of a row; an error names its line."""
    try:
        found = read_predictions(path, row.cells["seed"])
    except UserError as error:
        raise row.error(one_line(error, 300)) from error
    size = row.cells.get("test_size")
    if size is not None and size != len(found[1]):
        raise row.error(
            f"test_size is {size}, and {path.name} has {len(found[1])} images"
        )
    return found


def read_predictions(
    path: pathlib.Path, seed: int
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Reads predictions: ``labels`` with ``logits`` or ``predictions``.

    Returns:
      Logits [N, K], labels [N], and whether the logits are more than the predicted
      classes.

    Raises:
      UserError: the file cannot be read, or its arrays do not belong together.
    """
    if not path.is_file():
        raise UserError(f"there is no file of predictions {path}")
    arrays = records.read_arrays(path)
    labels, logits = arrays.get("labels"), arrays.get("logits")
    classes = arrays.get("predictions")
    if labels is None or (logits is None and classes is None):
        raise UserError(
            f"{path} has the arrays {', '.join(sorted(arrays)) or '(none)'}; it needs "
            "labels [N], and logits [N, K] or predictions [N]"
        )
    if logits is not None and logits.ndim == 3 and "seeds" in arrays:
        rows = np.flatnonzero(arrays["seeds"] == seed)
        if len(rows) != 1 or len(arrays["seeds"]) != len(logits):
            raise UserError(f"{path} has no seed {seed}")
        logits = logits[rows[0]]
    for name, array in (("labels", labels), ("predictions", classes)):
        if array is not None and (array.ndim != 1 or array.dtype.kind not in "iu"):
            raise UserError(f"{path}: {name} is not a list of whole numbers")
    shape = (len(labels),)
    if logits is None:
        assert classes is not None
        most = max(int(labels.max(initial=0)), int(classes.max(initial=0)))
        least = min(int(labels.min(initial=0)), int(classes.min(initial=0)))
        if classes.shape != shape or not len(labels) or least < 0 or most > 99_999:
            raise UserError(
                f"{path}: predictions and labels are not classes of the same images"
            )
        logits = np.zeros((*shape, most + 1), np.float32)
        logits[np.arange(len(labels)), classes] = 1
        return logits, labels, False
    if logits.ndim != 2 or len(logits) != len(labels) or not logits.size:
        raise UserError(
            f"{path}: logits have the shape {list(logits.shape)}, and there are "
            f"{len(labels)} labels; give logits [N, K] and labels [N]"
        )
    if logits.dtype.kind != "f" or not np.isfinite(logits).all():
        raise UserError(f"{path}: logits are not all finite numbers")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(f"{path}: a label is not one of its {logits.shape[1]} classes")
    return logits, labels, True
