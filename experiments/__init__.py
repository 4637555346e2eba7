"""The commands: thin mains over ``cifar_flax``."""

import os
import signal
import sys

# While ``python -m experiments.NAME`` or ``cifar-flax NAME`` loads its libraries, for
# two seconds, Ctrl-C ends it without a traceback. ``cli.command`` takes over from here.
if os.path.basename(sys.argv[0]) in ("-m", "cifar-flax", "cifar-flax.exe"):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Standard channels that are closed: a file would be opened in their place, and what
    # a library prints would go into it.
    while (channel := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(channel)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
