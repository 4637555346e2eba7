"""Converts studies to tables for other programs: CSV, LaTeX, and plain rows."""

import csv
import io
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from cifar_flax.analysis.predictions import largest_class
from cifar_flax.analysis.statistics import percent_with_interval
from cifar_flax.files import expand_user
from cifar_flax.reports.columns import Column, columns_of
from cifar_flax.reports.entries import Entry
from cifar_flax.reports.outside_rows import COLUMNS, FORMULA, SETTING, number_or_text
from cifar_flax.reports.runs import RunRecord
from cifar_flax.reports.studies import Study, read_studies
from cifar_flax.reports.verdicts import of_largest_class


def load_results(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads the results of all finished runs below a folder, a row for each seed.

    ``pandas.DataFrame`` accepts the rows directly. Accuracies are shares. The
    validation accuracy is that of the last epoch, and None without a validation split.
    Further test images and metrics have columns such as ``corrupt_accuracy`` and
    ``test_ece``. Each is followed by ``_low`` and ``_high``, the ends of the 95 %
    interval of the mean over the seeds of the configuration. Columns such as
    ``setting.weight_decay`` have the settings that were given to any run, with the
    value that each run used; ``setting.lr`` is its highest learning rate.

    Args:
      folder: folder that holds the runs, at any depth.

    Raises:
      UserError: there is no finished run.
    """
    studies, _ = read_studies(expand_user(folder))
    return rows_of(studies)


def rows_of(studies: list[Study]) -> list[dict[str, Any]]:
    """Returns the rows of studies; see ``load_results``."""
    everything = [entry for study in studies for entry in study.everything]
    columns = columns_of(everything)
    runs = [run for entry in everything for run in entry.runs]
    names = dict.fromkeys(name for run in runs for name in run.result.also_test)
    given = any(run.predictions_file is not None for run in runs)
    settings = dict.fromkeys(n for run in runs for n in run.given if n not in COLUMNS)
    return [
        {
            "dataset": study.dataset.name,
            "configuration": entry.name,
            "ranked": entry in study.entries,
            "model": run.config.model,
            "seed": result.seeds[index],
            "test_accuracy": None if at is not None else result.test_accuracy[index],
            "test_loss": _known(result.test_loss[index]),
            "val_accuracy": _last(run.metrics, index),
            "largest_class": _largest(run),
            **_further(columns, entry, run, index),
            "diverged_at": at,
            "epochs": result.epochs or None,
            "parameters": result.num_params or None,
            "flops_per_image": result.flops_per_image or None,
            "train_flops": result.train_flops,
            "train_seconds": result.train_seconds / len(result.seeds) or None,
            "test_size": result.test_size or None,
            "device": result.device or None,
            "folder": str(run.folder),
            **_sizes(run, names),
            **({"predictions": run.predictions_file} if given else {}),
            **{f"{SETTING}{n}": _setting(run.used.get(n)) for n in settings},
        }
        for study in studies
        for entry in [
            *study.everything,
            *(e for s in study.searched for e in s.entries),
        ]
        for run in entry.runs
        for result in [run.result]
        for index in run.replicas
        for at in [result.diverged_at[index]]
    ]


def _sizes(run: RunRecord, names: Iterable[str]) -> dict[str, int | None]:
    """Returns the number of further test images, by columns such as corrupt_size."""
    also = run.result.also_test
    return {f"{n}_size": (also[n].size or None) if n in also else None for n in names}


def _setting(value: Any) -> Any:
    """Returns a setting as a number, or as text that a table gives back as it is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and np.isfinite(value)):
        return value
    if isinstance(value, str) and value and number_or_text(value.strip()) == value:
        return value
    return json.dumps(value, default=str)


def _known(value: float | None) -> float | None:
    """Returns a number; None if it is not known, or not finite."""
    return None if value is None or not np.isfinite(value) else value


def _largest(run: RunRecord) -> float | None:
    """Returns the share of the largest class of the test images, if it is larger."""
    if not run.class_sizes:
        return run.result.largest_class
    largest = largest_class(run.class_sizes)
    return None if largest is None else largest[1]


def _further(
    columns: list[Column], entry: Entry, run: RunRecord, index: int
) -> dict[str, float | None]:
    """Returns what a replica has measured, and the intervals of its entry."""
    found: dict[str, float | None] = {}
    for column in columns:
        values, ends = column.figure.of(run), column.interval(entry) or (None, None)
        found[column.name] = None if values is None else values[index]
        found |= zip((f"{column.name}_low", f"{column.name}_high"), ends, strict=True)
    return found


def write_csv(studies: list[Study]) -> str:
    """Returns the rows as CSV with a header; unknown values are empty.

    Text that a spreadsheet would compute, such as ``=1+1``, begins with an apostrophe.
    """
    rows, file = rows_of(studies), io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _as_text(value) for name, value in row.items()})
    return file.getvalue()


def _as_text(value: Any) -> Any:
    is_formula = isinstance(value, str) and value[:1] in FORMULA
    return f"'{value}" if is_formula else value


def write_tex(studies: list[Study]) -> str:
    """Returns the rankings as LaTeX tables, which need the package booktabs."""
    parts = []
    for study in studies:
        lines = [" & ".join(_cells(entry)) + r" \\" for entry in study.entries]
        parts += [
            f"% {' '.join(study.dataset.name.split())}: test accuracy in per cent, 95 "
            "% intervals over seeds (for one seed over images)",
            *_largest_in_tex(study),
            r"\begin{tabular}{lrrrrr}",
            r"\toprule",
            r"& seeds & test accuracy & parameters & epochs & seconds per seed \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    return "\n".join(parts)


def _largest_in_tex(study: Study) -> list[str]:
    text = of_largest_class(study)
    return [] if text is None else [f"% {' '.join(text.split())}"]


def _cells(entry: Entry) -> tuple[str, ...]:
    accuracy = accuracy_in_words(entry)
    return (
        _escape_tex(entry.name),
        seeds_in_words(entry),
        accuracy.replace("±", r"$\pm$") if accuracy else "--",
        f"{entry.first.result.num_params:,}" if entry.first.result.num_params else "--",
        f"{entry.first.result.epochs:g}" if entry.first.result.epochs else "--",
        f"{entry.seconds_per_seed:.1f}" if entry.seconds_per_seed else "--",
    )


def _escape_tex(text: str) -> str:
    named = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
    named["^"] = r"\textasciicircum{}"
    return re.sub(
        r"[\\~^&%$#_{}]", lambda found: named.get(found[0], "\\" + found[0]), text
    )


def seeds_in_words(entry: Entry) -> str:
    """Returns the number of seeds, and of those that finished if some diverged."""
    count, finished = len(entry.seeds), len(entry.accuracies)
    return f"{count}" if count == finished else f"{finished} of {count}"


def accuracy_in_words(entry: Entry) -> str | None:
    """Returns mean accuracy and its interval if known, in per cent; None: no seed."""
    interval = entry.interval
    if interval is None:
        return f"{100 * entry.mean:.2f}" if entry.accuracies else None
    return percent_with_interval(entry.mean, interval)


def _last(metrics: list[Any], index: int) -> float | None:
    """Returns a replica's validation accuracy at the end of training."""
    values = [line.val_accuracy for line in metrics if line.val_accuracy is not None]
    if not values:
        return None
    return _known(float(np.atleast_1d(np.array(values[-1], np.float64))[index]))
