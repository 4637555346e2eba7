"""What the page tells of one entry: its row in the ranking, and its section."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from cifar_flax.analysis.predictions import (
    confusion,
    converged,
    mean_probability,
    recalls_of,
)
from cifar_flax.analysis.statistics import percent_with_interval
from cifar_flax.reports import charts, small_charts
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.studies import Study
from cifar_flax.reports.tables import accuracy_in_words, seeds_in_words

CONFUSED_PAIRS = 8


def rates_of(entry: Entry) -> str:
    """Returns the learning rate in words; it may differ between seeds."""
    if entry.rates is None:
        return str(entry.first.used.get("lr", "-"))
    low, high = entry.rates
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def row_of(entry: Entry, study: Study | None = None) -> dict[str, Any]:
    """Returns a row of the ranking; without a study, what a section shows of it."""
    recipe: Any = entry.first.config.recipe
    result, seconds = entry.first.result, entry.seconds_per_seed
    flops, used = result.flops_per_image, entry.first.used
    usual = "sgd" if entry.first.source is None else used.get("optimizer", "-")
    kinds = dict.fromkeys(phase.get("kind", "") for phase in recipe["phases"])
    return {
        "entry": entry,
        "result": result,
        "epochs": f"{result.epochs:g}" if result.epochs else "-",
        "parameters": f"{result.num_params:,}" if result.num_params else "-",
        "mflop": f"{flops / 1e6:.2f}" if flops else "-",
        "seconds": f"{seconds:.1f}" if seconds else "-",
        "count": len(entry.seeds),
        "seeds": seeds_in_words(entry),
        "seed_list": ", ".join(map(str, entry.seeds)),
        "accuracy": accuracy_in_words(entry) or "none",
        "rate": rates_of(entry),
        "optimizer": recipe.get("optimizer", usual),
        "recipe": entry.first.settings.get("recipe")
        or used.get("recipe")
        or " + ".join(kinds)
        or "-",
        "calibration": entry.calibration,
        "further": [
            (column.cell(entry), column.mean(entry))
            for column in (study.columns if study else ())
        ],
        "commands": entry.commands,
    }


def section_of(entry: Entry, with_range_figure: bool = True) -> dict[str, Any]:
    """Returns the details of one entry.

    Args:
      entry: of a study.
      with_range_figure: whether to draw its range test, which takes a tenth of a
        second; otherwise there is a table of the suggestions.
    """
    names = entry.first.config.dataset.class_names
    predictions = entry.predictions
    shares, recalls = np.empty((0, 0)), []
    if predictions:
        logits = np.concatenate([arrays["logits"] for arrays in predictions])
        labels = predictions[0]["labels"]
        shares, recalls = confusion(logits, labels), recalls_of(logits, labels)
    names = [*names, *(f"class {n}" for n in range(len(names), len(shares)))]
    pairs = [
        (share, names[i], names[j])
        for (i, j), share in np.ndenumerate(shares)
        if i != j
    ]
    calibration = entry.calibration
    return {
        **row_of(entry),
        "mixes": entry.first.mixes,
        "names": names,
        "confusion": shares.tolist(),
        "recalls": [
            (percent_with_interval(mean, ends), names[label])
            for label, mean, ends in sorted(recalls, key=lambda one: one[1])
        ],
        "confused": sorted(pairs, reverse=True)[:CONFUSED_PAIRS],
        "reliability": small_charts.reliability(calibration) if calibration else None,
        "accuracies": small_charts.accuracies(entry),
        "range_figure": charts.range_test(entry) if with_range_figure else None,
        "range_test": entry.first.range_test,
        "wrong": _wrong_images(predictions[0], names) if predictions else [],
        "layers": entry.first.result.layers or [],
        "recipe": entry.first.config.recipe,
        "settings": entry.first.settings,
        "versions": entry.first.config.versions,
    }


def _wrong_images(
    predictions: dict[str, np.ndarray], names: list[str]
) -> list[dict[str, str]]:
    """Returns the images that a run misclassifies most confidently."""
    logits, indices = predictions["logits"], predictions["indices"]
    mean = mean_probability(logits[converged(logits)][:, indices])
    if mean is None:
        return []
    labels = predictions["labels"][indices]
    return [
        {
            "src": _data_uri(image),
            "label": names[label],
            "predicted": names[probabilities.argmax()],
            "confidence": f"{100 * probabilities.max():.0f} %",
        }
        for image, label, probabilities in zip(
            predictions["images"], labels, mean, strict=True
        )
    ]


def _data_uri(image: np.ndarray) -> str:
    """Returns an image as a data URI; only the first channel if it is not RGB."""
    buffer, shown = io.BytesIO(), image if image.shape[-1] == 3 else image[..., 0]
    Image.fromarray(shown).save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
