"""The benchmark's networks of flax's own layers are the same networks in PyTorch."""

import ast
import pathlib
import re

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import strangers
from benchmarks.benchmark import chosen_models
from benchmarks.strangers import FORMS, STRANGERS
from cifar_flax.models.calling import evaluate_logits
from cifar_flax.models.check import check_model
from cifar_flax.models.summary import layer_rows, trace_layers
from cifar_flax.training.named_recipes import LESSON

ROOT = pathlib.Path(__file__).parents[2]
IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)


def test_they_are_written_without_this_project():
    tree = ast.parse(pathlib.Path(strangers.__file__).read_text())
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    modules = [getattr(n, "module", None) or n.names[0].name for n in imports]
    assert {name.split(".")[0] for name in modules} <= {
        *("collections", "typing", "flax", "jax", "optax")
    }


def test_their_group_and_their_names_choose_them():
    assert chosen_models(["strangers"]) == list(STRANGERS)
    assert chosen_models(["vit", "convbn"]) == ["vit", "convbn"]
    assert chosen_models(["strangers", "convbn"]) == [*STRANGERS, "convbn"]
    assert chosen_models(["all"]) == list(LESSON)


def peer_of(name):
    pytest.importorskip("torch")
    return pytest.importorskip("benchmarks.torch_peer").make_network(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_parameters_and_operations_are_those_that_pytorch_counts(name):
    network, rows = peer_of(name), layer_rows(STRANGERS[name]())
    torch = pytest.importorskip("torch")
    counter = pytest.importorskip("torch.utils.flop_counter").FlopCounterMode
    attention = pytest.importorskip("torch.nn.attention")
    # PyTorch does not count its fused attention, but the products of the plain one.
    plain = attention.sdpa_kernel(attention.SDPBackend.MATH)
    with counter(display=False) as counted, torch.no_grad(), plain:
        network(torch.zeros(1, 3, 32, 32))
    count = sum(one.numel() for one in network.parameters())
    flops = sum(row.flops for row in rows)
    assert count == sum(row.num_params for row in rows)
    assert counted.get_total_flops() == flops
    page = (ROOT / "docs" / "speed.md").read_text()
    assert re.search(
        rf"^\| `{name}` .* \| {count:,} \| {flops / 1e6:,.1f} \|$", page, re.M
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_they_train_here_and_in_pytorch(name):
    check_model(STRANGERS[name](), (32, 32, 3), 10)
    peer_of(name)
    peer = pytest.importorskip("benchmarks.torch_peer")
    trainer = peer.PeerTrainer(name, "channels_last", 4, 8, "cpu")
    assert trainer.train(2) > 0
    assert trainer.evaluate(8) > 0
    assert all(one.isfinite().all() for one in trainer.network.parameters())


def draw(variables):
    """Values for all variables, so that each of them changes the logits."""
    rng = np.random.default_rng(1)

    def value(path, leaf):
        name, shape = path[-1].key, leaf.shape
        if name == "kernel":
            spread = 1 / np.sqrt(np.prod(shape[:-1]))
            return rng.normal(0, spread, shape).astype(np.float32)
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(value, variables)


def own(tree, path):
    """The arrays of the module at a path such as ``Block_0.Conv_0``."""
    for name in filter(None, path.split(".")):
        tree = tree.get(name, {})
    return {name: value for name, value in tree.items() if not isinstance(value, dict)}


def layers_of(variables, rows):
    """The arrays of each layer in the order of the calls, as PyTorch shapes them."""
    attention = []
    for row in rows:
        arrays = own(variables["params"], row.path)
        arrays |= own(variables["batch_stats"], row.path)
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


def copy(variables, rows, network):
    """Gives a network of PyTorch the variables of its peer."""
    torch = pytest.importorskip("torch")
    modules = {True: [], False: []}  # layers, and blocks with parameters of their own
    for module in network.modules():
        if list(module.parameters(recurse=False)):
            modules[hasattr(module, "weight")].append(module)
    for kind, arrays in layers_of(variables, rows):
        is_layer = kind not in ("ConvNeXtBlock", "ViT")
        module = modules[is_layer].pop(0)
        for name, value in arrays.items():
            target = getattr(module, NAMES[name] if is_layer else name)
            assert target.shape == value.shape, (module, name)
            with torch.no_grad():
                target.copy_(torch.tensor(np.ascontiguousarray(value)))
    assert modules == {True: [], False: []}


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_the_same_weights_give_the_same_logits_in_pytorch(name):
    network, model = peer_of(name), STRANGERS[name]()
    torch = pytest.importorskip("torch")
    rows, shapes = trace_layers(model, (32, 32, 3))
    variables = draw(shapes)
    copy(variables, [row for row in rows if row.num_params], network)
    ours = jax.jit(lambda v, x: evaluate_logits(model, v, x, "xla"))(variables, IMAGES)
    with torch.no_grad():
        theirs = network.eval()(torch.tensor(IMAGES.transpose(0, 3, 1, 2).copy()))
    # Images differ more than the tolerance allows.
    spread = np.ptp(ours, axis=0).max()
    np.testing.assert_allclose(ours / spread, theirs / spread, atol=1e-3)


def as_linen(tree):
    """The layers of another form of ConvMixer, under linen's names."""
    found = {"Dense_0": tree["head"]} if "head" in tree else {}
    for kind, name in (("convs", "Conv"), ("norms", "BatchNorm")):
        layers = tree.get(kind, [])
        numbers = layers if isinstance(layers, dict) else range(len(layers))
        found |= {f"{name}_{number}": layers[number] for number in numbers}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnx", "lax"])
def test_other_forms_of_convmixer_train_as_linens(name):
    labels = np.arange(len(IMAGES))
    state, step = FORMS[name](jax.random.key(0))
    _, linen_step = FORMS["linen"](jax.random.key(0))
    pure = nnx.to_pure_dict if name == "nnx" else lambda tree: tree

    def linens(state):
        return {kind: as_linen(pure(tree)) for kind, tree in state.items()}

    expected, step, linen_step = linens(state), jax.jit(step), jax.jit(linen_step)
    for _ in range(2):
        state, loss = step(state, IMAGES, labels)
        expected, linen_loss = linen_step(expected, IMAGES, labels)
        np.testing.assert_allclose(loss, linen_loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        linens(state),
        expected,
    )
