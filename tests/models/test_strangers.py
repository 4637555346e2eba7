"""The benchmark's networks of flax's own layers are the same networks in PyTorch."""

import ast
import pathlib

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
from tests.models.torch_twin import check_counts, copy, draw, peer_of, to_torch

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
    assert chosen_models(["vit96", "convbn"]) == ["vit96", "convbn"]
    assert chosen_models(["strangers", "convbn"]) == [*STRANGERS, "convbn"]
    assert chosen_models(["all"]) == list(LESSON)


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_parameters_and_operations_are_those_that_pytorch_counts(name):
    check_counts(name, layer_rows(STRANGERS[name]()), "speed.md")


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


@pytest.mark.slow
@pytest.mark.parametrize("name", STRANGERS)
def test_the_same_weights_give_the_same_logits_in_pytorch(name):
    network, model = peer_of(name), STRANGERS[name]()
    torch = pytest.importorskip("torch")
    rows, shapes = trace_layers(model, (32, 32, 3))
    variables = draw(shapes)
    copy(variables, [row for row in rows if row.num_params], network)
    ours = jax.jit(lambda v, x: evaluate_logits(model, v, x))(variables, IMAGES)
    with torch.no_grad():
        theirs = network.eval()(to_torch(IMAGES))
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
