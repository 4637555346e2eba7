"""The report as a reader sees it."""

import html
import html.parser
import re

import markdown_it
import pytest

from cifar_flax import records
from cifar_flax.reports.charts import pareto_front
from cifar_flax.reports.page import write_html, write_markdown
from cifar_flax.reports.studies import read_studies
from tests.reports.made import make_run, write_metrics


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a", "convnet", (0.5, 0.52, 0.51))
    make_run(folder / "b", "convbn", (0.8, 0.81, 0.8))
    make_run(folder / "c", "resnet", (0.8, 0.805, 0.81))
    return read_studies(folder)[0]


class Page(html.parser.HTMLParser):
    """Counts the elements of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        names = ("href", "src", "xlink:href")
        self.links += [attrs[name] for name in names if name in attrs]


def test_the_page_needs_nothing_from_elsewhere(studies):
    text = write_html(studies, [])
    page = Page(text)
    assert page.links
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "url(http" not in text
    targets = {link[1:] for link in page.links if link.startswith("#")}
    assert targets <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("details") == 3


def test_names_from_records_are_text_and_never_markup(studies):
    text = write_html(studies, ["<script>alert(1)</script> is not finished"])
    assert "<b>ship</b>" not in text
    assert "&lt;b&gt;ship&lt;/b&gt;" in text
    assert "<script>alert" not in text


def test_markdown_shows_names_as_they_are(tmp_path):
    """An independent Markdown parser must see plain text in a single cell."""
    name = "a|b`c`<i>*d*[e](f)# g_h_ _i_ ~j~ &amp; \\k"
    make_run(tmp_path / "a", dataset=name, seeds=[0, 1], note=name)
    make_run(tmp_path / "b", dataset=name, seeds=[0, 1], note="none")
    studies = read_studies(tmp_path)[0]
    text = write_markdown(studies, [f"{name}\n# x\x1b[2J"])
    reader = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    page = reader.render(text)
    assert f"<h2>{html.escape(name)}</h2>" in page
    assert f"<td>{html.escape(name)}</td>" in page
    assert f"<li>{html.escape(name)} # x\\x1b[2J</li>" in page
    assert page.count("<h1>") == 1
    rows = re.findall(r"<tr>.*?</tr>", page, re.DOTALL)
    assert {row.count("</t") - 1 for row in rows} == {15, 3}


def test_both_pages_hold_the_ranking_and_the_verdicts(studies):
    for text in (
        write_html(studies, ["x/y is not finished"]),
        write_markdown(studies, ["x/y is not finished"]),
    ):
        assert text.index("convnet") > 0
        assert re.search(r"convbn beats convnet by 29\.\d ± \d\.\d points \(p", text)
        assert "No difference is shown between resnet and convbn: 0.2" in text
        assert re.search(
            r"With 3 seeds and 3 pairs, this report shows a difference of \d\.\d", text
        )
        assert "p is adjusted for 3 pairs (Holm)" in text
        assert "x/y is not finished" in text
        assert "secret/place" not in text
    rows = re.findall(r"^\| (\d) \| (\w+) ", write_markdown(studies, []), re.M)
    assert rows == [("1", "resnet"), ("2", "convbn"), ("3", "convnet")]


def test_the_pareto_front_holds_what_none_beats(studies):
    (study,) = studies
    cost = {"convnet": 1.0, "convbn": 3.0, "resnet": 2.0}
    front = pareto_front(study.entries, lambda entry: cost[entry.name])
    assert [entry.name for entry in front] == ["convnet", "resnet"]


@pytest.mark.parametrize("diverged", [[1], [0, 1, 2]])
def test_seeds_that_diverged_are_named_and_break_nothing(tmp_path, diverged):
    make_run(tmp_path / "a", "convnet", (0.5, 0.52, 0.51), diverged=diverged)
    make_run(tmp_path / "b", "convbn", (0.8, 0.81, 0.8))
    studies, _ = read_studies(tmp_path)
    words = f"convnet: {len(diverged)} of 3 seeds diverged"
    for text in (write_markdown(studies, []), write_html(studies, [])):
        assert words in text
        assert f"{3 - len(diverged)} of 3" in text
        assert "beats" not in text
        assert not re.search(r"\bnan\b", text)


def test_one_seed_each_ranks_nothing_and_says_so(tmp_path):
    make_run(tmp_path / "a", "convnet", (0.5,))
    make_run(tmp_path / "b", "convbn", (0.8,))
    studies, _ = read_studies(tmp_path)
    for text in (write_markdown(studies, []), write_html(studies, [])):
        assert "These configurations have only one: convbn, convnet" in text
        assert "differ by 30.0 points on these images" in text
        assert "beats" not in text


def test_settings_that_validation_did_not_choose_are_listed_apart(tmp_path):
    make_run(tmp_path / "a", lr=0.1, val_accuracy=0.5)
    make_run(tmp_path / "b", lr=0.2, val_accuracy=0.6)
    studies, _ = read_studies(tmp_path)
    for text in (write_markdown(studies, []), write_html(studies, [])):
        ranked, apart = re.split("Not ranked(?:<|:)", text)
        assert "convnet lr=0.1" in apart
        assert "convnet lr=0.1" not in ranked
        assert "--compare=SETTING" in text


def test_unequal_budgets_are_pointed_out(tmp_path):
    make_run(tmp_path / "a")
    folder = make_run(tmp_path / "b", "convbn")
    result = records.read_result(folder)
    result.epochs = 9
    write_metrics(folder, 2, epochs=9)
    records.write_result(folder, result)
    studies, _ = read_studies(tmp_path)
    assert "The configurations trained for 2 to 9 epochs" in write_markdown(studies, [])
