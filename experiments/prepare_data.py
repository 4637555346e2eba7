"""Downloads CIFAR-10 or CIFAR-100, or reads an archive, and shows the images."""

import runpy

if __name__ == "__main__":
    runpy.run_module(
        "cifar_flax.commands.prepare_data", run_name="__main__", alter_sys=True
    )
