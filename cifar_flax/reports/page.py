"""Studies as a page of Markdown and as HTML.

The HTML of few entries is one file that needs nothing else. That of many has the
section of each entry in a file of its own, in a folder beside the page.
"""

import base64
import contextlib
import dataclasses
import functools
import hashlib
import io
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from cifar_flax.errors import UserError
from cifar_flax.files import printable
from cifar_flax.reports import charts, small_charts
from cifar_flax.reports.predictions import confusion, converged, mean_probability
from cifar_flax.reports.runs import BEST, WHOLE, Entry, Study, read_studies
from cifar_flax.reports.tables import write_csv, write_tex

COSTS: list[tuple[str, Callable[[Entry], float]]] = [
    ("parameters", lambda entry: entry.first.result.num_params),
    ("MFLOP an image", lambda entry: entry.first.result.flops_per_image / 1e6),
    ("seconds of training a seed", lambda entry: entry.seconds_per_seed),
]

CONFUSED_PAIRS = 8

# The folder of the sections that are not on the page itself, and their names in it.
DETAILS = "report-files"
_DETAIL = re.compile(r"[\w.=-]+-[0-9a-f]{12}\.html")


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """A comparison, and where it was written.

    Attributes:
      studies: what is compared.
      left_out: a line for each run that is not, with the reason.
      markdown: the page as text.
      folder: that holds the files.
    """

    studies: list[Study]
    left_out: list[str]
    markdown: str
    folder: pathlib.Path

    def __repr__(self) -> str:
        entries = sum(len(study.entries) for study in self.studies)
        return (
            f"Report({entries} configurations, {len(self.left_out)} runs left out, "
            f"{str(self.folder / 'report.html')!r})"
        )


def report(
    runs: str | pathlib.Path,
    output: str | pathlib.Path | None = None,
    baseline: str | None = None,
) -> Report:
    """Compares the finished runs below a folder.

    It writes ``report.md`` and ``report.html``, ``results.csv`` with a row for each
    seed, and ``ranking.tex``. Of more than 20 configurations, what there is to say of
    each one lies in a file of the folder ``report-files``.

    Args:
      runs: folder that holds them, at any depth.
      output: folder for the report; None for the same.
      baseline: name of a configuration, as a report shows it. The others of its study
        are compared with it, and not with each other.

    Raises:
      UserError: there is no finished run, no such baseline, or the report cannot be
        written.
    """
    folder = pathlib.Path(runs)
    studies, left_out = read_studies(folder, baseline)
    markdown = write_markdown(studies, left_out)
    output = folder if output is None else pathlib.Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.md").write_text(markdown, encoding="utf-8")
        page = write_html(studies, left_out)
        (output / "report.html").write_text(page, encoding="utf-8")
        _write_details(studies, output / DETAILS)
        tables = {"results.csv": write_csv(studies), "ranking.tex": write_tex(studies)}
        for name, text in tables.items():
            (output / name).write_text(_writable(text), encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(
            f"cannot write the report to {output}: {error.strerror}; give --output"
        ) from error
    return Report(studies, left_out, markdown, output)


def write_markdown(studies: list[Study], left_out: list[str]) -> str:
    """The ranking, the verdicts and how to reproduce them."""
    text = _template("report.md.j2", autoescape=False).render(
        studies=[_overview(study) for study in studies], left_out=left_out
    )
    return _writable(text)


def write_html(studies: list[Study], left_out: list[str]) -> str:
    """The same with figures, and with a section for each entry or a link to it."""
    whole = _is_whole(studies)
    pages = []
    for number, study in enumerate(studies):
        if whole:
            links = [f"#entry{number}-{i}" for i in range(len(study.entries))]
            sections = [_section(entry) for entry in study.entries]
        else:
            links = [f"{DETAILS}/{_file_name(study, entry)}" for entry in study.entries]
            sections = []
        overview = {**_overview(study), **_figures(study)}
        pages.append({**overview, "links": links, "sections": sections})
    text = _template("report.html.j2", autoescape=True).render(
        studies=pages, left_out=left_out, details=None if whole else DETAILS, most=WHOLE
    )
    return _writable(text)


def _is_whole(studies: list[Study]) -> bool:
    """Whether the sections of all entries are on the page itself."""
    return sum(len(study.entries) for study in studies) <= WHOLE


def _file_name(study: Study, entry: Entry) -> str:
    """Name of the file with an entry's section, the same in every report on it."""
    digest = hashlib.sha256(repr((study.key, entry.name)).encode(errors="replace"))
    words = re.sub(r"[^A-Za-z0-9_.=-]+", "-", entry.name)[:80]
    return f"{words}-{digest.hexdigest()[:12]}.html"


def _write_details(studies: list[Study], folder: pathlib.Path) -> None:
    """Writes a file for each entry where the page has no sections; removes others."""
    names = set()
    if not _is_whole(studies):
        folder.mkdir(exist_ok=True)
        template = _template("details.html.j2", autoescape=True)
        for study in studies:
            for rank, entry in enumerate(study.entries, start=1):
                section = _section(entry, with_range_figure=False)
                text = template.render(s=section, study=study, rank=rank)
                name = _file_name(study, entry)
                (folder / name).write_text(_writable(text), encoding="utf-8")
                names.add(name)
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in names and _DETAIL.fullmatch(path.name):
                path.unlink()  # of an earlier report
        with contextlib.suppress(OSError):  # it is not empty
            folder.rmdir()


def _writable(text: str) -> str:
    """Text that a file can hold: the names of folders may be any bytes."""
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
    """A text for Markdown, in which none of it is markup."""
    escaped = re.sub(r"[\\`*<>\[\]|~&#]", r"\\\g<0>", printable(str(text)))
    # Within a word an underscore is a letter.
    escaped = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", escaped)
    return escaped.replace("\n", " ")


def _overview(study: Study) -> dict[str, Any]:
    """What both pages show of a study."""
    return {
        "study": study,
        "rows": [_row(entry) for entry in study.entries],
        "verdicts": [
            difference.verdict(first.name, second.name)
            for first, second, difference in study.comparisons
        ],
        "compared": _compared(study),
        "cautions": _cautions(study),
        "devices": sorted({e.first.result.device for e in study.entries}),
        "settings": [
            (name, [entry.first.settings.get(name) for entry in study.shown])
            for name in study.differing
        ],
    }


def _compared(study: Study) -> str:
    """What the verdicts are of, with their number."""
    count = len(study.comparisons)
    if study.baseline is not None:
        return f"{_count(count, 'comparison')} with {study.baseline.name}"
    return _count(count, "pair") + (f" of the best {BEST}" if study.is_large else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _outcomes(study: Study) -> str:
    """How many entries are better than the baseline, and how many are worse."""
    assert study.baseline is not None
    gaps = [gap.mean for _, _, gap in study.comparisons if gap.shown]
    better = sum(gap > 0 for gap in gaps)
    unclear = len(study.comparisons) - len(gaps)
    return (
        f"Of {_count(len(study.comparisons), 'configuration')} compared with "
        f"{study.baseline.name}, {better:,} shown to be better, "
        f"{len(gaps) - better:,} shown to be worse, {unclear:,} without a shown "
        "difference."
    )


def _cautions(study: Study) -> list[str]:
    """What a reader of the verdicts must know."""
    named = study.shown if study.is_large else study.entries
    cautions = [
        f"{entry.name}: {len(entry.diverged)} of {len(entry.accuracies)} seeds "
        f"diverged ({', '.join(map(str, entry.diverged))}). Their accuracies count, "
        "and make its interval wide; a lower rate would say more."
        for entry in named
        if entry.diverged
    ]
    others = sum(1 for entry in study.entries if entry.diverged) - len(cautions)
    if others:
        cautions.append(f"Seeds of {_count(others, 'other configuration')} diverged.")
    if study.baseline is not None:
        cautions.append(_outcomes(study))
    elif study.is_large:
        cautions.append(
            f"The best {BEST} of {len(study.entries):,} are chosen by the same test "
            "accuracies that are shown here; with new seeds they are likely to come "
            "out lower."
        )
    epochs = {entry.first.result.epochs for entry in study.entries}
    if len(epochs) > 1:
        cautions.append(
            f"They trained for {min(epochs):g} to {max(epochs):g} epochs: this ranks "
            "recipes, not architectures."
        )
    return cautions


def _row(entry: Entry) -> dict[str, Any]:
    """A line of the ranking."""
    _, val = entry.curve("val_accuracy")
    return {
        "entry": entry,
        "result": entry.first.result,
        "seeds": len(entry.accuracies),
        "seed_list": ", ".join(map(str, sorted(entry.accuracies))),
        "val": float(val[:, -1].mean()) if len(val) else None,
        "calibration": entry.calibration,
        "commands": [run.command for run in entry.runs],
    }


def _figures(study: Study) -> dict[str, Any]:
    entries, most_names = study.shown, BEST if study.is_large else None
    curves = [
        ("val_accuracy", "validation accuracy, %"),
        ("train_accuracy", "accuracy on training images as seen, %"),
        ("train_loss", "training loss"),
    ]
    return {
        "trade_offs": [
            (label, charts.trade_off(study.entries, cost, label, most_names))
            for label, cost in COSTS
        ],
        "curves": [
            (label, svg)
            for name, label in curves
            if (svg := charts.learning_curves(entries, name, label)) is not None
        ],
        "schedules": charts.schedules(entries),
    }


def _section(entry: Entry, with_range_figure: bool = True) -> dict[str, Any]:
    """All about one entry.

    Args:
      entry: of a study.
      with_range_figure: whether to draw its range test, which takes a tenth of a
        second; its suggestions are there in any case.
    """
    names = entry.first.config.dataset.class_names
    predictions = entry.predictions
    logits = np.concatenate([arrays["logits"] for arrays in predictions])
    shares = confusion(logits, predictions[0]["labels"])
    pairs = [
        (shares[i, j], names[i], names[j])
        for i in range(len(names))
        for j in range(len(names))
        if i != j
    ]
    calibration = entry.calibration
    return {
        **_row(entry),
        "names": names,
        "confusion": shares.tolist(),
        "recalls": sorted(zip(np.diag(shares).tolist(), names, strict=True)),
        "confused": sorted(pairs, reverse=True)[:CONFUSED_PAIRS],
        "reliability": small_charts.reliability(calibration) if calibration else None,
        "accuracies": small_charts.accuracies(entry),
        "range_figure": charts.range_test(entry) if with_range_figure else None,
        "range_test": entry.first.range_test,
        "wrong": _wrong_images(predictions[0], names),
        "layers": entry.first.result.layers or [],
        "recipe": entry.first.config.recipe,
        "settings": entry.first.settings,
        "versions": entry.first.config.versions,
    }


def _wrong_images(
    predictions: dict[str, np.ndarray], names: list[str]
) -> list[dict[str, str]]:
    """Pictures that a run is most sure and wrong about."""
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
    """A picture; of images that are no colours, the first channel."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(
        buffer, "png"
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
