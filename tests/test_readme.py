"""The README's example runs as it stands."""

import pathlib
import re

import numpy as np

from cifar_flax import data
from tests.conftest import make_split

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_the_example_in_python_runs(monkeypatch, tmp_path, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "Trainer" in block)
    train, test = make_split(0, 600), make_split(1, 20)
    dataset = data.make_dataset(
        "tiny",
        train.images,
        train.labels,
        test.images,
        test.labels,
        ("a", "b", "c", "d"),
        source="a test",
    )
    monkeypatch.setattr(data, "load_dataset", lambda name: dataset)
    monkeypatch.chdir(tmp_path)
    code = code.replace("val_size=5_000", "val_size=40").replace(
        '"convbn"', '"convnet"'
    )
    exec(compile(code, str(README), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4  # three epochs and the test
    accuracies = [float(word) for word in re.findall(r"\d\.\d*", lines[-1])]
    assert len(accuracies) == 3
    assert np.all(np.isfinite(accuracies))
    assert (tmp_path / "runs" / "mine").is_dir()
