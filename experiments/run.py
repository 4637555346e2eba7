"""Trains, evaluates, records and checkpoints a model: the main command."""

from experiments import start

if __name__ == "__main__":
    start("run")
