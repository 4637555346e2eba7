"""Studies as a page of Markdown and as one HTML file that needs nothing else."""

import base64
import dataclasses
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
from cifar_flax.reports import charts
from cifar_flax.reports.predictions import confusion, mean_probability
from cifar_flax.reports.runs import Entry, Study, read_studies
from cifar_flax.reports.tables import write_csv, write_tex

COSTS: list[tuple[str, Callable[[Entry], float]]] = [
    ("parameters", lambda entry: entry.first.result.num_params),
    ("MFLOP an image", lambda entry: entry.first.result.flops_per_image / 1e6),
    ("seconds of training a seed", lambda entry: entry.seconds_per_seed),
]

CONFUSED_PAIRS = 8


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
    runs: str | pathlib.Path, output: str | pathlib.Path | None = None
) -> Report:
    """Compares the finished runs below a folder.

    It writes ``report.md`` and ``report.html``, ``results.csv`` with a row for each
    seed, and ``ranking.tex``.

    Args:
      runs: folder that holds them, at any depth.
      output: folder for the report; None for the same.

    Raises:
      UserError: there is no finished run, or the report cannot be written.
    """
    folder = pathlib.Path(runs)
    studies, left_out = read_studies(folder)
    markdown = write_markdown(studies, left_out)
    output = folder if output is None else pathlib.Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.md").write_text(markdown, encoding="utf-8")
        page = write_html(studies, left_out)
        (output / "report.html").write_text(page, encoding="utf-8")
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
    """The same with figures, and with a section for each entry."""
    pages = [
        {
            **_overview(study),
            **_figures(study),
            "sections": [
                _section(number, entry) for number, entry in enumerate(study.entries)
            ],
        }
        for study in studies
    ]
    text = _template("report.html.j2", autoescape=True).render(
        studies=pages, left_out=left_out
    )
    return _writable(text)


def _writable(text: str) -> str:
    """Text that a file can hold: the names of folders may be any bytes."""
    return text.encode(errors="backslashreplace").decode()


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
        "cautions": _cautions(study),
        "devices": sorted({e.first.result.device for e in study.entries}),
        "settings": [
            (name, [entry.first.settings.get(name) for entry in study.entries])
            for name in study.differing
        ],
    }


def _cautions(study: Study) -> list[str]:
    """What a reader of the verdicts must know."""
    cautions = [
        f"{entry.name}: {len(entry.diverged)} of {len(entry.accuracies)} seeds "
        f"diverged ({', '.join(map(str, entry.diverged))}). Their accuracies count, "
        "and make its interval wide; a lower rate would say more."
        for entry in study.entries
        if entry.diverged
    ]
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
    entries = study.entries
    curves = [
        ("val_accuracy", "validation accuracy, %"),
        ("train_accuracy", "accuracy on training images as seen, %"),
        ("train_loss", "training loss"),
    ]
    return {
        "trade_offs": [
            (label, charts.trade_off(entries, cost, label)) for label, cost in COSTS
        ],
        "curves": [
            (label, svg)
            for name, label in curves
            if (svg := charts.learning_curves(entries, name, label)) is not None
        ],
        "schedules": charts.schedules(entries),
    }


def _section(number: int, entry: Entry) -> dict[str, Any]:
    """All about one entry."""
    names = entry.first.config.dataset.class_names
    shares = confusion(entry.logits, entry.labels)
    pairs = [
        (shares[i, j], names[i], names[j])
        for i in range(len(names))
        for j in range(len(names))
        if i != j
    ]
    calibration = entry.calibration
    return {
        **_row(entry),
        "number": number,
        "names": names,
        "confusion": shares.tolist(),
        "recalls": sorted(zip(np.diag(shares).tolist(), names, strict=True)),
        "confused": sorted(pairs, reverse=True)[:CONFUSED_PAIRS],
        "reliability": charts.reliability(calibration) if calibration else None,
        "range_test": charts.range_test(entry),
        "wrong": _wrong_images(entry, names),
        "layers": entry.first.result.layers or [],
        "recipe": entry.first.config.recipe,
        "settings": entry.first.settings,
        "versions": entry.first.config.versions,
    }


def _wrong_images(entry: Entry, names: list[str]) -> list[dict[str, str]]:
    """Pictures that the first run is most sure and wrong about."""
    predictions = entry.first.predictions
    mean = mean_probability(predictions["logits"])
    if mean is None:
        return []
    return [
        {
            "src": _data_uri(image),
            "label": names[predictions["labels"][index]],
            "predicted": names[mean[index].argmax()],
            "confidence": f"{100 * mean[index].max():.0f} %",
        }
        for image, index in zip(
            predictions["images"], predictions["indices"], strict=True
        )
    ]


def _data_uri(image: np.ndarray) -> str:
    """A picture; of images that are no colours, the first channel."""
    buffer = io.BytesIO()
    Image.fromarray(image if image.shape[-1] == 3 else image[..., 0]).save(
        buffer, "png"
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
