"""Tables, for a terminal and for a notebook."""

import re

from cifar_flax.models import create_model
from cifar_flax.runs.tables import Summary, as_html, make_table


def test_a_summary_counts_the_parameters_and_operations_by_hand():
    """The lesson's convnet: three convolutions of 15, 7 and 3 pixels, and a layer."""
    summary = Summary(create_model("convnet"), name="convnet")
    kernels = [(3, 20, 15), (20, 40, 7), (40, 80, 3)]
    params = sum(9 * a * b + b for a, b, _ in kernels) + 81 * 10
    flops = sum(2 * 9 * a * b * size**2 for a, b, size in kernels) + 2 * 800
    assert (summary.num_params, summary.flops) == (params, flops) == (37_490, 1_468_600)
    text = repr(summary)
    assert re.search(r"^convnet +10 +37,490 +1,468,600$", text, re.M)
    assert "\x1b" not in text


def test_a_notebook_shows_all_rows_and_no_markup_of_names():
    html = Summary(create_model("simplenet"))._repr_html_()
    assert html.count("<tr>") == 4  # the head, two layers and the sums
    assert "<td>123,330</td>" in html
    table = make_table("model", "value")
    table.add_row("<b>net</b>", "1")
    assert "<td>&lt;b&gt;net&lt;/b&gt;</td><td>1</td>" in as_html(table)
