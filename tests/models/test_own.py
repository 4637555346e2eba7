"""Custom models that are named by the path of their code."""

import hashlib
import sys

import jax
import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.models.own import make_own
from cifar_flax.own_code import is_own, label_of, source_of, whole_name
from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from tests import archives
from tests.forked import command
from tests.test_commands import assert_one_line_error

NETS = """
import dataclasses
import flax.linen as nn
from flax import nnx

class Net(nn.Module):
    num_classes: int
    features: tuple = (4,)

    @nn.compact
    def __call__(self, x, train: bool):
        for width in self.features:
            x = nn.relu(nn.Conv(width, (3, 3), strides=4)(x))
            x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))

def attention(num_classes, width=8):
    class Attending(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Conv(width, (8, 8), strides=8)(x).reshape(x.shape[0], -1, width)
            x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
            return nn.Dense(num_classes)(x.mean(1))
    return Attending()

class Linear(nnx.Module):
    def __init__(self, *, num_classes, rngs):
        self.dense = nnx.Linear(3072, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.dense(x.reshape(x.shape[0], -1))

def bridged(num_classes):
    return nnx.bridge.ToLinen(Linear, kwargs={"num_classes": num_classes})

def number(): return 3
def leaving(): raise SystemExit(3)
def broken(num_classes): raise RuntimeError("mine\\nin lines")
VALUE = 3
"""


@pytest.fixture
def nets(tmp_path):
    path = tmp_path / "my nets.py"
    path.write_text(NETS)
    return path


def test_names_tell_places():
    assert [
        is_own(n) for n in ("convbn", "a.b:C", "d/a b.py:C", ":C", "a:", "a:1")
    ] == [*(False, True, True, False, False, False)]
    assert label_of("/x/y.py:Net") == "Net"
    assert label_of("convbn") == "convbn"
    assert whole_name("a.b:Net") == "a.b:Net"
    assert whole_name("y.py:Net").startswith("/")


def test_a_file_and_a_module_make_models(nets, monkeypatch):
    model = make_own(f"{nets}:Net", {"features": [2, 3]}, 7)
    assert (model.num_classes, tuple(model.features)) == (7, (2, 3))
    (nets.parent / "shelf.py").write_text(NETS)
    monkeypatch.syspath_prepend(nets.parent)
    assert make_own("shelf:Net", None, 5).num_classes == 5
    source = source_of(f"{nets}:Net")
    assert source.text == NETS
    assert source.sha256 == hashlib.sha256(nets.read_bytes()).hexdigest()


def test_a_module_in_the_current_folder_is_found(tmp_path, monkeypatch):
    """The command cifar-flax does not look there, as ``python -m`` does."""
    for name in ("cupboard", "drawer/inner"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(f"from socks import *\n{NETS}")
    (tmp_path / "socks.py").touch()
    monkeypatch.chdir(tmp_path)
    path = [one for one in sys.path if one not in ("", str(tmp_path))]
    monkeypatch.setattr(sys, "path", path)
    for name in ("cupboard", "drawer.inner"):
        assert make_own(f"{name}:Net", None, 5).num_classes == 5
    assert sys.path == path
    (tmp_path / "socks.py").unlink()
    (tmp_path / "box.py").write_text("import no_such")
    with pytest.raises(UserError, match="No module named 'no_such'"):
        make_own("box:Net", None, 5)


def test_annotations_of_a_file_are_resolved(tmp_path):
    """Dataclasses and others look for the module in which they are written."""
    (tmp_path / "later.py").write_text(
        "from __future__ import annotations\nimport dataclasses, sys\n"
        f"assert sys.modules[__name__].__name__ == __name__\n{NETS}"
    )
    assert make_own(f"{tmp_path / 'later.py'}:Net", None, 5).num_classes == 5


@pytest.mark.parametrize(
    ("name", "args", "words"),
    [
        ("{}:Missing", None, "there is no callable Missing"),
        ("{}:VALUE", None, "there is no callable VALUE"),
        ("{}:number", None, "makes a int; it must be a module of flax.linen"),
        ("{}:broken", None, "RuntimeError: mine in lines"),
        ("{}:leaving", None, "SystemExit: 3"),
        ("{}:Net", {"width": 3}, "unexpected keyword argument 'width'"),
        ("{}.py:Net", None, "there is no file"),
        (whole_name("~no_such/nets.py:Net"), None, "there is no file .*~no_such"),
        ("no_such_module:Net", None, "ModuleNotFoundError: No module named"),
    ],
)
def test_what_makes_no_model_is_named(nets, name, args, words):
    with pytest.raises(UserError, match=words) as caught:
        make_own(name.format(nets), args, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 +", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise ValueError('mine')", "ValueError: mine"),
        ("import no_such", "No module named 'no_such'"),
    ],
)
def test_code_that_fails_is_named_and_tried_again(tmp_path, text, words):
    path = tmp_path / "bad.py"
    path.write_text(text)
    for _ in range(2):
        with pytest.raises(UserError, match=words):
            make_own(f"{path}:Net", None, 10)
    path.write_text(NETS)
    assert make_own(f"{path}:Net", None, 10).num_classes == 10


def small(**changes):
    return Settings(
        dataset="shapes", train_size=64, batch_size=32, lr=0.05, epochs=1, **changes
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Net", "attention", "bridged", "Linear"])
def test_a_net_of_ones_own_trains_and_predicts(nets, tmp_path, name):
    """It must do the same as the same network given by a program."""
    spec, folder = f"{nets}:{name}", tmp_path / "run"
    result = run(small(model=spec), folder)
    module = make_own(spec, None, 10)
    by_program = run(small(), model=module)
    for ours, theirs in zip(
        jax.tree.leaves(result.state.variables),
        jax.tree.leaves(by_program.state.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    config = records.read_config(folder)
    assert config.model == result.record.model == name
    assert config.model_source.text == NETS
    images = np.zeros((2, 32, 32, 3), np.uint8)
    for given in (spec, module):
        predictions = Run.load(folder, model=given).predict(images)
        np.testing.assert_allclose(predictions.sum(-1), 1, rtol=1e-5)
    modules = set(sys.modules)
    with pytest.raises(UserError, match="record never runs code; give it"):
        Run.load(folder)
    assert set(sys.modules) == modules


@pytest.mark.slow
def test_a_run_is_loaded_with_the_network_that_it_trained(nets, tmp_path):
    run(small(model=f"{nets}:Net"), tmp_path / "run")
    other = tmp_path / "changed" / nets.name
    other.parent.mkdir()
    other.write_text(NETS + "# changed\n")
    assert Run.load(tmp_path / "run", model=f"{other}:Net").seeds == (0,)
    for name, text in (("Net", NETS.replace("relu", "tanh")), ("attention", NETS)):
        other.write_text(text)
        with pytest.raises(UserError, match="trained another Net: it computes"):
            Run.load(tmp_path / "run", model=f"{other}:{name}")
    run(small(model="simplenet"), tmp_path / "ours")
    with pytest.raises(UserError, match="its model is simplenet; leave out model"):
        Run.load(tmp_path / "ours", model=f"{nets}:Net")


def test_settings_of_our_models_are_refused_for_others(nets):
    with pytest.raises(UserError, match="--bn_momentum is only for the models of"):
        Settings(model=f"{nets}:Net", bn_momentum=0.5)
    with pytest.raises(UserError, match="--model_args is only for your own model"):
        Settings(model="convbn", model_args={"features": 3})


@pytest.mark.slow
def test_the_commands_take_a_net_of_ones_own(nets, tmp_path):
    data = archives.tiny_data(tmp_path)
    model = [f"--model={nets}:Net", '--model_args={"features": [2, 3]}']
    done = command("summary", *model)
    assert "Conv_1" in done.stdout
    folder = f"--workdir={tmp_path / 'run'}"
    refused = command("run", *data, *model, folder)
    assert_one_line_error(refused, 1, "has no default recipe")
    done = command("run", *data, *model, folder, "--lr=0.01", "--epochs=1")
    assert done.returncode == 0, done.stderr
    resumed = command("run", folder, "--resume")
    assert_one_line_error(resumed, 1, "runs only if you name it", "--model=")
    assert command("run", folder, "--resume", model[0]).returncode == 0
    swept = [*data, *model, "--lr=0.01,0.02", "--epochs=1"]
    done = command("sweep", *swept, f"--workdir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr
    done = command("report", f"--runs={tmp_path / 'sweep'}")
    assert "Net lr=0.02" in done.stdout
