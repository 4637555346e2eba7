"""Compares the finished runs below a folder: report.md, report.html and tables.

python -m experiments.report --runs=runs
python -m experiments.report --runs=runs --baseline=convbn
python -m experiments.report --runs=runs --compare=optimizer --figures=figures
python -m experiments.report --runs=runs --choose_seeds=0,1
python -m experiments.report --runs=runs --results=table.csv

The ranking holds the best configuration of each model on the validation split, of those
with the most seeds. With --choose_seeds these seeds choose and the others are reported.
With --compare it also compares the values of other settings. The command reads only
records. Open the HTML file in a browser. With up to 20 configurations the file is
complete; with more, the details of each are in report-files beside it. results.csv has
a row for each seed, and ranking.tex is a table for a paper. looks.jsonl remembers which
seeds this report saw, so that a later one is right about seeds that were added since.
"""

import re
import sys
from typing import Any

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.reports.looks import JOURNAL
from cifar_flax.reports.page import DETAILS, report

FLAGS = flags.FLAGS


class _Seeds(flags.ArgumentParser):
    """Accepts seeds."""

    syntactic_help = "a comma list of seeds, such as 0,1"

    def parse(self, argument: Any) -> tuple[int, ...]:
        """Returns the seeds; raises a ValueError if the text is not a list of them."""
        if not isinstance(argument, str):
            return argument
        if not re.fullmatch(r"-?[0-9]{1,10}(,-?[0-9]{1,10})*", argument):
            raise ValueError(f"give {self.syntactic_help}")
        return tuple(map(int, argument.split(",")))


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        made = report(
            FLAGS.runs if FLAGS["runs"].present or not FLAGS.results else None,
            *(FLAGS.output, FLAGS.baseline, FLAGS.compare, FLAGS.figures),
            rank_by=FLAGS.rank_by,
            choose_seeds=FLAGS.choose_seeds,
            results=FLAGS.results,
            export=FLAGS.export,
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
    flags.DEFINE(
        _Seeds(),
        "choose_seeds",
        (),
        "Seeds that choose the configuration of each model on the validation split. "
        "The others are reported, so that the choice does not bias them (default: the "
        "same seeds do both).",
    )
    flags.DEFINE_list(
        "results",
        [],
        "CSV files of results that were made elsewhere, with the columns model, seed "
        "and test_accuracy (a share); alone, or beside --runs.",
    )
    cli.define_path("export", None, "File for another copy of results.csv.")
    flags.DEFINE_float(
        "margin",
        None,
        "Also say which configurations are shown to be the same within this many "
        "points, such as 0.5.",
    )
    cli.define_path(
        "figures",
        None,
        "Folder for the figures as PNG and SVG, and as PDF for one column of a paper.",
    )
    sys.exit(main())
