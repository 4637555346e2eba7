"""Classifies pictures with a trained model."""

from experiments import start

if __name__ == "__main__":
    start("predict")
