"""The commands: thin mains over ``cifar_flax``."""

import signal
import sys

# While ``python -m experiments.NAME`` loads its libraries, for two seconds, Ctrl-C ends
# it without a traceback. ``cli.main`` takes over from here.
if sys.argv[0] == "-m":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
