"""Downloads CIFAR-10 or CIFAR-100, or reads an archive, and shows the images."""

from experiments import start

if __name__ == "__main__":
    start("prepare_data")
