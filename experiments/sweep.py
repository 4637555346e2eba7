"""Trains every combination of the given settings, each in its own folder."""

from experiments import start

if __name__ == "__main__":
    start("sweep")
