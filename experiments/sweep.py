"""Trains every combination of the given settings, each in its own folder."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.sweep", run_name="__main__", alter_sys=True)
