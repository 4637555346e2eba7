"""A leading ~ is the home folder, wherever a path is named."""

import ast
import pathlib

import numpy as np
import pytest
from absl import flags

import cifar_flax as cf
from cifar_flax.commands import cli
from tests.reports.made import make_run
from tests.runs.test_session import SETTINGS, TinyNet, make_tiny

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder, while another folder is the current one."""
    for name in ("home", "current"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "current")
    yield tmp_path / "home"
    assert list((tmp_path / "current").iterdir()) == []


@pytest.mark.slow
def test_a_run_and_its_figures(home):
    given = {"model": TinyNet(), "dataset": make_tiny()}
    cf.run(SETTINGS, "~/run", **given)
    assert (home / "run" / "result.json").is_file()
    assert cf.plot_loss("~/run").axes
    with cf.open_checkpoints("~/run/checkpoints", owner=False) as checkpoints:
        assert checkpoints.latest_step == 12


@pytest.mark.slow
def test_a_report_and_its_rows(home):
    make_run(home / "runs" / "one")
    cf.report("~/runs", "~/out")
    assert (home / "out" / "report.md").is_file()
    assert len(cf.load_results("~/runs")) == 2


def test_settings_and_recipes(home):
    (home / "r.toml").write_text(
        '[[phases]]\nkind="constant"\nlearning_rate=1\nepochs=1\n'
    )
    assert cf.read_recipe("~/r.toml").phases
    np.savez(home / "a.npz", images=np.zeros((8, 4, 4, 3), np.uint8), labels=[0, 1] * 4)
    settings = cf.Settings(recipe="~/r.toml", dataset="npz:~/a.npz", data_dir="~/d")
    assert settings.dataset == f"npz:{home}/a.npz"
    assert (settings.recipe, settings.data_dir) == (f"{home}/r.toml", f"{home}/d")


def test_flags_of_paths(home):
    values = flags.FlagValues()
    flags.DEFINE(cli._Path(), "place", None, "", flag_values=values)
    values(["command", "--place=~/x"])
    assert values.place == f"{home}/x"


PATHS = ("workdir", "runs", "run", "output", "figures", "picture")


def test_every_flag_of_a_path_is_defined_as_one():
    seen = set()
    for path in (ROOT / "cifar_flax" / "commands").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or len(node.args) != 3:
                continue
            function, words = ast.unparse(node.func), ast.unparse(node.args[2])
            if function.startswith("cli.define_"):
                name = ast.literal_eval(node.args[0])
                begin = words.strip("\"'")
                is_path = name in PATHS or begin.startswith(("Folder", "File "))
                assert (function == "cli.define_path") == is_path, (path, name)
                seen.add(name)
    assert seen >= set(PATHS)
