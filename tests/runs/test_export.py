"""Exported files have the predictions of their run."""

import dataclasses
import itertools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image

from cifar_flax import records
from cifar_flax.data import download
from cifar_flax.errors import UserError
from cifar_flax.models.convbn import ConvBnNet
from cifar_flax.runs import export
from cifar_flax.runs.export import (
    export_safetensors,
    export_stablehlo,
    read_test_images,
)
from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from tests.forked import command
from tests.runs.test_session import make_tiny

ROOT = pathlib.Path(__file__).parents[2]
BOTH = [export_safetensors, export_stablehlo]


NETS = """
import flax.linen as nn

class Net(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3), strides=2)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(self.num_classes)(x.mean((1, 2)))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The result of a run of a custom model with batch norm and two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "nets.py").write_text(NETS)
    settings = Settings(
        model=f"{folder}/nets.py:Net",
        seeds=(3, -5),
        tta="flip",
        **{"lr": 0.05, "epochs": 1, "batch_size": 32, "val_size": 24},
    )
    return run(settings, folder / "run", dataset=make_tiny())


@pytest.fixture(scope="module")
def loaded(trained):
    place = trained.folder.parent / "nets.py"
    return Run.load(trained.folder, model=f"{place}:Net")


@pytest.mark.slow
def test_safetensors_holds_the_checkpoint_and_what_one_has_to_know(
    trained, loaded, tmp_path
):
    files = export_safetensors(loaded, tmp_path, trained.splits.test.images)
    names = ["seed3.safetensors", "seed-5.safetensors"]
    assert [file.path.name for file in files] == names
    for number, file in enumerate(files):
        assert (file.difference, file.agreeing, file.count) == (0, 25, 25)
        found = safetensors.numpy.load_file(file.path)
        saved = flatten_dict(loaded.variables, sep="/")
        assert found.keys() == saved.keys() >= {"params/Conv_0/kernel"}
        for name, array in found.items():
            np.testing.assert_array_equal(array, saved[name][number], strict=True)
        with safetensors.safe_open(file.path, "np") as opened:
            about = opened.metadata()
        assert about["seed"] == ["3", "-5"][number]
    assert (about["model"], about["step"], about["tta"]) == ("Net", "3", "flip")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert about["cifar_flax"] == project["version"]
    assert json.loads(about["class_names"]) == ["a", "b", "c", "d"]
    assert json.loads(about["image_shape"]) == [32, 32, 3]

    # The file and the network are enough to predict.
    mean, std = (np.array(json.loads(about[name])) for name in ("mean", "std"))
    images = ((trained.splits.test.images / 255 - mean) / std).astype(np.float32)
    apply = jax.jit(lambda view: loaded.model.apply(variables, view, train=False))
    variables = unflatten_dict(found, sep="/")
    logits = (apply(images) + apply(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(logits, trained.test.logits[1], atol=1e-5)


@pytest.mark.slow
def test_stablehlo_predicts_without_this_project(trained, loaded, tmp_path):
    """The lines of the documentation work in a process with only jax and numpy."""
    images = trained.splits.test.images
    files = export_stablehlo(loaded, tmp_path, images)
    page = (ROOT / "docs/training.md").read_text()
    (lines,) = re.findall(r"```python\n(import jax\.export.*?)```", page, re.DOTALL)
    np.save(tmp_path / "images.npy", images[:7])
    for logits, file in zip(trained.test.logits, files, strict=True):
        assert file.tolerance == pytest.approx(1e-4 * np.abs(logits).max(), rel=1e-4)
        assert file.difference <= file.tolerance
        assert (file.agreeing, file.count) == (25, 25)
    code = f"""
import sys
import numpy as np
images = np.load("images.npy")
{lines.replace("seed0.stablehlo", files[1].path.name)}
np.save("logits.npy", logits)
assert not {{"cifar_flax", "flax"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32
    expected = trained.test.logits[1, :7]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.slow
def test_stablehlo_holds_no_kernel_of_ours(loaded, tmp_path):
    model = ConvBnNet(4, features=(4, 8))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    file, *_ = export_stablehlo(with_net(loaded, model, variables), tmp_path)
    program = jax.export.deserialize(bytearray(file.path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    called = set(re.findall(r"custom_call @(\w+)", program.mlir_module()))
    assert called <= {"shape_assertion"}
    assert "stablehlo.convolution" in program.mlir_module()


@pytest.mark.slow
def test_the_lines_of_the_page_write_onnx(trained, loaded, tmp_path):
    for name in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is no dependency; it is not here")
    page = (ROOT / "docs/training.md").read_text()
    (lines,) = re.findall(
        r"```python\n(import cifar_flax as cf\n.{,20}import jax2onnx.*?)```",
        page,
        re.DOTALL,
    )
    images = trained.splits.test.images
    np.save(tmp_path / "images.npy", images.astype(np.float32))
    place = f"{trained.folder.parent}/nets.py:Net"
    code = f"""
{lines.replace('"runs/convbn-cifar10-1"', f'"{trained.folder}", model="{place}"')}
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession("seed0.onnx")
(one,) = session.get_inputs()
(logits,) = session.run(None, {{one.name: np.load("images.npy")}})
np.save("logits.npy", logits)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True
    )
    logits = np.load(tmp_path / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, trained.test.logits[0], atol=1e-5)


def with_net(loaded, model, variables):
    """Returns a run of one seed with another network."""
    variables = jax.tree.map(lambda leaf: np.asarray(leaf)[None], variables)
    changes = {"model": model, "variables": variables, "seeds": (1,)}
    return dataclasses.replace(loaded, **changes, tta="none")


def test_a_type_of_fewer_bits_may_differ_more(loaded, tmp_path):
    class Half(nn.Module):
        """A network whose parameters also have two bytes."""

        @nn.compact
        def __call__(self, x):
            half = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
            x = nn.Conv(8, (3, 3), **half)(x)
            return nn.Dense(4, **half)(x.mean((1, 2)))

    model = Half()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    one = with_net(loaded, model, variables)
    logits = one.predictor(one.variables, make_tiny().test_images)
    for write in BOTH:
        (file,) = write(one, tmp_path, make_tiny().test_images)
        assert file.tolerance == pytest.approx(0.05 * np.abs(logits).max())
    with safetensors.safe_open(tmp_path / "seed1.safetensors", "np") as opened:
        kernel = opened.get_tensor("params/Conv_0/kernel")
    assert kernel.dtype == jnp.bfloat16


def test_a_program_that_differs_is_an_error_and_leaves_no_file(
    loaded, tmp_path, monkeypatch
):
    """For example, a program without the views of an image."""
    true = export.logits_of_pixels

    def one_view(*args, tta, **settings):
        return true(*args, tta="none", **settings)

    monkeypatch.setattr(export, "logits_of_pixels", one_view)
    with pytest.raises(UserError, match=r"seed3\.stablehlo is not written: a logit of"):
        export_stablehlo(loaded, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_variable_of_other_bits_is_an_error_and_leaves_no_file(
    loaded, tmp_path, monkeypatch
):
    true = safetensors.numpy.save

    def rounded(arrays, metadata):
        bias = arrays["params/Dense_0/bias"]
        return true(arrays | {"params/Dense_0/bias": np.nextafter(bias, 1)}, metadata)

    monkeypatch.setattr(safetensors.numpy, "save", rounded)
    with pytest.raises(UserError, match="do not have the bits of the run"):
        export_safetensors(loaded, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", BOTH)
def test_a_seed_that_has_diverged_is_left_out(loaded, tmp_path, caplog, write):
    variables = jax.tree.map(np.array, loaded.variables)
    variables["params"]["Dense_0"]["bias"][0] = np.nan
    one = dataclasses.replace(loaded, variables=variables)
    (file,) = write(one, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]
    assert file.seed == -5
    assert "seed 3 is left out" in caplog.text
    variables["params"]["Dense_0"]["bias"][1] = np.inf
    with pytest.raises(UserError, match="the logits of all seeds are NaN"):
        write(one, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("write", BOTH)
def test_what_is_there_stays_and_what_cannot_be_written_is_named(
    loaded, tmp_path, write
):
    taken = tmp_path / f"seed-5.{write.__name__.removeprefix('export_')}"
    taken.write_bytes(b"mine")
    with pytest.raises(UserError, match=f"{taken} already exists; remove it"):
        write(loaded, tmp_path)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"mine"]
    with pytest.raises(UserError, match=r"cannot write .*seed3.*Not a directory"):
        write(loaded, taken / "below")


@pytest.mark.parametrize(
    ("write", "package"),
    [(export_safetensors, "safetensors"), (export_stablehlo, "flatbuffers")],
)
def test_without_the_package_the_error_says_how_to_get_it(
    loaded, tmp_path, monkeypatch, write, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install .*\[export\]"):
        write(loaded, tmp_path)


def test_a_net_for_one_number_of_images_is_named(loaded, tmp_path):
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x.reshape(len(x), -1))

    model = Counting()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    one = with_net(loaded, model, variables)
    with pytest.raises(UserError, match=r"x\.shape\[0\] and not len"):
        export_stablehlo(one, tmp_path)


@pytest.mark.slow
def test_the_test_images_are_those_of_the_run(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (90, 9, 9), dtype=np.uint8)
    split = {"test_images": images[:30], "test_labels": np.arange(30) % 3}
    given = {"train_images": images[30:], "train_labels": np.arange(60) % 3, **split}
    np.savez(tmp_path / "arrays.npz", **given)
    settings = Settings(
        model="simplenet",
        dataset=f"npz:{tmp_path}/arrays.npz",
        data_dir=str(tmp_path),
        **{"lr": 0.01, "epochs": 1, "batch_size": 10, "val_size": 10},
    )
    run(settings, tmp_path / "run")
    found = read_test_images(tmp_path / "run", 20)
    np.testing.assert_array_equal(found[..., 0], images[:20])

    np.savez(tmp_path / "arrays.npz", **given | {"test_images": images[1:31]})
    with pytest.raises(UserError, match="has changed since the run"):
        read_test_images(tmp_path / "run", 20)

    def fetch(*args, **settings):
        raise AssertionError("nothing is to be downloaded")

    monkeypatch.setattr(download, "fetch_cifar", fetch)
    path = tmp_path / "run" / records.CONFIG
    text = path.read_text()
    config = json.loads(text)
    config["settings"]["dataset"], config["dataset"]["name"] = "auto", "cifar10"
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="CIFAR-10 is not in"):
        read_test_images(tmp_path / "run", 20)


def test_the_images_are_read_without_writing(tmp_path):
    """A record may be somebody else's, and name any folder."""
    rng, place = np.random.default_rng(0), tmp_path / "pictures"
    for split, number in itertools.product(("train", "test"), range(30)):
        folder = place / split / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    named = tmp_path / "named"
    values = {"lr": 0.05, "epochs": 1, "batch_size": 8, "val_size": 4}
    settings = Settings(
        model="simplenet", dataset=f"folder:{place}", data_dir=str(named), **values
    )
    run(settings, tmp_path / "run")
    shutil.rmtree(named)
    assert len(read_test_images(tmp_path / "run", 20)) == 20
    assert not named.exists()


@pytest.mark.slow
def test_the_command_says_how_well_the_files_agree(trained, tmp_path):
    """A program provided the data, so the command cannot load them."""
    flags = [f"--run={trained.folder}", "--format=stablehlo", f"--output={tmp_path}"]
    model = f"--model={trained.folder.parent}/nets.py:Net"
    done = command("export", *flags, model)
    assert done.returncode == 0, done.stderr
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: the comparison uses 256 images of random")
    for seed, line in zip((3, -5), done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{tmp_path}/seed{seed}.stablehlo: logits differ")
        assert line.endswith("the same class for 256 of 256 images of random pixels")
    (tmp_path / "unfinished").mkdir()
    os.link(trained.folder / records.CONFIG, tmp_path / "unfinished" / records.CONFIG)
    for flag, words in [
        (model, f"{tmp_path}/seed3.stablehlo already exists"),
        (f"--run={tmp_path}/unfinished", "is not finished; continue it"),
        (f"--run={tmp_path}/missing", "holds no run"),
        ("--best", "give it as --model, such as"),
    ]:
        done = command("export", *flags, flag)
        assert done.returncode == 1
        assert words in done.stderr.splitlines()[-1]
        assert done.stderr.splitlines()[-1].startswith("error: ")
