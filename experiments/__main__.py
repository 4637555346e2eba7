"""The command cifar-flax: ``cifar-flax run`` does what ``-m experiments.run`` does."""

import sys

from cifar_flax.commands import main

if __name__ == "__main__":
    sys.exit(main())
