"""``python -m experiments.NAME`` runs the command NAME; see ``cifar_flax.commands``."""

from cifar_flax.commands import start as start
