"""Compares the finished runs below a folder: report.md and report.html.

python -m experiments.report --runs=runs

Reads records only. The HTML file is complete in itself; open it in a browser.
"""

import sys

from absl import flags

from cifar_flax.reports.page import report
from experiments import cli

FLAGS = flags.FLAGS


def main() -> int:
    """Runs the command; returns the exit status."""
    with cli.command():
        made = report(FLAGS.runs, FLAGS.output)
        for line in made.left_out:
            cli.logger.warning("left out: %s", line)
        print(made.markdown)
        print(f"files  {made.folder / 'report.md'}, {made.folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    cli.define_text("runs", "runs", "Folder that holds the runs, at any depth.")
    cli.define_text("output", None, "Folder for the report (default: --runs).")
    sys.exit(main())
