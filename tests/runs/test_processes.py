"""Several processes that train one run together, on the loopback.

``python -m tests.kill_processes`` kills them at many moments.
"""

import os
import re
import signal
import time

import numpy as np
import pytest

from cifar_flax import records
from tests import archives
from tests.kill_processes import Group, command, go, numbers

pytestmark = pytest.mark.slow

FLAGS = ["--model=simplenet", "--lr=0.01", "--epochs=3"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    given = archives.tiny_data(tmp_path_factory.mktemp("data"))
    return [*FLAGS, *given, "--batch_size=32"]


def test_seeds_over_processes_get_the_bits_of_one(data, tmp_path):
    flags = [*data, "--seeds=0,1,2,3"]
    assert go(1, tmp_path / "one", flags) == [0]
    assert go(2, tmp_path / "two", flags) == [0, 0]
    assert go(4, tmp_path / "four", flags) == [0] * 4
    expected = numbers(tmp_path / "one")
    for name in ("two", "four"):
        assert numbers(tmp_path / name) == expected
        steps = [records.read_steps(tmp_path / n).losses for n in ("one", name)]
        np.testing.assert_array_equal(*steps)


def test_a_batch_over_processes_gives_the_loss_of_one_with_as_many_devices(
    data, tmp_path
):
    flags = [*data, "--model=convbn", "--lr=0.001", "--epochs=1"]
    assert go(1, tmp_path / "one", [*flags, "--devices=4"], devices=4) == [0]
    assert go(2, tmp_path / "two", flags, devices=2) == [0, 0]
    one, two = (records.read_result(tmp_path / name) for name in ("one", "two"))
    assert two.test_accuracy == one.test_accuracy
    np.testing.assert_allclose(two.test_loss, one.test_loss, rtol=1e-5)
    device = records.read_config(tmp_path / "two").device
    assert device.endswith("as 4 devices: each batch over 4")


def test_a_stop_of_one_saves_once_and_another_number_goes_on(data, tmp_path):
    flags = [*data, "--epochs=60", "--seeds=0,1"]
    assert go(1, tmp_path / "whole", flags) == [0]
    folder = tmp_path / "run"
    with Group(2, folder, flags) as group:
        group.wait_for_lines(2)
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.wait() == [143, 143]
    assert "to continue" in group.said(0)
    assert len(records.read_steps(folder).rates) < 60 * 3
    with Group(2, folder, [*flags, "--resume=auto"]) as group:
        group.wait_for_lines(len(records.read_metrics(folder)) + 2)
        group.processes[1].kill()
        begin = time.monotonic()
        assert group.wait() == [1, -signal.SIGKILL]
        assert time.monotonic() - begin < 60
    said = [line for line in group.said(0).splitlines() if "error" in line]
    assert len(said) == 1
    assert "another process of this run has ended" in said[0]
    assert go(1, folder, [*flags, "--resume=auto"]) == [0]
    assert numbers(folder) == numbers(tmp_path / "whole")


def test_what_the_processes_disagree_on_is_named_by_all(data, tmp_path):
    with Group(2, tmp_path / "run", data, [[], ["--lr=0.02"]]) as group:
        assert group.wait() == [1, 1]
    for number in range(2):
        assert "--lr was 0.01 and is 0.02; give all" in group.said(number)
    assert not (tmp_path / "run").exists()
    folder = tmp_path / "strange"
    folder.mkdir()
    (folder / "file").touch()
    with Group(2, folder, data) as group:
        assert group.wait() == [1, 1]
    for number in range(2):
        assert f"{folder} is not empty and has no run" in group.said(number)
    assert os.listdir(folder) == ["file"]


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--coordinator=node1:80"], 2, "--coordinator also needs --num_processes"),
        (
            ["--coordinator=node1", "--num_processes=2", "--process_id=0"],
            2,
            "--coordinator=node1: give HOST:PORT, such as node1:8476",
        ),
        (
            ["--coordinator=node1:80", "--num_processes=2", "--process_id=2"],
            2,
            "--process_id=2: it must be below --num_processes=2",
        ),
        (["--distributed", "--workdir="], 2, "--workdir="),
        (["--distributed"], 1, "outside of Slurm, TPU pods and Kubernetes give --coo"),
        (["--devices=99"], 1, "--devices=99: there are 1 of kind cpu"),
        (["--mesh=seed:2"], 1, "--mesh=seed:2 needs 2 devices, and there are 1"),
        (["--mesh=2x2"], 2, "--mesh=2x2: give devices along the axes, as seed:2,data"),
    ],
)
def test_what_cannot_be_is_one_line(data, tmp_path, flags, status, words):
    done = command(tmp_path / "run", [*data, *flags])
    assert done.returncode == status
    assert words in done.stderr
    assert len(re.findall("^error", done.stderr, re.MULTILINE)) == 1
    assert not (tmp_path / "run").exists()
