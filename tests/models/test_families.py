"""The families of networks are those of PyTorch, and the page says what they are."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.benchmark import chosen_models
from cifar_flax.layers.native import library
from cifar_flax.layers.tiling import in_tiles
from cifar_flax.models import FAMILIES, create_model, has_norm
from cifar_flax.models.calling import evaluate_logits, train_logits
from cifar_flax.models.families import LARGER, ConvNeXt, MobileNet, ResidualNet, ResNeXt
from cifar_flax.models.summary import layer_rows, trace_layers
from cifar_flax.training.losses import cross_entropy
from cifar_flax.training.named_recipes import LESSON
from tests.models.torch_twin import check_counts, copy, pairs, peer_of, to_torch

ROOT = pathlib.Path(__file__).parents[2]
NETS = {**FAMILIES, **LARGER}
IMAGES = np.random.default_rng(0).normal(size=(16, 32, 32, 3)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 16)

# Without a norm that takes the scale of a kernel away, so that a batch norm's statistics
# change the logits.
WITHOUT_NORM = ("mixer", "convnext", "vit", "convnext2")


def test_their_group_names_them():
    assert chosen_models(["families"]) == list(FAMILIES)
    assert chosen_models(["families", "wide2"]) == [*FAMILIES, "wide2"]
    assert chosen_models(["all"]) == list(LESSON)
    assert not {*NETS} & {*LESSON}


def test_they_are_small():
    for name, make in NETS.items():
        count = sum(row.num_params for row in layer_rows(make()))
        assert 100_000 <= count <= 1_500_000 or name == "resnet18", name
