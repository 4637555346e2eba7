"""``python -m experiments.NAME`` runs the command NAME; see ``cifar_flax.commands``."""

# From here on, Ctrl-C ends a command without a traceback.
from cifar_flax import commands as commands
