"""The commands in a report repeat the runs with the same results."""

import re
import shlex

import pytest

from cifar_flax import records
from tests.forked import command

pytestmark = pytest.mark.slow

NET = """
import flax.linen as nn


class Net(nn.Module):
    num_classes: int = 10
    width: int = 4

    @nn.compact
    def __call__(self, images, *, train):
        images = nn.relu(nn.Dense(self.width)(images.mean((1, 2))))
        return nn.Dense(self.num_classes)(images)
"""

# The same flags in the different ways that people write them.
WAYS = {
    "plain": "--model=convnet --seeds 1,2 --lr 1e-2 --epochs=2 --noflip --cutout=4",
    "flagfile": "--flagfile={folder}/flags.txt",
    "auto": "--model=simplenet --lr=auto --cycles=1 --cycle_len=2 --padding 2",
    "own net": "--model={folder}/net.py:Net --model_args='{{\"width\": 6}}' --lr=.1 "
    "--epochs=1.5 --optimizer=adamw --optimizer_args='{{\"b1\": 0.8}}'",
    "recipe": "--model=convbn --recipe={folder}/recipe.toml --seeds=3",
    "continued": "--continue_from={folder}/plain --epochs=1",
}
RECIPE = """
batch_size = 50
[[phases]]
kind = "onecycle"
learning_rate = 0.05
epochs = 2
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = f"--data_dir={tmp_path_factory.mktemp('data')}"
    return [place, "--dataset=shapes", "--train_size=1000", "--val_size=50"]


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A folder with a run for each way."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "net.py").write_text(NET)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "flags.txt").write_text("--model=convnet2\n--lr=0.02\n--epochs=1\n")
    for name, text in WAYS.items():
        flags = shlex.split(text.format(folder=folder))
        places = [] if name == "continued" else data
        done = command("run", *places, *flags, f"--workdir={folder / name}")
        assert done.returncode == 0, (name, done.stderr)
    return folder


def test_what_a_report_prints_trains_the_same_networks(folder, tmp_path):
    done = command("report", f"--runs={folder}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    (block,) = re.findall(r"```sh\n(.*?)```", done.stdout, re.DOTALL)
    lines = block.splitlines()
    assert len(lines) == len(WAYS)
    made = []
    for number, line in enumerate(lines):
        python, dash, module, *flags = shlex.split(line)
        assert (python, dash, module) == ("python", "-m", "experiments.run")
        again = tmp_path / str(number)
        done = command("run", *flags, f"--workdir={again}")
        assert done.returncode == 0, (line, done.stderr)
        made.append(_outcome(again))
    assert sorted(made) == sorted(_outcome(folder / name) for name in WAYS)


def _outcome(folder):
    result = records.read_result(folder)
    return (result.model, result.seeds, result.epochs, result.test_loss)
