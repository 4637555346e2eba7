"""Finds a learning rate with a range test: trains while the rate rises."""

import runpy

if __name__ == "__main__":
    runpy.run_module("cifar_flax.commands.lr_find", run_name="__main__", alter_sys=True)
