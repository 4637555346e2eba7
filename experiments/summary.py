"""Shows the layers of a model with shapes, parameters and operations."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.summary", run_name="__main__", alter_sys=True)
