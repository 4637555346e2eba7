"""Writes studies as a Markdown page and as HTML.

With few entries, the HTML is one file that needs nothing else. With many, the section
of each entry is a separate file in a folder beside the page.
"""

import contextlib
import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jinja2

from cifar_flax.analysis.sequential import share_of_margin
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user, printable
from cifar_flax.reports import charts, verdicts
from cifar_flax.reports.cautions import cautions
from cifar_flax.reports.drawing import BANDS, Chart, style_of
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.entry_page import rates_of, row_of, section_of
from cifar_flax.reports.looks import remember, seeds_of
from cifar_flax.reports.output import check_replaceable, check_table, write_together
from cifar_flax.reports.search_page import search_charts, search_of
from cifar_flax.reports.studies import BEST, WHOLE, Study, read_studies
from cifar_flax.reports.tables import write_csv, write_tex

COSTS: dict[str, tuple[str, Callable[[Entry], float]]] = {
    "parameters": ("parameters", lambda e: e.first.result.num_params),
    "mflop": ("MFLOP per image", lambda e: e.first.result.flops_per_image / 1e6),
    "seconds": ("seconds of training per seed", lambda e: e.seconds_per_seed),
}

CURVES = {
    "val_accuracy": "validation accuracy, %",
    "train_accuracy": "training accuracy, %\n(augmented images)",
    "train_loss": "training loss",
}

# The folder of the sections that are separate files, and the names of the files.
DETAILS = "report-files"
_DETAIL = re.compile(r"[\w.=-]+-[0-9a-f]{12}\.html")


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A written report.

    Attributes:
      studies: the compared studies.
      left_out: a line with the reason for each run that is left out.
      markdown: the page as text.
      folder: the folder of the files.
    """

    studies: list[Study]
    left_out: list[str]
    markdown: str
    folder: pathlib.Path

    def __repr__(self) -> str:
        entries = sum(len(study.everything) for study in self.studies)
        return (
            f"Report({entries} configurations, {len(self.left_out)} runs left out, "
            f"{str(self.folder / 'report.html')!r})"
        )

    def _repr_html_(self) -> str:
        pages = [
            {**_overview(study), "ranking": charts.ranking(study.best, study.by)}
            for study in self.studies
        ]
        return _template("notebook.html.j2", autoescape=True).render(studies=pages)


def report(
    runs: str | pathlib.Path | None = None,
    output: str | pathlib.Path | None = None,
    baseline: str | None = None,
    compared: Sequence[str] = (),
    figures: str | pathlib.Path | None = None,
    rank_by: str | None = None,
    choose_seeds: Sequence[int] = (),
    results: str | pathlib.Path | Sequence[str | pathlib.Path] = (),
    export: str | pathlib.Path | None = None,
    margin: float | None = None,
) -> Report:
    """Compares the finished runs below a folder, and results that were made elsewhere.

    It writes ``report.md`` and ``report.html``, ``results.csv`` with a row for each
    seed, and ``ranking.tex``, all of them or none. If there are more than 20
    configurations, the details of each are in a file of the folder ``report-files``.

    Args:
      runs: folder that holds the runs, at any depth; None: there are only ``results``.
      output: folder for the report; None for ``runs``, or for the folder of the first
        table.
      baseline: name of a configuration, as in a report. The other configurations of its
        study are compared with it, and not with each other.
      compared: settings whose values are compared besides the models; see
        ``studies.read_studies``.
      figures: folder for the figures as PNG and SVG, and as PDF for one column of a
        paper; None: only the page has figures.
      rank_by: what ranks and compares the configurations instead of the test accuracy:
        ``ece``, ``corrupt_accuracy`` or another column; with a minus in front if
        lower is better.
      choose_seeds: seeds that choose the configuration of each model on the validation
        split; the report is of the other seeds, so that the choice does not bias it.
      results: one or more CSV files of results that were made elsewhere, a row for each
        seed; see docs/comparing.md for their columns.
      export: file for another copy of ``results.csv``.
      margin: largest difference that counts as the same, in points such as 0.5. The
        report then also says which configurations are shown to be the same.

    Raises:
      UserError: there is no finished run, no such baseline or setting, a table is not
        valid, the report cannot be written, or a file of its name is not of a report.
    """
    folder = None if runs is None else expand_user(runs)
    given = [results] if isinstance(results, str | pathlib.Path) else results
    tables = [expand_user(table) for table in given]
    if folder is None and not tables:
        raise UserError("there is nothing to compare; give runs or results")
    if output is None:
        output = tables[0].absolute().parent if folder is None else folder
    output = expand_user(output)
    copy = None if export is None else expand_user(export)
    check_replaceable(output, tables)
    if copy is not None:
        check_table(copy, tables)
    share = None if margin is None else share_of_margin(margin)
    chosen = baseline, compared, rank_by, choose_seeds
    studies, left_out = read_studies(
        folder, *chosen, tables, journal=output, margin=share
    )
    markdown = write_markdown(studies, left_out)
    try:
        output.mkdir(parents=True, exist_ok=True)
        texts = {
            "report.md": markdown,
            "report.html": write_html(studies, left_out),
            "results.csv": _writable(write_csv(studies)),
            "ranking.tex": _writable(write_tex(studies)),
        }
        details = _write_details(studies, output / DETAILS)
        write_together(output, texts)
        if copy is not None:
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_together(copy.parent, {copy.name: texts["results.csv"]})
        _remove_details(output / DETAILS, but=details)
        remember(output, seeds_of(e for one in studies for e in one.everything))
        if figures is not None:
            _save_figures(studies, expand_user(figures))
    except OSError as error:
        places = [str(one) for one in (output, figures, export) if one is not None]
        where = f"{output}: {error.strerror}; give --output"
        if len(places) > 1:
            where = f"{' and '.join(places)}: {error.strerror}; give other folders"
        raise UserError(f"cannot write the report to {where}") from error
    return Report(studies, left_out, markdown, output)


def _save_figures(studies: list[Study], folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, study in enumerate(studies, start=1):
        prefix = f"study{number}-" if len(studies) > 1 else ""
        for chart in _charts(study):
            chart.save(folder, prefix)
        for rank, entry in enumerate(study.shown, start=1):
            curves = charts.range_test(entry)
            if curves is not None:
                curves.save(folder, f"{prefix}{rank}-")


def write_markdown(studies: list[Study], left_out: list[str]) -> str:
    """Returns the ranking, the verdicts and the commands as Markdown."""
    text = _template("report.md.j2", autoescape=False).render(
        studies=[_overview(study) for study in studies], left_out=left_out
    )
    return _writable(text)


def write_html(studies: list[Study], left_out: list[str]) -> str:
    """Returns the page as HTML, with figures and a section or link for each entry."""
    whole = _is_whole(studies)
    pages = []
    for number, study in enumerate(studies):
        if whole:
            links = [f"#entry{number}-{i}" for i in range(len(study.everything))]
            sections = [section_of(entry) for entry in study.everything]
        else:
            links = [f"{DETAILS}/{_file_name(study, e)}" for e in study.everything]
            sections = []
        drawn = {chart.name: chart for chart in _charts(study)}
        pages.append(
            {
                **_overview(study),
                "ranking": drawn["ranking"],
                "looks": drawn.get("looks"),
                "trade_offs": [drawn[name] for name in COSTS],
                "search_charts": [
                    chart for name, chart in drawn.items() if name.startswith("search_")
                ],
                "curves": [
                    drawn[name] for name in (*CURVES, "learning_rate") if name in drawn
                ],
                "links": links,
                "sections": sections,
            }
        )
    text = _template("report.html.j2", autoescape=True).render(
        studies=pages,
        total=sum(len(study.everything) for study in studies),
        left_out=left_out,
        details=None if whole else DETAILS,
        most=WHOLE,
        bands=BANDS,
        style_of=style_of,
    )
    return _writable(text)


def _is_whole(studies: list[Study]) -> bool:
    """Returns whether the page itself contains the sections of all entries."""
    return sum(len(study.everything) for study in studies) <= WHOLE


def _file_name(study: Study, entry: Entry) -> str:
    """Returns the file name of an entry's section, which is equal in every report."""
    digest = hashlib.sha256(repr((study.key, entry.name)).encode(errors="replace"))
    words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", entry.name)[:80]
    return f"{words}-{digest.hexdigest()[:12]}.html"


def _write_details(studies: list[Study], folder: pathlib.Path) -> set[str]:
    """Writes a file for each entry if needed, and returns the names."""
    names = set()
    if not _is_whole(studies):
        if folder.is_symlink():
            raise UserError(f"{folder} is a link; remove it, or give another --output")
        folder.mkdir(exist_ok=True)
        template = _template("details.html.j2", autoescape=True)
        for study in studies:
            for rank, entry in enumerate(study.everything, start=1):
                section = section_of(entry, with_range_figure=False)
                text = template.render(s=section, study=study, rank=rank)
                name = _file_name(study, entry)
                write_together(folder, {name: _writable(text)})
                names.add(name)
    return names


def _remove_details(folder: pathlib.Path, but: set[str]) -> None:
    """Removes the files of earlier reports except some."""
    if not folder.is_dir() or folder.is_symlink():
        return
    for path in folder.iterdir():
        if path.name not in but and _DETAIL.fullmatch(path.name):
            path.unlink()
    with contextlib.suppress(OSError):  # the folder is not empty
        folder.rmdir()


def _writable(text: str) -> str:
    """Returns text that UTF-8 can encode; names of folders may be any bytes."""
    return text.encode(errors="backslashreplace").decode()


@functools.cache
def _template(name: str, autoescape: bool) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cifar_flax.reports", "templates"),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = _escape_markdown
    return environment.get_template(name)


def _escape_markdown(text: Any) -> str:
    """Returns text in which Markdown finds no markup."""
    escaped = re.sub(r"[\\`*<>\[\]|~&#]", r"\\\g<0>", printable(str(text)))
    # Within a word, Markdown takes an underscore as a letter.
    escaped = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)
    return escaped.replace("\n", " ")


def _overview(study: Study) -> dict[str, Any]:
    """Returns what both pages show of a study."""
    against = verdicts.against_baseline(study)
    return {
        "study": study,
        "rows": [
            {**row_of(entry, study), "against": against.get(id(entry))}
            for entry in study.entries
        ],
        "apart": [row_of(entry, study) for entry in study.apart],
        "columns": [column.heading for column in study.columns],
        "ranked_by": verdicts.ranked_by(study),
        "sentences": verdicts.sentences(study),
        "basis": verdicts.basis(study) if study.comparisons else None,
        "matrix": verdicts.matrix(study),
        "about": verdicts.about(study),
        "given": verdicts.given(study),
        "largest": verdicts.of_largest_class(study),
        "cautions": cautions(study),
        "search": search_of(study),
        "made": study.everything if len(study.everything) <= WHOLE else study.shown,
        "settings": [
            (name, [_value(entry, name) for entry in study.shown])
            for name in study.differing
        ],
    }


def _value(entry: Entry, name: str) -> Any:
    """Returns the used value of a setting; rates may differ between seeds."""
    value = rates_of(entry) if name == "lr" else entry.first.used.get(name)
    return "-" if value is None else value


def _charts(study: Study) -> list[Chart]:
    """Returns all figures of a study, without those of its entries."""
    most = BEST if study.is_large else None
    made = [charts.ranking(study.best, study.by)]
    made += [
        charts.trade_off(name, study.entries, cost, label, most)
        for name, (label, cost) in COSTS.items()
    ]
    grown = [pair for *pair, found in study.comparisons if found.most is not None]
    if grown:
        first, second = grown[0]
        course, ahead = study.course(first, second), study.ahead(first, second)
        made.append(charts.looks((first.name, second.name), course, ahead))
    curves = dict(CURVES)
    if any(entry.first.mixes for entry in study.shown):
        curves["train_accuracy"] = "training accuracy, %\n(augmented or mixed images)"
    lines = [charts.learning_curves(study.shown, *curve) for curve in curves.items()]
    lines.append(charts.schedules(study.shown))
    made += search_charts(study)
    return made + [chart for chart in lines if chart is not None]
