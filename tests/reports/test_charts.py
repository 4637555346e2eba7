"""The files of a report's figures."""

import re

import matplotlib.figure
import numpy as np
import pytest
from matplotlib.text import Text

from cifar_flax.analysis.range_curve import RangeResult
from cifar_flax.analysis.statistics import Difference
from cifar_flax.reports import charts
from cifar_flax.reports.drawing import Chart, set_decades
from cifar_flax.reports.page import report
from tests.reports.made import make_run

COLUMN = 3.3  # inches, of a paper


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The figures of a report as they were saved: format and name, and the figure."""
    folder, found = tmp_path_factory.mktemp("runs"), {}
    for number, accuracy in enumerate((0.99, 0.98, 0.6, 0.02)):
        name = f"net{number}" + "-and-more" * 4 * number
        seeds = (accuracy, accuracy - 0.02, min(1, accuracy + 0.02))
        dataset = "images with a rather long name in it"
        make_run(
            folder / name, name, seeds, val_accuracy=accuracy, dataset=dataset, lr=0.1
        )
    save = matplotlib.figure.Figure.savefig

    def savefig(figure, file, format, **options):
        save(figure, file, format=format, **options)
        if options.get("metadata") is not None and not options.get("transparent"):
            name = file.name.rpartition("/")[2]
            found[f"{len(found)} {name}"] = format, figure

    rates = np.geomspace(1e-4, 1, 60)
    losses = np.stack([2 + np.log10(rates) ** 2] * 5)
    curves = RangeResult((0, 1, 2, 3, 4), 60, rates, losses, losses)
    course = [
        Difference(0.1 / n, 0.2 / n, 0.01, 0.01, "paired", (n, n), 0.01, n - 1)
        for n in (5, 10)
    ]
    names = ("a-net-with-a-long-name weight_decay=0.0005", "another-net lr=0.001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib.figure.Figure, "savefig", savefig)
        report(folder, folder / "page", figures=folder / "figures")
        Chart("range", "", (5.6, 4.0), curves.plot).save(folder / "figures")
        charts.looks(names, course, [(15, 0.01)]).save(folder / "figures")
    return found.values(), folder / "figures"


@pytest.mark.slow
def test_nothing_of_a_figure_is_cut(saved):
    figures, _ = saved
    assert {ending for ending, _ in figures} == {"png", "svg", "pdf"}
    for name, figure in figures:
        figure.draw_without_rendering()  # saving has another resolution
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert -0.01 < drawn.x0 < drawn.x1 < width + 0.01, name
        assert -0.01 < drawn.y0 < drawn.y1 < height + 0.01, name


@pytest.mark.slow
def test_axes_of_accuracies_end_at_0_and_100(saved):
    checked = 0
    for _, figure in saved[0]:
        (axis,) = figure.axes
        for label, limits in (
            (axis.get_xlabel(), axis.get_xlim()),
            (axis.get_ylabel(), axis.get_ylim()),
        ):
            if "accuracy" in label:
                checked += 1
                assert min(limits) >= 0
                assert max(limits) <= 100
    assert checked > 10


@pytest.mark.slow
def test_a_pdf_is_as_wide_as_a_column_and_has_whole_fonts_of_a_paper(saved):
    files = sorted(saved[1].glob("*.pdf"))
    assert len(files) > 6
    for file in files:
        text = file.read_bytes()
        (box,) = re.findall(rb"/MediaBox ?\[ ?([\d. ]+)\]", text)
        assert float(box.split()[2]) == pytest.approx(72 * COLUMN, abs=0.1)
        assert b"/FontFile2" in text
        assert b"/Type3" not in text
        assert b"STIXGeneral" in text
    sizes = {
        text.get_fontsize()
        for ending, figure in saved[0]
        for text in figure.findobj(Text)
        if ending == "pdf" and text.get_text()
    }
    assert 8 <= min(sizes) <= max(sizes) <= 9


@pytest.mark.slow
def test_the_same_figure_is_the_same_file(tmp_path):
    def draw(axis):
        axis.plot([1, 2], [0.5, 0.6], label="1  net", gid="line-1")
        axis.fill_between([1, 2], 0.4, 0.7).set(gid="band-1")

    made = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        Chart("a", "text", (4, 3), draw, [(1, "net")]).save(tmp_path / name)
        made.append(content(tmp_path / name))
    assert set(made[0]) == {"a.png", "a.svg", "a.pdf"}
    assert made[0] == made[1]


@pytest.mark.parametrize("start", [0.2, 37_000, 90_000])
@pytest.mark.parametrize("span", [1.02, 1.2, 2, 3, 4, 20, 300, 1e5])
def test_a_logarithmic_axis_has_three_numbers_or_more(span, start):
    axis = matplotlib.figure.Figure().subplots()
    axis.plot([start, start * span], [1, 2])
    axis.set_xscale("log")
    set_decades(axis)
    low, high = axis.get_xlim()
    ticks = axis.xaxis.get_ticklocs()
    assert np.sum((low <= ticks) & (ticks <= high)) >= 3
