"""Compares the finished runs below a folder: report.md, report.html and tables.

python -m experiments.report --runs=runs
python -m experiments.report --runs=runs --baseline=convbn
python -m experiments.report --runs=runs --compare=optimizer --figures=figures

The ranking holds the best configuration of each model on the validation split. With
--compare it also compares the values of other settings. The command reads only records.
Open the HTML file in a browser. With up to 20 configurations the file is complete; with
more, the details of each are in report-files beside it. results.csv has a row for each
seed, and ranking.tex is a table for a paper. looks.jsonl remembers which seeds this
report saw, so that a later report is right about seeds that were added since.
"""

import sys

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.reports.looks import JOURNAL
from cifar_flax.reports.page import DETAILS, report

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        made = report(
            *(FLAGS.runs, FLAGS.output, FLAGS.baseline, FLAGS.compare, FLAGS.figures),
            rank_by=FLAGS.rank_by,
            margin=FLAGS.margin,
        )
        for line in made.left_out:
            cli.logger.warning("left out: %s", line)
        print(made.markdown)
        names = ["report.md", "report.html", "results.csv", "ranking.tex"]
        names += [JOURNAL] if (made.folder / JOURNAL).exists() else []
        if (made.folder / DETAILS).is_dir():
            names.append(DETAILS)
        print("files ", ", ".join(str(made.folder / name) for name in names))
    return 0


if __name__ == "__main__":
    cli.define_path("runs", "runs", "Folder that holds the runs, at any depth.")
    cli.define_path("output", None, "Folder for the report (default: --runs).")
    cli.define_text(
        "baseline",
        None,
        "Compare every configuration only with the one of this name.",
    )
    flags.DEFINE_list(
        "compare",
        [],
        "Settings whose values are compared, such as optimizer,weight_decay (default: "
        "none; in runs of one model, all settings that differ except the rate).",
    )
    cli.define_text(
        "rank_by",
        None,
        "Rank and compare by another column than the test accuracy, such as ece or "
        "corrupt_accuracy; with a minus in front, such as -my_error, if lower is "
        "better.",
    )
    flags.DEFINE_float(
        "margin",
        None,
        "Also say which configurations are shown to be the same within this many "
        "points, such as 0.5.",
    )
    cli.define_path("figures", None, "Folder for the figures as PNG, SVG and PDF.")
    sys.exit(main())
