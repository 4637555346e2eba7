"""Classifies pictures with a trained model."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.predict", run_name="__main__", alter_sys=True)
