"""``python -m cifar_flax.commands NAME`` does what ``cifar-flax NAME`` does.

A sweep starts this file by its path, with ``python -P``, so that a folder or module in
the user's current folder replaces nothing of the installation.
"""

import pathlib
import sys

if not __package__:  # started by its path
    _ROOT = str(pathlib.Path(__file__).resolve().parents[2])
    if _ROOT not in sys.path:
        sys.path.insert(0, _ROOT)

from cifar_flax.commands import main

if __name__ == "__main__":
    sys.exit(main())
