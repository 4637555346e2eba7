"""The commands: thin mains over ``cifar_flax``."""
