"""A search, run as a user runs it: killed, continued, and reported."""

import csv
import json
import subprocess
import sys
import time

import pytest

from cifar_flax import records
from cifar_flax.search_records import SEARCH, read_search
from tests.forked import command
from tests.test_commands import ROOT, assert_one_line_error, data  # noqa: F401

pytestmark = pytest.mark.slow

SPACE = """
lr = {log_uniform = [0.003, 0.1]}
padding = {integers = [0, 4]}
"""


@pytest.fixture
def flags(data, tmp_path):  # noqa: F811
    (tmp_path / "space.toml").write_text(SPACE)
    fast = ["--epochs=1", "--train_size=60", "--model=simplenet", "--jobs=2"]
    return [*data, *fast, f"--space={tmp_path / 'space.toml'}"]


def results_of(folder):
    found = {}
    for path in folder.glob("*/result.json"):
        found[path.parent.name] = records.read_result(path.parent).test_accuracy
    return found


def test_a_killed_search_goes_on_to_the_end_of_an_undisturbed_one(flags, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags += ["--search=random", "--trials=4", "--fresh_seeds=2"]
    done = command("sweep", *flags, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    assert "5 of 5" in done.stdout
    first = [sys.executable, "-m", "experiments.sweep", *flags, f"--workdir={killed}"]
    process = subprocess.Popen(first, stdout=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + 300
    while not results_of(killed):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.wait()
    again = command("sweep", *flags, f"--workdir={killed}")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count(": was done") >= 1
    assert read_search(killed) == read_search(whole)
    assert results_of(killed) == results_of(whole)
    assert len(results_of(whole)) == 5
    made = command("report", f"--runs={whole}")
    assert made.returncode == 0, made.stderr
    assert "simplenet: 4 of 4 trials" in made.stdout
    assert "its 2 fresh seeds alone are ranked" in made.stdout
    with open(whole / "results.csv") as file:
        ranked = [
            row["seed"] for row in csv.DictReader(file) if row["ranked"] == "True"
        ]
    assert ranked == ["1", "2"]


def test_a_failed_trial_is_named_and_tried_again(flags, tmp_path):
    flags += ["--search=random", "--trials=2", f"--workdir={tmp_path / 'runs'}"]
    plan = command("sweep", *flags, "--dry_run")
    assert plan.returncode == 0, plan.stderr
    assert "then the best trial of each model with 5 fresh seeds" in plan.stdout
    assert not (tmp_path / "runs").exists()
    name = next(word for word in plan.stdout.split() if "-trial1-" in word)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / name).write_text("in the way")
    first = command("sweep", *flags)
    assert_one_line_error(first, 1, name)
    assert "trial2-fresh" in first.stdout
    (tmp_path / "runs" / name).unlink()
    second = command("sweep", *flags)
    assert second.returncode == 0, second.stderr
    assert f"{name} (lr=" in second.stdout
    content = json.loads((tmp_path / "runs" / SEARCH).read_text())
    assert len(content["subjects"][0]["trials"]) == 2


@pytest.mark.parametrize(
    ("more", "status", "words"),
    [
        (["--trials=3"], 2, ["needs --search=random or tpe"]),
        (["--search=random"], 2, ["--search needs --trials"]),
        (["--search=grid", "--trials=3"], 2, ["--search"]),
        (["--search=random", "--trials=0"], 2, ["--trials"]),
        (["--search=random", "--trials=3", "--lr=0.1"], 2, ["chooses lr", "--lr"]),
        (["--search=random", "--trials=3", "--shard=1/2"], 2, ["--shard", "same"]),
        (["--search=random", "--trials=3", "--val_size=0"], 2, ["--val_size=0"]),
    ],
)
def test_wrong_flags_of_a_search(flags, tmp_path, more, status, words):
    folder = tmp_path / "runs"
    done = command("sweep", *flags, *more, f"--workdir={folder}")
    assert_one_line_error(done, status, *words)
    assert not folder.exists()


def test_a_search_at_equal_budget_takes_its_rate_from_the_space(data, flags, tmp_path):  # noqa: F811
    budget = ["--search=random", "--trials=2", "--budget_epochs=3", "--dry_run"]
    without = [word for word in flags if not word.startswith("--epochs")]
    done = command("sweep", *without, *budget)
    assert done.stdout.count("3 epochs") == 2, done.stderr
    assert "range test" not in done.stdout
    (tmp_path / "space.toml").write_text("epochs = {integers = [1, 4]}")
    done = command("sweep", *without, *budget)
    assert_one_line_error(done, 2, "--budget_epochs", "drop epochs")
