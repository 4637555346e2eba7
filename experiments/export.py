"""Exports a finished run to files for other programs, and checks the files."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.export", run_name="__main__", alter_sys=True)
