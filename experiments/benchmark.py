"""Measures the speed, and compares it with PyTorch; see ``benchmarks.benchmark``."""

import runpy

import experiments

if __name__ == "__main__":
    assert experiments
    runpy.run_module("benchmarks.benchmark", run_name="__main__", alter_sys=True)
