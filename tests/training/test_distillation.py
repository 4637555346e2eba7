"""The distillation of docs/bring-your-own.md, from a finished run, beside PyTorch."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cifar_flax as cf
from cifar_flax.data import split_dataset
from cifar_flax.training.steps import epoch_order
from tests.conftest import make_split
from tests.models.test_torch_parity import pairs, statistics, to_torch

torch = pytest.importorskip("torch")
functional = torch.nn.functional
peer = pytest.importorskip("benchmarks.torch_peer")

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "bring-your-own.md"
STEPS, RATE, TEMPERATURE, SHARE = 6, 0.05, 4.0, 0.9


def in_torch(name, variables):
    """Returns the network of a name in PyTorch, with given variables."""
    network = peer.make_network(name)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    with torch.no_grad():
        for module, params in pairs(network, variables["params"]):
            for key, value in params.items():
                getattr(module, names[key]).copy_(to_torch(value))
        norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        stats = statistics(variables.get("batch_stats", {}))
        for module, (mean, var) in zip(norms, stats, strict=True):
            module.running_mean.copy_(to_torch(mean))
            module.running_var.copy_(to_torch(var))
    return network


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


@pytest.mark.slow
def test_distillation_takes_the_steps_of_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train, test = make_split(0, 16 * STEPS, 10), make_split(1, 20, 10)
    arrays = (train.images, train.labels, test.images, test.labels)
    dataset = cf.make_dataset("tiny", *arrays, [*"abcdefghij"], source="drawn")
    given = {"lr": 0.05, "epochs": 2, "batch_size": 16, "val_size": 0}
    settings = cf.Settings(model="convbn", **given)
    cf.run(settings, "runs/teacher", dataset=dataset)
    text = re.search(r"```python\n(# distil.*?)```", PAGE.read_text(), re.DOTALL)[1]
    pathlib.Path("distil.py").write_text(text)
    recipe = cf.Recipe(
        (cf.Constant(RATE, 1),),
        batch_size=16,
        loss="distil.py:distil",
        augmentation=cf.Augmentation(padding=0, flip=False),
    )
    splits = split_dataset(dataset, 0)
    trainer = cf.Trainer(cf.create_model("simplenet", 10), recipe, splits.spec)
    state = trainer.init(splits.train)
    chunks = list(trainer.run(state, splits.train))
    found = np.concatenate([chunk.losses[0] for chunk in chunks])

    teacher = in_torch("convbn", first(cf.Run.load("runs/teacher").variables)).eval()
    student = in_torch("simplenet", first(state.variables))
    optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.9)
    order = np.asarray(epoch_order(state.key[0], jnp.int32(0), 16 * STEPS))
    pixels = (splits.train.images / 255 - splits.mean) / splits.std
    losses = []
    for batch in order.reshape(STEPS, 16):
        images = torch.tensor(pixels[batch].transpose(0, 3, 1, 2), dtype=torch.float32)
        labels = torch.tensor(splits.train.labels[batch]).long()
        logits = student(images)
        with torch.no_grad():
            targets = torch.softmax(teacher(images) / TEMPERATURE, 1)
        ours = torch.log_softmax(logits / TEMPERATURE, 1)
        soft = functional.kl_div(ours, targets, reduction="batchmean")
        hard = functional.cross_entropy(logits, labels)
        loss = SHARE * TEMPERATURE**2 * soft + (1 - SHARE) * hard
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(found, losses, rtol=1e-3)
    names = {"kernel": "weight", "bias": "bias"}
    for module, params in pairs(student, first(chunks[-1].state.params)):
        for key, value in params.items():
            theirs = getattr(module, names[key]).detach()
            np.testing.assert_allclose(to_torch(value), theirs, rtol=2e-3, atol=2e-5)
