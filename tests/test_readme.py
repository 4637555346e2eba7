"""The examples of README and of the page on training run unchanged."""

import pathlib
import re

import numpy as np
import pytest

import cifar_flax
from cifar_flax.runs.settings import Settings
from tests.conftest import make_split

ROOT = pathlib.Path(__file__).parents[1]
README, TRAINING = ROOT / "README.md", ROOT / "docs" / "training.md"


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Replaces the data of the examples by tiny data; the folder is empty."""
    train, test = make_split(0, 600), make_split(1, 20)
    names = ("a", "b", "c", "d")
    arrays = (train.images, train.labels, test.images, test.labels)
    dataset = cifar_flax.make_dataset("cifar10", *arrays, names, source="a test")
    monkeypatch.setattr(cifar_flax, "load_dataset", lambda name: dataset)
    monkeypatch.setattr(Settings, "load_data", lambda self: dataset)
    monkeypatch.chdir(tmp_path)


def run_example(word, page):
    """Runs the example that contains a word, on a small model and data."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if word in block)
    code = code.replace("val_size=5_000", "val_size=40").replace(
        '"convbn"', '"convnet"'
    )
    code = code.replace("cycles=3)\nresult", "cycles=1, val_size=40)\nresult")
    exec(compile(code, str(page), "exec"), {})


@pytest.mark.slow
def test_the_example_of_a_loop_runs(tiny, tmp_path, capsys):
    run_example("cf.Trainer", TRAINING)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # three epochs and the test
    accuracies = [float(word) for word in re.findall(r"\d\.\d*", lines[-1])]
    assert len(accuracies) == 3
    assert np.all(np.isfinite(accuracies))
    assert (tmp_path / "runs" / "best").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("page", [README, TRAINING])
def test_the_example_of_a_run_runs(tiny, tmp_path, capsys, page):
    run_example("cf.ConsoleDisplay", page)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("finished [0.")
    assert (tmp_path / "runs" / "mine" / "result.json").exists()
    assert (tmp_path / "runs" / "report.html").exists()
