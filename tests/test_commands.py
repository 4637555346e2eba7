"""The commands, run as a user runs them."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from cifar_flax import records
from tests import archives
from tests.forked import command

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Flags for a tiny archive of CIFAR-10's layout: 500 and 100 images."""
    return archives.tiny_data(tmp_path_factory.mktemp("data"))


def assert_one_line_error(done, status, *words):
    assert done.returncode == status, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished run of two seeds, and its output."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    flags = ["--model=convnet", "--lr=0.01", "--epochs=3", "--seeds=3,5"]
    done = command("run", *data, *flags, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done


def test_a_run_leaves_its_records(finished):
    folder, _ = finished
    config = records.read_config(folder)
    assert config.settings["model"] == "convnet"
    assert config.dataset.train_size == 450
    assert config.recipe["phases"] == [
        {"kind": "constant", "learning_rate": 0.01, "epochs": 3}
    ]
    assert config.num_params == 37_490
    assert "--model=convnet" in config.command
    lines = records.read_metrics(folder)
    assert [line.step for line in lines] == [15, 30, 45]
    assert [line.epoch for line in lines] == [1, 2, 3]
    assert set(lines[0].__struct_fields__) == {
        "step",
        "epoch",
        "learning_rate",
        "train_loss",
        "train_accuracy",
        "val_loss",
        "val_accuracy",
        "val_metrics",
        "images_per_second",
        "seconds",
    }
    assert len(lines[0].train_loss) == 2
    result = records.read_result(folder)
    assert result.status == "finished"
    assert result.num_params == 37_490
    with np.load(folder / records.PREDICTIONS) as predictions:
        correct = predictions["logits"].argmax(-1) == predictions["labels"]
    assert correct.shape == (2, 100)
    assert result.test_accuracy == pytest.approx(correct.mean(1).tolist())
    assert result.test_accuracy_mean == pytest.approx(correct.mean())


def test_a_run_says_what_it_does_and_nothing_else(finished):
    folder, done = finished
    assert done.stderr == ""
    for words in (
        "convnet, 37,490 parameters",
        "cifar10: 450 training, 50 validation and 100 test images",
        "3 epochs at 0.01 (45 steps of 30)",
        "epoch 3/3",
        "mean of 2 seeds, 95 % interval",
        str(folder),
    ):
        assert words in done.stdout
    assert "\x1b" not in done.stdout  # no colours and no bar without a terminal


def test_resuming_a_finished_run_shows_it_again(finished):
    folder, done = finished
    again = command("run", f"--workdir={folder}", "--resume")
    assert again.returncode == 0
    assert "finished run" in again.stdout
    assert done.stdout.splitlines()[-3] in again.stdout
    other = command("run", f"--workdir={folder}", "--resume", "--lr=0.5", "--epochs=3")
    assert_one_line_error(other, 1, "--lr was 0.01 and is 0.5")


def test_an_interrupted_run_resumes_to_the_same_bits(data, finished, tmp_path):
    """A run is stopped by SIGTERM and continued without its flags."""
    folder = tmp_path / "run"
    flags = ["--model=convnet", "--lr=0.01", "--epochs=400", "--seeds=3,5"]
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "experiments.run",
            *data,
            *flags,
            f"--workdir={folder}",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        deadline = time.monotonic() + 60
        while len(records.read_metrics(folder)) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    assert f"--workdir={folder} --resume" in stdout
    assert records.read_result(folder) is None

    # The first three epochs do not depend on the number of epochs at that rate.
    expected = records.read_metrics(finished[0])[:2]
    lines = records.read_metrics(folder)[:2]
    for line in (*expected, *lines):
        line.seconds = line.images_per_second = 0.0
    assert lines == expected


def test_a_run_that_diverges_says_so(data, tmp_path):
    folder = tmp_path / "run"
    flags = ["--model=simplenet", "--lr=1e9", "--epochs=2", "--bn_freeze"]
    done = command("run", *data, *flags, f"--workdir={folder}")
    assert done.returncode == 1
    first, second, third = done.stderr.strip().splitlines()
    assert first == "warning: simplenet has no batch norm: its settings have no effect"
    (step,) = records.read_result(folder).diverged_at
    assert 1 < step < 15  # within the first epoch
    assert second.startswith("warning: seed 0 has diverged and ends: its loss")
    assert f"at step {step}, at a rate of 1e+09; lower --lr" in second
    assert third.startswith(f"error: all seeds have diverged, the last at step {step}")
    result = records.read_result(folder)
    assert result.status == "diverged"
    assert result.steps == step
    assert result.test_loss == [None]
    assert records.read_metrics(folder) == []
    assert f"diverged at step {step}" in done.stdout
    again = command("run", f"--workdir={folder}", "--resume")
    assert_one_line_error(again, 1, "all seeds have diverged")


def test_a_resume_knows_the_data_by_their_content(data, finished, tmp_path):
    """The same images under another name are accepted; other images are not."""
    archive = pathlib.Path(data[0].partition("=")[2])
    renamed = tmp_path / "other_name.tar.gz"
    renamed.write_bytes(archive.read_bytes())
    folder = tmp_path / "run"
    folder.mkdir()
    text = (finished[0] / records.CONFIG).read_text()
    (folder / records.CONFIG).write_text(text)
    resume = (f"--workdir={folder}", "--resume")
    done = command("run", *resume, f"--data_archive={renamed}")
    assert done.returncode == 0, done.stderr
    (folder / records.RESULT).unlink()
    other = archives.write_binary_archive(renamed, archives.make_arrays(100, seed=1))
    checksum = archives.sha256(other)
    done = command(
        "run", *resume, f"--data_archive={other}", f"--archive_sha256={checksum}"
    )
    assert_one_line_error(done, 1, "the data set was cifar10", "and is cifar10")


def test_another_configuration_is_refused_by_the_settings_that_differ(data, finished):
    folder = finished[0].parent / "other"
    folder.mkdir()
    text = (finished[0] / records.CONFIG).read_text()
    (folder / records.CONFIG).write_text(text)
    done = command("run", f"--workdir={folder}", "--resume", "--lr=0.5", "--epochs=3")
    assert_one_line_error(done, 1, "--lr was 0.01 and is 0.5")
    assert "epochs" not in done.stderr
    assert [path.name for path in folder.iterdir()] == [records.CONFIG]


def test_a_folder_in_use_is_refused_before_anything_is_done(data, finished):
    done = command("run", *data, f"--workdir={finished[0]}")
    assert_one_line_error(done, 1, str(finished[0]), "--resume")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A flag for the folder where the built-in data set is kept."""
    return f"--data_dir={tmp_path_factory.mktemp('shapes')}"


SMALL = [
    "--model=simplenet",
    "--dataset=shapes",
    "--train_size=600",
    "--batch_size=100",
]


def test_a_run_finds_its_rate_records_it_and_resumes_with_it(shapes, tmp_path):
    folder = tmp_path / "run"
    flags = [*SMALL, "--lr=auto", "--epochs=1", shapes]
    done = command("run", *flags, f"--workdir={folder}")
    assert done.returncode == 0, done.stderr
    found = records.read_range_test(folder)
    rate = found.suggested_lr
    assert found.seeds == [0, 1, 2]  # a training of less than 100 steps
    assert np.shape(found.losses)[0] == 3
    assert 1e-4 < rate < 1
    assert f"suggested rate: {rate:g}\n" in done.stdout
    assert (folder / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    config = records.read_config(folder)
    assert config.settings["lr"] == "auto"
    (phase,) = config.recipe["phases"]
    assert phase == {"kind": "constant", "learning_rate": rate, "epochs": 1}
    assert records.read_metrics(folder)[0].learning_rate == pytest.approx(rate)

    # As after a kill at the very end: no second range test, and the same result.
    result = records.read_result(folder)
    (folder / records.RESULT).unlink()
    done = command("run", f"--workdir={folder}", "--resume")
    assert done.returncode == 0, done.stderr
    assert "suggested rate" not in done.stdout
    assert records.read_result(folder).test_loss == result.test_loss
    assert records.read_config(folder) == config


def test_a_range_test_without_an_answer_says_why(shapes, tmp_path):
    folder = tmp_path / "test"
    flags = ["--start_lr=1e-9", "--end_lr=1e-7", "--num_steps=20", "--seeds=0,1"]
    place = [shapes, f"--workdir={folder}"]
    done = command("lr_find", *SMALL, *flags, *place)
    assert_one_line_error(done, 1, "inconclusive", "the model does not learn at")
    assert records.read_range_test(folder).suggested_lr is None
    assert records.read_config(folder).kind == "lr_find"
    done = command("run", f"--workdir={folder}", "--resume")
    assert_one_line_error(done, 1, str(folder), "not a run to continue")


def test_no_network_and_no_data_falls_to_shapes_and_says_so(tmp_path):
    """The address refuses connections; nothing leaves this machine."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "TFDS_DATA_DIR": str(tmp_path / "data"),
    }
    start = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.run",
            "--model=simplenet",
            "--train_size=256",
            "--lr=0.001",
            "--epochs=1",
        ],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 60
    assert "warning: CIFAR-10 is not in" in done.stderr
    assert "--data_archive" in done.stderr
    result = records.read_result(tmp_path / "runs" / "simplenet-shapes-1")
    assert result.dataset == "shapes"


def test_wrong_inputs_of_run(data, tmp_path):
    missing = tmp_path / "missing.tar.gz"
    done = command("run", f"--data_archive={missing}")
    assert_one_line_error(done, 1, str(missing))
    done = command("run", *data, "--train_size=451")
    assert_one_line_error(done, 1, "train_size is 451", "1 to 450")
    done = command("run", f"--workdir={tmp_path / 'none'}", "--resume")
    assert_one_line_error(done, 1, "holds no run")


def test_summary_counts():
    done = command("summary", "--model=all")
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["resnet2"][3] == "1,966,234"
    done = command("summary", "--model=convnet", "--num_classes=100")
    assert "44,780" in done.stdout  # 37,490 + 90 * 81


def test_prepare_data_draws_a_picture(data, tmp_path):
    picture = tmp_path / "images.png"
    done = command("prepare_data", *data[:3], f"--picture={picture}")
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "500 for training" in done.stdout
    assert "airplane" in done.stdout
    done = command("prepare_data", *data[:3], f"--picture={tmp_path / 'no' / 'x.png'}")
    assert_one_line_error(done, 1, "--picture=")


def test_prepare_data_tells_of_a_hundred_classes_in_a_line(tmp_path):
    arrays = archives.make_arrays(200, kind=archives.CIFAR100)
    path = archives.write_binary_archive(tmp_path / "c.tar.gz", arrays)
    done = command(
        "prepare_data",
        "--dataset=cifar100",
        f"--data_archive={path}",
        f"--archive_sha256={archives.sha256(path)}",
        f"--data_dir={tmp_path}",
        "--image_size=24",
        f"--picture={tmp_path / 'images.png'}",
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "cifar100 (archive c.tar.gz, verified",
        "200 for training, 200 for the test, 24 x 24 x 3",
        "100, 2 images each: apple, aquarium_fish, baby, ..., worm\n",
        "not an official archive",
    ):
        assert words in done.stdout


def test_help_lists_the_flags_of_the_command():
    done = command("run", "--help")
    assert done.returncode == 0
    assert "--bn_freeze" in done.stdout.replace("[no]", "")
    assert "--data_archive" in done.stdout


def test_help_has_groups_kinds_and_defaults():
    text = command("run", "--help").stdout
    groups = re.findall(r"^(\w+):$", text, re.M)
    assert groups == ["Model", "Data", "Recipe", "Run"]
    model, data, recipe, rest = re.split(
        r"^(?:Model|Data|Recipe|Run):$", text, flags=re.M
    )[1:]
    assert "--dtype=float32|bfloat16" in model
    assert "--val_size=INTEGER" in data
    assert "--weight_decay=NUMBER" in recipe
    assert "--[no]nesterov" in recipe
    assert "(default: 0)" in rest.split("--seeds=")[1]
    assert all(len(line) <= 80 for line in text.splitlines())


def test_one_command_has_all_others():
    def main(*words):
        line = [sys.executable, "-m", "experiments", *words]
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)

    listed = main("--help").stdout
    for name in ("run", "sweep", "report", "lr_find"):
        assert re.search(rf"^  {name} ", listed, re.M)
    summary = main("summary", "--model=simplenet")
    assert summary.stdout == command("summary", "--model=simplenet").stdout
    wrong = main("summary", "--model=none")
    assert_one_line_error(wrong, 2, "--model='none'")
    assert_one_line_error(main("rum"), 2, "'rum'", "run, sweep")


def test_json_lines_are_json(finished):
    for line in (finished[0] / records.METRICS).read_text().splitlines():
        json.loads(line)
