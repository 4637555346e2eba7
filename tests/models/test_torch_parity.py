"""The same weights give the same logits, loss and gradients in PyTorch.

The networks are the peers of ``experiments.benchmark``.
"""

import re

import jax
import numpy as np
import pytest

from tests.models.probe import FIRST, probe

torch = pytest.importorskip("torch")
functional = torch.nn.functional
peer = pytest.importorskip("benchmarks.torch_peer")

TOLERANCE = 1e-4


def pairs(network, tree):
    """Modules of PyTorch with the subtrees of Flax that hold the same parameters."""
    modules = [m for m in network.modules() if list(m.parameters(recurse=False))]
    leaves, subtrees = jax.tree_util.tree_leaves_with_path(tree), {}
    for path, leaf in leaves:
        subtrees.setdefault(path[:-1], {})[path[-1].key] = leaf
    order = sorted(subtrees, key=lambda path: call_order([key.key for key in path]))
    assert len(modules) == len(order)
    return [
        (module, subtrees[path]) for module, path in zip(modules, order, strict=True)
    ]


def call_order(path):
    """Stem, stages (down, then residuals), head; convolution before norm."""
    first = {"stem": 0, "whiten": 0, "head": 2}.get(path[0], 1)
    name = re.sub(r"_(conv|norm)(\d)", r"_\2\1", path[0]).replace("down", "a")
    return first, name, path[1:]


def to_torch(array):
    array = np.asarray(array)
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
    return torch.tensor(array.transpose(order).copy())


def assert_close(actual, expected, what):
    actual, expected = np.asarray(actual), expected.detach().numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(
        actual / scale, expected / scale, atol=TOLERANCE, err_msg=what
    )


# These take long to compile.
DEEP = ("convbn2", "resnet", "resnet2", "airbench")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in DEEP else ())
        for name in FIRST
    ],
)
def test_logits_loss_gradients_and_statistics_agree(name):
    ours, network = probe(name), peer.make_network(name)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    with torch.no_grad():
        for module, params in pairs(network, ours.variables["params"]):
            for key, value in params.items():
                getattr(module, names[key]).copy_(to_torch(value))
        stats = ours.variables["batch_stats"]
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for module, (mean, var) in zip(norms, statistics(stats), strict=True):
            module.running_mean.copy_(to_torch(mean))
            module.running_var.copy_(to_torch(var))
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images = torch.tensor(ours.images.transpose(0, 3, 1, 2).copy())

    with torch.no_grad():
        assert_close(ours.logits, network.eval()(images), "logits in evaluation")
    logits = network.train()(images)
    loss = functional.cross_entropy(logits, torch.tensor(ours.labels))
    loss.backward()
    assert_close(ours.train_logits, logits, "logits in training")
    assert_close(ours.loss, loss, "loss")
    for module, grads in pairs(network, ours.grads):
        for key, value in grads.items():
            theirs = getattr(module, names[key]).grad
            assert_close(to_torch(value), theirs, f"gradient of {key} of {module}")
    updated = ours.updated.get("batch_stats", {})
    for module, (mean, _) in zip(norms, statistics(updated), strict=True):
        assert_close(mean, module.running_mean, f"running mean of {module}")


def statistics(stats):
    """Returns (mean, var) of each norm in the order of the calls."""
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(stats):
        flat.setdefault(tuple(key.key for key in path[:-1]), {})[path[-1].key] = leaf
    order = sorted(flat, key=lambda path: call_order(list(path)))
    return [(flat[path]["mean"], flat[path]["var"]) for path in order]
