"""Data sets: CIFAR-10 and CIFAR-100, others that tfds prepares, and a built-in one."""

from cifar_flax.data.dataset import Dataset, make_dataset
from cifar_flax.data.download import fetch_cifar
from cifar_flax.data.load import default_data_dir, load_dataset
from cifar_flax.data.splits import DataSpec, Split, Splits, split_dataset
from cifar_flax.data.tfds_source import prepare_cifar

__all__ = [
    "DataSpec",
    "Dataset",
    "Split",
    "Splits",
    "default_data_dir",
    "fetch_cifar",
    "load_dataset",
    "make_dataset",
    "prepare_cifar",
    "split_dataset",
]
