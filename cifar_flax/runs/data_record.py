"""What a run records of its data, and how the header says it."""

import numpy as np

from cifar_flax.analysis.predictions import largest_class
from cifar_flax.data import Dataset, Splits
from cifar_flax.records import DatasetInfo

_MAX_NAMES = 10  # classes that the header names


def describe_data(dataset: Dataset, splits: Splits) -> DatasetInfo:
    """Returns the record of a data set and its splits."""
    train, test = (
        np.bincount(split.labels, minlength=splits.num_classes).tolist()
        for split in (splits.train, splits.test)
    )
    reading = dataset.reading
    return DatasetInfo(
        name=dataset.name,
        fingerprint=dataset.fingerprint,
        source=dataset.source,
        class_names=list(dataset.class_names),
        image_shape=splits.spec.image_shape,
        mean=list(splits.mean),
        std=list(splits.std),
        train_size=len(splits.train),
        val_size=len(splits.val) if splits.val else 0,
        test_size=len(splits.test),
        class_sizes=train,
        test_class_sizes=test,
        values=(reading.low, reading.high),
        white=reading.white,
        notes=list(reading.notes),
    )


def data_in_words(info: DatasetInfo) -> list[tuple[str, str]]:
    """Returns names and values that describe data: sizes, classes, pixels and notes."""
    val = f"{info.val_size:,}" if info.val_size else "no"
    data = (
        f"{info.name}: {info.train_size:,} training, {val} validation and "
        f"{info.test_size:,} test images ({info.source})"
    )
    height, width, channels = info.image_shape
    pixels = f"{height} x {width}, {channels} channel{'s' if channels > 1 else ''}"
    if info.values is not None:
        pixels += f", values {values_in_words(*info.values, info.white)}"
    notes = [("note", note) for note in info.notes]
    classes = [("classes", _classes(info))]
    if largest := largest_class(info.test_class_sizes):
        index, share = largest
        classes.append(
            (
                "largest class",
                f"{100 * share:.2f} % of the test images are {info.class_names[index]}",
            )
        )
    return [("data", data), *classes, ("images", pixels), *notes]


def values_in_words(low: float, high: float, white: float | None) -> str:
    """Returns the range of the values, and how they were read unless they are bytes."""
    read = "" if white is None else f" (white is {white:,.10g}), read as 0 to 255"
    return f"from {low:,.10g} to {high:,.10g}{read}"


def _classes(info: DatasetInfo) -> str:
    names = info.class_names
    shown = ", ".join(names[:_MAX_NAMES])
    words = f"{len(names):,} ({shown}{', ...' if len(names) > _MAX_NAMES else ''})"
    if not info.class_sizes:
        return words
    order = np.argsort(info.class_sizes, kind="stable")
    small, large = (f"{info.class_sizes[k]:,}" for k in (order[0], order[-1]))
    if small == large:
        return f"{words}, {small} training images of each"
    return (
        f"{words}, from {small} training images ({names[order[0]]}) to {large} "
        f"({names[order[-1]]})"
    )
