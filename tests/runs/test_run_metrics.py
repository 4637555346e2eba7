"""Metrics of a run: in its records, by name, by place, and from a program."""

import dataclasses
import io

import numpy as np
import pytest
import rich.console

from cifar_flax import records
from cifar_flax.analysis.metrics import METRICS
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.settings import Settings
from cifar_flax.show.console import ConsoleDisplay
from tests.conftest import make_split
from tests.runs.test_session import SETTINGS, TinyNet, assert_same_configuration, go

FURTHER = make_split(7, 30)
TEXT = """
from scratch import SCALE

def kappa(logits, labels):
    return SCALE * (logits.argmax(1) == labels).mean()
"""


def worst_class(logits, labels):
    right = logits.argmax(1) == labels
    return min(right[labels == k].mean() for k in set(labels))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "scratch.py").write_text("SCALE = 10\n")
    (folder / "mine.py").write_text(TEXT)
    return folder / "mine.py"


@pytest.fixture(scope="module")
def done(tmp_path_factory, place):
    """A run with named metrics and two of one's own; and what it prints."""
    names = ("balanced_accuracy", "ece", f"{place}:kappa")
    settings = dataclasses.replace(SETTINGS, epochs=2, metrics=names)
    screen = rich.console.Console(file=io.StringIO(), width=250)
    result = go(
        tmp_path_factory.mktemp("metrics") / "run",
        settings,
        metrics=[worst_class],
        also_test={"new": FURTHER},
        observers=[ConsoleDisplay(screen)],
    )
    return result, screen.file.getvalue()


def wanted(logits, labels):
    """The metrics of each seed."""
    named = {n: METRICS[n].function for n in ("balanced_accuracy", "ece")}
    own = {"kappa": lambda x, y: 10 * np.mean(x.argmax(1) == y)}
    every = {**named, **own, "worst_class": worst_class}
    return {n: [float(f(one, labels)) for one in logits] for n, f in every.items()}


def test_the_test_images_are_measured_once(done):
    result, _ = done
    recorded, test = records.read_result(result.folder), result.splits.test
    assert recorded.test_metrics == wanted(result.test.logits, test.labels)
    logits = records.read_predictions(result.folder, "new")["logits"]
    assert recorded.also_test["new"].metrics == wanted(logits, FURTHER.labels)


def test_the_validation_images_are_measured_after_each_epoch(done):
    result, _ = done
    lines, val = records.read_metrics(result.folder), result.splits.val
    assert lines == result.metrics
    last = result.trainer.evaluate(result.state, val)
    assert lines[-1].val_metrics == wanted(last.logits, val.labels)
    assert lines[0].val_metrics != lines[1].val_metrics


def test_they_are_shown(done):
    result, text = done
    line = next(line for line in text.splitlines() if line.startswith("epoch 2/2"))
    mean = np.mean(result.metrics[-1].val_metrics["kappa"])
    assert f"  kappa {mean:.4g}" in line
    end = text.partition("epoch 2/2")[2]
    assert "worst class" in end
    assert "metrics        balanced_accuracy, ece, kappa, worst_class" in text
    assert f"{result.record.test_metrics['ece'][1]:.4g}" in end


def test_the_training_and_the_identity_are_those_of_a_run_without_them(done, tmp_path):
    result, _ = done
    other = go(tmp_path / "other", dataclasses.replace(SETTINGS, epochs=2))
    assert_same_configuration(result, other)
    assert "val_metrics" not in (other.folder / records.METRICS).read_text()
    assert other.record.test_metrics == {}


def test_the_code_is_recorded_and_never_run_by_a_record(done, place):
    config = records.read_config(done[0].folder)
    source = config.sources["metrics.kappa"]
    assert source.text == place.read_text()
    assert [helper.text for helper in source.helpers] == ["SCALE = 10\n"]
    assert config.sources["metrics.worst_class"].sha256
    names = ["balanced_accuracy", "ece", f"{place}:kappa", "worst_class"]
    assert config.settings["metrics"] == names
    assert config.command == []
    own = Settings(metrics=names[:3]).own_code()
    assert own == {"metrics.kappa": f"{place}:kappa"}


@pytest.mark.slow
def test_code_that_has_changed_is_another_run(place, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "mine.py").write_text("def one(logits, labels):\n    return 1\n")
    settings = dataclasses.replace(
        SETTINGS, epochs=1, metrics=[f"{folder}/mine.py:one"]
    )
    go(tmp_path / "run", settings)
    go(tmp_path / "run", settings, resume=True)
    (folder / "mine.py").write_text("def one(logits, labels):\n    return 2\n")
    with pytest.raises(UserError, match=r"the code of metrics\.one has changed"):
        go(tmp_path / "run", settings, resume=True)


def test_a_loaded_run_is_measured(done):
    result, _ = done
    run = Run.load(result.folder, model=TinyNet())
    found = run.evaluate(FURTHER, ["ece", worst_class])
    recorded = result.record.also_test["new"].metrics["ece"]
    np.testing.assert_allclose(found.metrics["ece"], recorded, atol=1e-6)
    wanted_worst = result.record.also_test["new"].metrics["worst_class"]
    assert found.metrics["worst_class"].tolist() == wanted_worst
    assert "ece=" in repr(found)
    with pytest.raises(UserError, match="--metrics=auc: give some of"):
        run.evaluate(FURTHER, ["auc"])


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (("auc",), "--metrics=auc: give some of balanced_accuracy, .*FILE.py:NAME"),
        (("ece", "ece"), "'ece' names two"),
        (("a.py:ece",), "'ece' cannot name a metric; give the function another name"),
        (("a.py:accuracy",), "'accuracy' cannot name"),
        (("a.py:one", "b.py:one"), "'one' names two"),
        (3, "--metrics=3: give one or more names"),
    ],
)
def test_names_that_cannot_be_are_named(metrics, words):
    with pytest.raises(UserError, match=words):
        Settings(metrics=metrics)


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([lambda x, y: 0.0], "'<lambda>' cannot name"),
        ([worst_class, worst_class], "'worst_class' names two"),
        ([METRICS["ece"].function], "'ece' cannot name"),
    ],
)
def test_functions_need_names_of_their_own(functions, words):
    with pytest.raises(UserError, match=words):
        go(None, metrics=functions)


def test_what_fails_is_named_before_training(tmp_path):
    settings = dataclasses.replace(SETTINGS, metrics=("top5",))
    with pytest.raises(UserError, match="with 4 classes"):
        go(tmp_path / "run", settings)
    settings = dataclasses.replace(SETTINGS, metrics=(f"{tmp_path}/no.py:one",))
    with pytest.raises(UserError, match=r"--metrics=.*no.py:one: there is no file"):
        go(tmp_path / "run", settings)
    assert not (tmp_path / "run").exists()
