"""Charts of shares for a single entry, written as SVG in less than a millisecond.

Both axes are fixed, so no layout is needed. Matplotlib would take a tenth of a second
for each chart, which is minutes for a thousand entries.
"""

from collections.abc import Sequence

import numpy as np

from cifar_flax.analysis.predictions import BINS, Calibration
from cifar_flax.reports.entries import Entry

BLUE, ORANGE = "#0072B2", "#D55E00"

# Sizes of the SVG and of the plot in it, in pixels.
WIDTH, HEIGHT = 340, 260
LEFT, TOP, SPAN, DEPTH = 50, 8, 270, 200

MAX_POINTS = 300  # points of a line, about one per pixel

Numbers = Sequence[float] | np.ndarray


def reliability(calibration: Calibration) -> str:
    """Draws accuracy against confidence, with the share of the images in each bin."""
    bars = []
    for values, colour in ((calibration.accuracy, BLUE), (calibration.share, ORANGE)):
        for number, value in enumerate(values):
            if value > 0:  # NaN if the bin is empty
                left, top = _place((number + 0.04) / BINS, value)
                width, height = 0.92 / BINS * SPAN, value * DEPTH
                bars.append(
                    f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" '
                    f'height="{height:.1f}" fill="{colour}" fill-opacity="0.7"/>'
                )
    diagonal = _line([0, 1], [0, 1], 'stroke="currentColor" stroke-dasharray="1 3"')
    ticks = [(share, f"{share:.1f}") for share in np.linspace(0, 1, 6)]
    labels = ("confidence", "accuracy (share of images)")
    return _chart([*bars, diagonal], ticks, *labels)


def accuracies(entry: Entry) -> str | None:
    """Draws accuracy over the epochs: mean and range over the seeds.

    Returns:
      The SVG; None if no seed has finished, or there are fewer than two epochs.
    """
    marks, last = [], 0.0
    for name, colour in (("train_accuracy", ORANGE), ("val_accuracy", BLUE)):
        epochs, values = entry.curve(name)
        if len(epochs) < 2 or not len(values):
            continue
        last = epochs[-1]
        some = np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_POINTS)).astype(int)
        x, values = (epochs[some] - 1) / (last - 1), values[:, some]
        around = np.concatenate([x, x[::-1]])
        band = np.concatenate([values.min(0), values.max(0)[::-1]])
        marks.append(_line(around, band, f'style="fill: {colour}; opacity: 0.2"'))
        marks.append(_line(x, values.mean(0), f'stroke="{colour}" stroke-width="1.5"'))
    if not marks:
        return None
    epochs = np.unique(np.linspace(1, last, 5).astype(int))
    ticks = [((epoch - 1) / (last - 1), str(epoch)) for epoch in epochs]
    return _chart(marks, ticks, "epoch", "accuracy (share of images)")


def _place(x: float, y: float) -> tuple[float, float]:
    """Returns the pixel position of a point of the unit square."""
    return LEFT + SPAN * x, TOP + DEPTH * (1 - y)


def _line(x: Numbers, y: Numbers, style: str) -> str:
    points = (_place(*point) for point in zip(x, y, strict=True))
    text = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
    return f'<polyline points="{text}" fill="none" {style}/>'


def _chart(
    marks: list[str], x_ticks: list[tuple[float, str]], x_label: str, y_label: str
) -> str:
    """Draws a plot of the unit square with axes in the colour of the text around it."""
    bottom, middle = TOP + DEPTH, LEFT + SPAN / 2
    parts = []
    for share in np.linspace(0, 1, 6):
        _, y = _place(0, share)
        parts.append(
            f'<path d="M{LEFT} {y:.1f}h{SPAN}" stroke="currentColor" opacity="0.2"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">'
            f"{share:.1f}</text>"
        )
    for share, label in x_ticks:
        x, _ = _place(share, 0)
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{label}</text>'
        )
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{x_label}</text>'
        f'<text transform="translate(14 {TOP + DEPTH / 2}) rotate(-90)" '
        f'text-anchor="middle">{y_label}</text>'
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" fill="currentColor" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join([*parts, *marks])}</svg>'
    )
