"""Trains, evaluates, records and checkpoints a model: the main command."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.run", run_name="__main__", alter_sys=True)
