"""Measures the speed, and compares it with PyTorch; see ``benchmarks.benchmark``."""

import importlib.util
import runpy
import sys

if __name__ == "__main__":
    if importlib.util.find_spec("benchmarks") is None:
        sys.exit(
            "error: the benchmark is not part of the installed package; run this "
            "command in the folder of the source code"
        )
    runpy.run_module("benchmarks.benchmark", run_name="__main__", alter_sys=True)
