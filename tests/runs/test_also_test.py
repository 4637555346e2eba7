"""Further labelled images, on which a run is evaluated after its training."""

import dataclasses
import io
import json

import numpy as np
import pytest
import rich.console
from scipy.special import log_softmax

from cifar_flax import records
from cifar_flax.data import Split
from cifar_flax.errors import UserError
from cifar_flax.runs.inference import Run
from cifar_flax.runs.recorded_settings import SETTINGS as FIELDS
from cifar_flax.runs.setting_values import parse_value
from cifar_flax.runs.settings import Settings
from cifar_flax.show.console import ConsoleDisplay
from tests.conftest import make_split
from tests.runs.test_session import (
    SETTINGS,
    TinyNet,
    assert_same_configuration,
    go,
    make_tiny,
)

DARK = make_split(7, 30)
LIGHT = make_split(8, 21)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run that is evaluated on a file and on arrays too; and what it prints."""
    folder = tmp_path_factory.mktemp("also")
    np.savez(folder / "dark.npz", images=DARK.images, labels=DARK.labels)
    named = {"dark": f"npz:{folder / 'dark.npz'}"}
    settings = dataclasses.replace(SETTINGS, epochs=1, also_test=named)
    screen = rich.console.Console(file=io.StringIO(), width=200)
    given = {"light": LIGHT}
    shown = [ConsoleDisplay(screen)]
    result = go(folder / "run", settings, also_test=given, observers=shown)
    return result, screen.file.getvalue()


def test_predictions_and_results_are_those_of_the_last_state(done):
    result, _ = done
    recorded = records.read_result(result.folder).also_test
    assert list(recorded) == ["light", "dark"]
    for name, split in (("dark", DARK), ("light", LIGHT)):
        arrays = records.read_predictions(result.folder, name)
        logits = result.trainer.predictor(result.state.variables, split.images)
        np.testing.assert_array_equal(arrays["logits"], logits)
        np.testing.assert_array_equal(arrays["labels"], split.labels)
        right = [np.mean(one.argmax(-1) == split.labels) for one in logits]
        logs = log_softmax(logits.astype(np.float64), -1)
        every = np.eye(4)[split.labels]
        loss = [-(one * every).sum() / len(split) for one in logs]
        assert recorded[name].accuracy == pytest.approx(right)
        assert recorded[name].loss == pytest.approx(loss)
        assert recorded[name].size == len(split)
    usual = records.read_predictions(result.folder)
    np.testing.assert_array_equal(usual["logits"], result.test.logits)
    assert usual["run"] == arrays["run"]


def test_header_and_result_show_them(done):
    result, text = done
    header, _, end = text.partition("epoch 1/1")
    assert "also dark      30 images (npz:/" in header
    assert "also light     21 images (a program)" in header
    accuracy = result.record.also_test["dark"].accuracy[1]
    assert "dark accuracy" in end
    assert f"{100 * accuracy:.2f} %" in end


def test_the_training_is_that_of_a_run_without_them(done, tmp_path):
    result, _ = done
    other = go(tmp_path / "other", dataclasses.replace(SETTINGS, epochs=1))
    assert_same_configuration(result, other)
    assert other.record.also_test == {}


def test_a_finished_run_is_evaluated_on_a_labelled_set(done):
    result, _ = done
    run = Run.load(result.folder, model=TinyNet())
    labelled = run.load_labelled(f"npz:{result.folder.parent / 'dark.npz'}")
    found = run.evaluate(labelled.split)
    recorded = result.record.also_test["dark"]
    np.testing.assert_allclose(found.accuracy, recorded.accuracy)
    np.testing.assert_allclose(found.loss, recorded.loss, rtol=1e-5)
    assert labelled.fingerprint == recorded.fingerprint
    with pytest.raises(UserError, match="label 4; with 4 classes"):
        run.evaluate(Split(DARK.images, DARK.labels + 1))


def test_a_resumed_run_is_evaluated_on_them(done):
    result, _ = done
    settings = records.read_config(result.folder).settings
    assert settings["also_test"] == {"dark": f"npz:{result.folder.parent}/dark.npz"}
    kept = {"also_test": settings["also_test"], "epochs": 1}
    kept = dataclasses.replace(SETTINGS, **kept)
    again = go(result.folder, kept, also_test={"light": LIGHT}, resume=True)
    assert {*again.also_test} == {"light", "dark"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=npz:/x.npz", {"a": "npz:/x.npz"}),
        ("a=npz:/x,y.npz,b-2=cifar10", {"a": "npz:/x,y.npz", "b-2": "cifar10"}),
        ("a=folder:/x=y", {"a": "folder:/x=y"}),
        ('{"a": "npz:/x,b=3"}', {"a": "npz:/x,b=3"}),
    ],
)
def test_the_flag_takes_names_with_data_sets(text, value):
    setting = FIELDS["also_test"]
    assert parse_value(setting, text) == value
    assert parse_value(setting, json.dumps(value)) == value


@pytest.mark.parametrize("text", ["npz:/x.npz", "a=x,a=y", "", '{"a": 3}'])
def test_the_flag_takes_nothing_else(text):
    with pytest.raises(
        ValueError, match="give NAME=VALUE, with different names, such as"
    ):
        parse_value(FIELDS["also_test"], text)


@pytest.mark.parametrize(
    ("also_test", "words"),
    [
        ({"test": "cifar10"}, "--also_test: 'test' cannot name"),
        ({"a/b": "cifar10"}, "'a/b' cannot name"),
        ({"a": "no such thing"}, "which is not the name of a data set"),
        ({"a": 3}, "--also_test=.*give NAME=VALUE, with different names"),
    ],
)
def test_settings_that_cannot_be_are_named(also_test, words):
    with pytest.raises(UserError, match=words):
        Settings(also_test=also_test)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"a": Split(DARK.images[:, :8], DARK.labels)}, r"also_test 'a'.*\[30, 8, 32"),
        ({"a": Split(DARK.images, DARK.labels + 9)}, "also_test 'a': label"),
        ({"a": (DARK.images, DARK.labels)}, "also_test 'a' is a tuple"),
        ({"b": DARK}, "'b' twice"),
    ],
)
def test_images_that_do_not_fit_are_named_before_training(tmp_path, given, words):
    np.savez(tmp_path / "b.npz", images=DARK.images, labels=DARK.labels)
    settings = dataclasses.replace(SETTINGS, also_test={"b": f"npz:{tmp_path}/b.npz"})
    with pytest.raises(UserError, match=words):
        go(tmp_path / "run", settings, also_test=given)
    assert not (tmp_path / "run").exists()


def test_a_missing_file_is_named_before_training(tmp_path):
    settings = dataclasses.replace(SETTINGS, also_test={"a": f"npz:{tmp_path}/a.npz"})
    with pytest.raises(
        UserError, match=r"--also_test: the images .a.: .*there is no file"
    ):
        go(tmp_path / "run", settings, dataset=make_tiny())
