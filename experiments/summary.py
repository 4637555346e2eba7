"""Shows the layers of a model with shapes, parameters and operations."""

from experiments import start

if __name__ == "__main__":
    start("summary")
