"""Compares the finished runs below a folder: report.md, report.html and tables."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.report", run_name="__main__", alter_sys=True)
