"""The positions of the elements in the charts of an entry."""

import re

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.analysis.predictions import BINS, score
from cifar_flax.reports.small_charts import accuracies, reliability
from cifar_flax.reports.studies import read_studies
from tests.reports.made import make_run, write_metrics


def scale_of(svg):
    """Returns the share at each height, from the labels of the axis."""
    labels = re.findall(r'y="([\d.]+)" text-anchor="end">([\d.]+)<', svg)
    heights, shares = np.array(labels, float).T
    slope, start = np.polyfit(heights, shares, 1)
    # The label of a share stands four pixels below its line.
    return lambda y: slope * (np.array(y, float) + 4) + start


def test_bars_are_as_high_as_accuracy_and_share():
    logits = np.random.default_rng(0).normal(scale=3, size=(1, 500, 3))
    labels = np.random.default_rng(1).integers(0, 3, 500)
    found = score(logits, labels).calibration
    svg = reliability(found)
    bars = re.findall(r'<rect .*? y="([\d.]+)" .*? height="([\d.]+)"', svg)
    share_at = scale_of(svg)
    tops, heights = np.array(bars, float).T
    expected = [v for v in (*found.accuracy, *found.share) if v > 0]
    assert len(bars) == len(expected) <= 2 * BINS
    assert share_at(tops) == pytest.approx(expected, abs=0.002)
    assert np.ptp(tops + heights) < 0.2


def test_lines_go_through_the_means_of_the_seeds(tmp_path):
    folder = make_run(tmp_path / "a", accuracies=(0.5, 0.6))
    lines = records.read_metrics(folder)
    lines[0].train_accuracy, lines[1].train_accuracy = [0.2, 0.4], [0.5, 0.9]
    records.cut_metrics(folder, 0)
    records.append_metrics(folder, lines)
    (study,), _ = read_studies(tmp_path)
    svg = accuracies(study.entries[0])
    (points,) = re.findall(r'points="([^"]*)" fill="none" stroke', svg)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert scale_of(svg)(heights) == pytest.approx([0.3, 0.7], abs=0.002)


def test_one_epoch_is_no_curve(tmp_path):
    folder = make_run(tmp_path / "a")
    result = records.read_result(folder)
    result.epochs = 1
    records.write_result(folder, result)
    write_metrics(folder, 2, epochs=1)
    (study,), _ = read_studies(tmp_path)
    assert accuracies(study.entries[0]) is None
