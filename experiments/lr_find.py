"""Finds a learning rate with a range test: trains while the rate rises."""

from experiments import start

if __name__ == "__main__":
    start("lr_find")
