"""An equal budget of operations for models of different cost."""

import pytest

from cifar_flax.errors import UserError
from cifar_flax.models import create_model
from cifar_flax.models.summary import layer_rows
from cifar_flax.runs.settings import Settings
from cifar_flax.sweeps.budget import FlopsBudget
from cifar_flax.sweeps.cells import make_cells
from tests import archives


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    words = archives.tiny_data(tmp_path_factory.mktemp("data"))
    data = dict(word[2:].split("=") for word in words)
    return {**data, "val_size": 50, "batch_size": 30}


def forward_flops(model):
    return sum(row.flops for row in layer_rows(create_model(model)))


@pytest.mark.slow
def test_each_model_trains_for_the_same_operations(data, tmp_path):
    """450 images in batches of 30; a step is three times a forward pass."""
    budget = FlopsBudget(3e11)
    lists = {**{name: [value] for name, value in data.items()}, "lr": [0.1]}
    lists["model"] = ["simplenet", "convnet", "resnet"]
    cells = make_cells(lists, (0, 1), tmp_path, budget)
    lengths = {cell.settings.model: cell.settings.cycle_len for cell in cells}
    assert lengths["simplenet"] > lengths["convnet"] > lengths["resnet"]
    for model, length in lengths.items():
        spent = 3 * 450 * length * forward_flops(model)
        assert spent == pytest.approx(3e11, rel=0.005)
        assert float(f"{length:.3g}") == length
    assert all(cell.settings.lr == 0.1 for cell in cells)


def test_without_a_rate_a_range_test_finds_it(data):
    assert FlopsBudget(3e11)({**data, "model": "convnet"})["lr"] == "auto"


def test_a_budget_below_one_step_is_one_line(data):
    with pytest.raises(UserError, match=r"--budget_flops=10 is below one step of conv"):
        FlopsBudget(10)({**data, "model": "convnet"})


def test_the_same_settings_are_counted_once(data, monkeypatch):
    budget = FlopsBudget(3e11)
    first = budget({**data, "model": "simplenet", "lr": 0.1})
    monkeypatch.setattr(Settings, "load_data", lambda self: pytest.fail("again"))
    assert budget({**data, "model": "simplenet", "lr": 0.2}) == {**first, "lr": 0.2}
