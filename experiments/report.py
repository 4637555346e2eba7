"""Compares the finished runs below a folder: report.md and report.html.

python -m experiments.report --runs=runs

Reads records only. The HTML file is complete in itself; open it in a browser.
"""

import pathlib

from absl import flags

from cifar_flax.errors import UserError
from cifar_flax.reports.page import write_html, write_markdown
from cifar_flax.reports.runs import read_studies
from experiments import cli
from experiments.text_flag import define_text

FLAGS = flags.FLAGS


def main() -> None:
    """Runs the command."""
    folder = pathlib.Path(FLAGS.runs)
    studies, left_out = read_studies(folder)
    markdown = write_markdown(studies, left_out)
    output = pathlib.Path(FLAGS.output) if FLAGS.output else folder
    try:
        output.mkdir(parents=True, exist_ok=True)
        (output / "report.md").write_text(markdown, encoding="utf-8")
        page = write_html(studies, left_out)
        (output / "report.html").write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write the report to {output}: {error.strerror}; give --output"
        ) from error
    for line in left_out:
        cli.logger.warning("left out: %s", line)
    print(markdown)
    print(f"files  {output / 'report.md'}, {output / 'report.html'}")


if __name__ == "__main__":
    define_text("runs", "runs", "Folder that holds the runs, at any depth.")
    define_text("output", None, "Folder for the report (default: --runs).")
    cli.main(main)
