"""Figures show images as they are, whatever the user's settings of Matplotlib."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from cifar_flax import records
from cifar_flax.analysis.range_curve import RangeResult
from cifar_flax.data import make_dataset
from cifar_flax.data.augment import NO_AUGMENTATION
from cifar_flax.reports.drawing import Chart
from cifar_flax.runs.observers import RangeTestResult
from cifar_flax.show import figures
from tests.conftest import make_split

# Of a matplotlibrc; LaTeX is not installed everywhere.
SETTINGS = {
    "text.usetex": True,
    "savefig.dpi": 40,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "figure.facecolor": "red",
    "axes.facecolor": "red",
    "font.size": 40,
    "lines.linewidth": 20,
}


def picture_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGBA")).copy()


def draw_images(path):
    split = make_split(0, 40)
    arrays = (split.images, split.labels) * 2
    names = ("a_b", "$x^$", "50 %", "\\frac")
    dataset = make_dataset("c$_^", *arrays, names, source="a test")
    figure = figures.plot_images(dataset, NO_AUGMENTATION)
    figures.save_figure(figure, path, str(path))


def draw_range_test(path):
    rates = np.geomspace(1e-4, 1, 60)
    losses = np.stack([2 + np.log10(rates) ** 2] * 2)
    curves = RangeResult((0, 1), 60, rates, losses, losses)
    result = RangeTestResult("finished", "a_b", curves, [], None, path.parent)
    figures.RangeFigure().ended(result)
    (path.parent / figures.RANGE_FIGURE).rename(path)


def draw_chart(path):
    chart = Chart("a", "text", (4, 3), lambda axis: axis.set(title="a_b", xscale="log"))
    chart.svg()
    chart.save(path.parent)
    (path.parent / "a.png").rename(path)


@pytest.mark.parametrize(
    "draw",
    [pytest.param(draw_images, marks=pytest.mark.slow), draw_range_test, draw_chart],
)
def test_a_figure_is_the_same_with_any_matplotlibrc(tmp_path, draw):
    draw(tmp_path / "plain.png")
    with matplotlib.rc_context(SETTINGS):
        draw(tmp_path / "other.png")
        assert matplotlib.rcParams["font.size"] == 40
    one, other = (picture_of(tmp_path / f"{name}.png") for name in ("plain", "other"))
    np.testing.assert_array_equal(one, other)


def test_a_figure_for_a_notebook_can_be_saved_by_its_user(monkeypatch):
    steps = records.Steps(np.ones((1, 9), np.float32), np.ones(9, np.float32))
    monkeypatch.setattr(figures, "_steps_of", lambda run: (steps, "a_b", (0,)))
    with matplotlib.rc_context(SETTINGS):
        for plot in (figures.plot_loss, figures.plot_lr):
            plot("a run").savefig(io.BytesIO(), format="png")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_any_number_of_channels_are_drawn(channels):
    shape = (4, 8, 8, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pair = images, np.array([0, 1, 0, 1])
    dataset = make_dataset("d", *pair, *pair, ["a", "b"], source="a test")
    figure = figures.plot_images(dataset, NO_AUGMENTATION)
    figure.canvas.draw()
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    expected = images[0, ..., :3] if channels > 2 else images[0, ..., 0]
    np.testing.assert_array_equal(drawn, expected)
