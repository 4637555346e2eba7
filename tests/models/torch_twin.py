"""Compares a network of flax with the same in PyTorch, which the benchmark measures."""

import pathlib
import re

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def peer_of(name):
    """The network of this name that the benchmark measures against."""
    pytest.importorskip("torch")
    return pytest.importorskip("benchmarks.torch_peer").make_network(name)


def draw(variables, bias=1.0):
    """Values for all variables, so that each of them changes the logits.

    Args:
      variables: of flax, or their shapes.
      bias: middle of the biases and of the running means.
    """
    rng = np.random.default_rng(1)

    def value(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            spread = 1 / np.sqrt(np.prod(shape[:-1]))
            return rng.normal(0, spread, shape).astype(np.float32)
        values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
        return values + (bias - 1) if name in ("bias", "mean") else values

    return jax.tree_util.tree_map_with_path(value, variables)


def own(tree, path):
    """The arrays of the module at a path such as ``Block_0.Conv_0``."""
    for name in filter(None, path.split(".")):
        tree = tree.get(name, {})
    return {name: value for name, value in tree.items() if not isinstance(value, dict)}


def layers_of(variables, rows):
    """Kind and arrays of each layer in the order of the calls, as PyTorch has them."""
    attention = []
    for row in rows:
        arrays = own(variables.get("params", {}), row.path)
        arrays |= own(variables.get("batch_stats", {}), row.path)
        name = row.path.rpartition(".")[2]
        if name in ("query", "key", "value"):  # they are one layer in PyTorch
            kernel, bias = arrays["kernel"], arrays["bias"]
            attention.append((kernel.reshape(len(kernel), -1), bias.ravel()))
            if name != "value":
                continue
            kernels, biases = zip(*attention, strict=True)
            arrays = {
                "kernel": np.concatenate(kernels, 1),
                "bias": np.concatenate(biases),
            }
            attention = []
        if (kernel := arrays.get("kernel")) is not None:
            if row.kind == "ConvTranspose":  # PyTorch turns its kernels
                kernel = kernel[::-1, ::-1].swapaxes(2, 3)
            if name == "out":
                kernel = kernel.reshape(-1, kernel.shape[-1])
            axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            arrays = {**arrays, "kernel": kernel.transpose(axes)}
        yield row.kind, arrays


NAMES = {
    **{"kernel": "weight", "scale": "weight", "bias": "bias"},
    **{"mean": "running_mean", "var": "running_var"},
}


# Have parameters of their own beside their layers.
BLOCKS = ("ConvNeXtBlock", "ConvNeXt", "ViT")


def pairs(variables, rows, network):
    """Yields each array of flax, and the tensor that is the same in PyTorch.

    Args:
      variables: of flax; any of the collections, whole.
      rows: the layers with parameters, in the order of their calls.
      network: of PyTorch; it must have a place for every array, and no other.
    """
    layers, of_blocks = [], []
    for module in network.modules():
        parameters = list(module.parameters(recurse=False))
        if hasattr(module, "weight"):
            layers += [module] if parameters else []
        else:
            of_blocks += parameters
    for kind, arrays in layers_of(variables, rows):
        if kind in BLOCKS:
            for name in sorted(arrays):
                yield arrays[name], of_blocks.pop(0)
        else:
            module = layers.pop(0)
            for name, value in arrays.items():
                yield value, getattr(module, NAMES[name])
    assert layers == of_blocks == []


def copy(variables, rows, network):
    """Gives a network of PyTorch the variables."""
    torch = pytest.importorskip("torch")
    for value, target in pairs(variables, rows, network):
        assert target.shape == value.shape
        with torch.no_grad():
            target.copy_(torch.tensor(np.ascontiguousarray(value)))


def to_torch(images):
    """Images [N, H, W, C] as PyTorch has them."""
    torch = pytest.importorskip("torch")
    return torch.tensor(images.transpose(0, 3, 1, 2).copy())


def check_counts(name, rows, page):
    """Asserts that PyTorch and a page of docs count as many parameters and operations.

    Returns the number of parameters.
    """
    network, torch = peer_of(name), pytest.importorskip("torch")
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode
    attention = pytest.importorskip("torch.nn.attention")
    # PyTorch does not count its fused attention, but the products of the plain one.
    plain = attention.sdpa_kernel(attention.SDPBackend.MATH)
    with counter(display=False) as counted, torch.no_grad(), plain:
        network(torch.zeros(1, 3, 32, 32))
    count = sum(one.numel() for one in network.parameters())
    assert count == sum(row.num_params for row in rows)
    flops = counted.get_total_flops()
    assert flops == sum(row.flops for row in rows)
    numbers = rf"\| {count:,} \| {flops / 1e6:,.1f} \|$"
    text = (ROOT / "docs" / page).read_text()
    assert re.search(rf"^\| `{name}` .* {numbers}", text, re.M)
    return count
