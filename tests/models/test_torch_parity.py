"""The same weights give the same logits, loss and gradients in PyTorch.

The networks are written here a second time, as the lesson describes them.
"""

import itertools

import jax
import numpy as np
import pytest

from cifar_flax.models import MODELS
from tests.models.probe import probe

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

TOLERANCE = 1e-4


class BnLayer(nn.Module):
    def __init__(self, inputs, outputs, stride=2, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        return self.norm(functional.relu(self.conv(x)))


class ResnetLayer(BnLayer):
    def forward(self, x):
        return x + super().forward(x)


class Relu(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return functional.relu(self.conv(x))


class Net(nn.Module):
    """Layers one after the other, a global max pool, a dense layer."""

    def __init__(self, layers, width):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = functional.adaptive_max_pool2d(self.layers(x), 1)
        return self.head(x.flatten(1))


class SimpleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3072, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order of [H, W, C]
        return self.head(functional.relu(self.hidden(x)))


def make_network(name):
    """The network, and its modules with parameters in the order of the calls."""
    if name == "simplenet":
        return SimpleNet()
    if name in ("convnet", "convnet2"):
        widths = [3, 20, 40, 80]
        convs = [
            nn.Conv2d(a, b, 3, 2, 1 if name == "convnet2" else 0)
            for a, b in itertools.pairwise(widths)
        ]
        return Net([Relu(conv) for conv in convs], 80)
    widths = [16, 32, 64, 128, 256] if name == "resnet2" else [10, 20, 40, 80, 160]
    layers = [
        BnLayer(3, 16, 1, 7) if name == "resnet2" else nn.Conv2d(3, 10, 5, padding=2)
    ]
    for a, b in itertools.pairwise(widths):
        layers.append(BnLayer(a, b))
        if name == "convbn2":
            layers.append(BnLayer(b, b, 1))
        if name in ("resnet", "resnet2"):
            layers += [ResnetLayer(b, b, 1), ResnetLayer(b, b, 1)]
    return Net(layers, widths[-1])


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
    first = {"stem": 0, "head": 2}.get(path[0], 1)
    return first, path[0].replace("down", "a"), path[1:]


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


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_gradients_and_statistics_agree(name):
    ours, network = probe(name), make_network(name)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    with torch.no_grad():
        for module, params in pairs(network, ours.variables["params"]):
            for key, value in params.items():
                getattr(module, names[key]).copy_(to_torch(value))
        stats = ours.variables["batch_stats"]
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        for module, (mean, var) in zip(norms, statistics(stats), strict=True):
            module.running_mean.copy_(to_torch(mean))
            module.running_var.copy_(to_torch(var))
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
    """(mean, var) of each norm in the order of the calls."""
    flat = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(stats):
        flat.setdefault(tuple(key.key for key in path[:-1]), {})[path[-1].key] = leaf
    order = sorted(flat, key=lambda path: call_order(list(path)))
    return [(flat[path]["mean"], flat[path]["var"]) for path in order]
