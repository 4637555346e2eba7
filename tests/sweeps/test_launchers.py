"""Sweeps with Ray on two nodes of this machine, and with submitit's local jobs.

After any event, a cell ends with the bits of an undisturbed sweep.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import pytest

from cifar_flax import records
from cifar_flax.errors import UserError
from cifar_flax.runs.folder import lock_holder
from cifar_flax.sweeps.cells import make_cells, pace_of
from cifar_flax.sweeps.launchers import local, ray_cluster, slurm, worker
from tests import archives
from tests.forked import command
from tests.kill import Undisturbed
from tests.test_commands import ROOT, assert_one_line_error
from tests.test_surroundings import wait_for as wait_for_seconds

pytestmark = pytest.mark.slow

FLAGS = ["--model=simplenet", "--lr=0.01,0.02", "--epochs=100"]


def wait_for(condition, process):
    """Waits for a condition; processes that start together are slow."""
    wait_for_seconds(condition, process, seconds=180)


def needs(extra, package):
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"pip install -e '.[{extra}]'")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return archives.tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """The folder of an undisturbed sweep with two cells at a time."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with Sweep(*data, *FLAGS, f"--workdir={folder}", "--jobs=2") as sweep:
        stdout, stderr = sweep.end(0)
    assert stderr == ""
    first, second, *_ = stdout.splitlines()
    assert re.fullmatch(r"1 of 2  \S+: runs", first)
    assert re.fullmatch(r"2 of 2  \S+: runs", second)
    return folder


def assert_same_bits(undisturbed, folder):
    paths = [path for path in undisturbed.iterdir() if path.is_dir()]
    assert len(paths) == 2
    for path in paths:
        Undisturbed(path, 0, []).compare(folder / path.name, but=("device",))


class Sweep(subprocess.Popen):
    """A sweep as a process, which keeps its output."""

    def __init__(self, *flags, env=None):
        super().__init__(
            [sys.executable, "-m", "experiments.sweep", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=env,
        )
        self.lines = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.stdout:
            self.lines.append(line)

    def end(self, status, seconds=240):
        self.wait(timeout=seconds)
        self._reader.join()
        stderr = self.stderr.read()
        assert self.returncode == status, (self.lines, stderr)
        return "".join(self.lines), stderr


def trained(folder):
    """Returns the folders of cells that are being trained."""
    paths = [path for path in folder.iterdir() if path.is_dir()]
    return [
        path
        for path in paths
        if path.name != slurm.FOLDER
        and len(records.read_metrics(path)) > 3
        and not records.read_result(path)
    ]


def pid_of(folder):
    return int(re.search(r"process (\d+)", lock_holder(folder))[1])


# -- this machine


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_cells_at_a_time_share_the_cores(undisturbed):
    cores = max(len(os.sched_getaffinity(0)) // 2, 1)
    for path in undisturbed.glob("*/config.json"):
        assert records.read_config(path.parent).device == f"cpu, {cores} cores"


@pytest.mark.parametrize(
    ("cores", "jobs", "expected"),
    [
        (8, 1, [None]),
        (8, 3, [[0, 1], [2, 3, 4], [5, 6, 7]]),
        (2, 4, [[0], [1], [0], [1]]),
    ],
)
def test_shares_of_the_cores(monkeypatch, cores, jobs, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    assert local.shares(jobs) == expected
    monkeypatch.delattr(os, "sched_setaffinity")
    assert local.shares(jobs) == [None] * jobs


def test_shards_take_each_cell_once(data, tmp_path):
    flags = [*data, "--lr=0.1,0.2,0.3", "--epochs=1", "--model=simplenet"]
    flags += [f"--workdir={tmp_path}", "--dry_run"]
    names = [
        re.findall(r"^(simplenet-\S+)", done.stdout, re.MULTILINE)
        for done in [
            command("sweep", *flags),
            command("sweep", *flags, "--shard=1/2"),
            command("sweep", *flags, "--shard=2/2"),
        ]
    ]
    assert [len(some) for some in names] == [3, 2, 1]
    assert sorted(names[1] + names[2]) == sorted(names[0])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--shard=0/2"], ["--shard=0/2", "I/N"]),
        (["--shard=3/2"], ["--shard=3/2"]),
        (["--shard=a"], ["--shard=a"]),
        (["--jobs=0"], ["--jobs=0"]),
        (["--launcher=ray", "--jobs=2"], ["--jobs", "--launcher=local"]),
        (["--address=auto"], ["--address", "--launcher=ray"]),
        (["--launcher=ray", "--address=ray://a:1"], ["--address=ray://a:1", "PORT"]),
        (["--launcher=slurm", "--slurm_args=[1]"], ["--slurm_args=[1]", "object"]),
        (["--workdir=gs://bucket/a"], ["--workdir=gs://bucket/a", "is an address"]),
    ],
)
def test_wrong_flags(flags, words):
    done = command("sweep", "--epochs=1", "--lr=0.1", *flags)
    assert_one_line_error(done, 2, *words)


def test_the_pace_counts_what_this_process_has_trained(tmp_path):
    cells = make_cells({"lr": [0.1, 0.2, 0.3, 0.4], "epochs": [1]}, (0,), tmp_path)
    assert pace_of(cells, 5) == "0 of 4 done, - cells per hour, time left -"
    cells[0].result = True  # before this process started
    assert pace_of(cells, 5) == "1 of 4 done, - cells per hour, time left -"
    cells[1].result, cells[1].seconds = True, 60
    words = "2 of 4 done, 30 cells per hour, time left 0:04:00"
    assert pace_of(cells, 120) == words


def test_a_worker_says_why_a_cell_failed_and_where(tmp_path, data):
    """For example, storage that a node does not share, or a foreign folder."""
    settings = {"lr": [0.1], "epochs": [1], "dataset": ["npz:/no/such.npz"]}
    (cell,) = make_cells(settings, (0,), tmp_path / "sweep")
    assert "No such file" in worker.train_cell(cell, threading.Event())
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "sweep").mkdir()
    outcome = worker.train_cell(cell, threading.Event())
    assert outcome.startswith("failed: ")
    assert "/no/such.npz" in outcome
    assert "/no/such.npz" in cell.log.read_text()
    stopped = threading.Event()
    stopped.set()
    assert worker.train_cell(cell, stopped) == worker.STOPPED


# -- Ray


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes with one core each: its sweeps and its process."""
    environment = {
        **os.environ,
        "RAY_TMPDIR": tempfile.mkdtemp(prefix="ray"),  # short, for sockets
        "RAY_AUTH_MODE": "disabled",  # otherwise Ray leaves a token in the home folder
        "RAY_USAGE_STATS_ENABLED": "0",
        # Without this, Ray replaces 127.0.0.1 by another address of this machine.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PYTHONPATH": str(ROOT),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.ray_nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    ) as process:
        address = process.stdout.readline().strip()

        def sweep(*flags):
            where = ["--launcher=ray", f"--address={address}"]
            return Sweep(*flags, *where, env=environment)

        yield sweep, process
        process.stdin.close()
    shutil.rmtree(environment["RAY_TMPDIR"], ignore_errors=True)


@needs("ray", "ray")
def test_a_cell_goes_on_when_its_node_is_lost(undisturbed, cluster, data, tmp_path):
    sweep_on, nodes = cluster
    with sweep_on(*data, *FLAGS, f"--workdir={tmp_path}") as sweep:
        wait_for(lambda: trained(tmp_path), sweep)
        (lost, *_) = trained(tmp_path)
        nodes.stdin.write(f"{pid_of(lost)}\n")
        nodes.stdin.flush()
        stdout, _ = sweep.end(0)
    assert nodes.stdout.readline() == "another node has joined\n"
    assert re.search(rf"{lost.name}: runs, node 127.0.0.1", stdout)
    assert re.search(rf"{lost.name}: continues, node 127.0.0.1", stdout)
    assert re.search(r"2 of 2 done, \S+ cells per hour, time left 0:00:00", stdout)
    assert "continuing after step" in lost.with_name(f"{lost.name}.log").read_text()
    assert_same_bits(undisturbed, tmp_path)


@needs("ray", "ray")
def test_a_driver_that_is_killed_or_stopped_comes_back(cluster, data, tmp_path):
    sweep_on, _ = cluster
    flags = [*data, "--model=simplenet", "--lr=0.01", "--epochs=40000"]
    flags.append(f"--workdir={tmp_path}")
    with sweep_on(*flags) as sweep:
        wait_for(lambda: trained(tmp_path), sweep)
        sweep.kill()
        sweep.end(-signal.SIGKILL)
    (folder,) = trained(tmp_path)
    with sweep_on(*flags) as sweep:
        wait_for(lambda: "continues, node" in "".join(sweep.lines), sweep)
        wait_for(lambda: lock_holder(folder), sweep)
        lines = len(records.read_metrics(folder))
        wait_for(lambda: len(records.read_metrics(folder)) > lines + 3, sweep)
        sweep.send_signal(signal.SIGTERM)
        stdout, _ = sweep.end(128 + signal.SIGTERM)
    assert f"{folder.name}: stopped" in stdout
    assert "stopped after step" in folder.with_name(f"{folder.name}.log").read_text()
    assert lock_holder(folder) is None


@needs("ray", "ray")
def test_a_cluster_that_is_too_small_is_waited_for(cluster, data, tmp_path):
    sweep_on, _ = cluster
    flags = [*data, *FLAGS, f"--workdir={tmp_path}", "--cpus_per_cell=2"]
    with sweep_on(*flags) as sweep:
        words = "waits for 2 CPU: no node has so many (2 of 2 CPU are"
        wait_for(lambda: words in "".join(sweep.lines), sweep)
        sweep.send_signal(signal.SIGTERM)
        sweep.end(128 + signal.SIGTERM)
    assert not list(tmp_path.glob("*/*"))


@needs("ray", "ray")
def test_an_address_where_no_cluster_is(monkeypatch):
    monkeypatch.setattr(ray_cluster, "CONNECT_SECONDS", 3)
    with (
        pytest.raises(UserError, match=r"--address=127\.0\.0\.1:1: no Ray cluster"),
        ray_cluster.on_ray("127.0.0.1:1"),
    ):
        pass


@pytest.mark.parametrize("extra", ["ray", "slurm"])
def test_an_extra_that_is_not_installed(monkeypatch, tmp_path, extra):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    launcher = ray_cluster.on_ray() if extra == "ray" else slurm.on_slurm(tmp_path)
    hint = rf"pip install 'cifar-flax\[{extra}\]'"
    with pytest.raises(UserError, match=hint), launcher:
        pass


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_tasks_on_a_machine_take_different_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    kept = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 4, 7})
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: kept.append(cores))
    with ray_cluster.some_cores(2), ray_cluster.some_cores(1):
        assert kept == [[3, 4], [7]]
        with ray_cluster.some_cores(2):  # no core is free, so any two are taken
            assert len(set(kept[2])) == 2
    with ray_cluster.some_cores(3):
        assert sorted(kept[3]) == [3, 4, 7]


# -- Slurm


@needs("slurm", "submitit")
def test_jobs_that_are_ended_go_on(undisturbed, data, tmp_path):
    """One job is asked to end, another one is killed, and the driver ends."""
    flags = [*data, *FLAGS, f"--workdir={tmp_path}"]
    flags += ["--launcher=slurm", '--slurm_args={"cluster": "local"}']
    with Sweep(*flags) as sweep:
        wait_for(lambda: trained(tmp_path), sweep)
        (asked, *_) = trained(tmp_path)
        os.kill(pid_of(asked), signal.SIGUSR2)  # like Slurm before it ends a job
        wait_for(lambda: set(trained(tmp_path)) - {asked}, sweep)
        (killed,) = set(trained(tmp_path)) - {asked}
        os.kill(pid_of(killed), signal.SIGKILL)
        stdout, stderr = sweep.end(1)
    assert f"{killed.name}: failed: " in stdout
    assert f"{asked.name}: done" in stdout
    assert "continuing after step" in asked.with_name(f"{asked.name}.log").read_text()
    assert len(re.findall("^error: ", stderr, re.MULTILINE)) == 1
    with Sweep(*flags) as sweep:
        wait_for(lambda: lock_holder(killed), sweep)
        sweep.send_signal(signal.SIGTERM)
        _, stderr = sweep.end(128 + signal.SIGTERM)
    assert re.search("1 cells remain in the queue .* scancel [0-9]+ ends", stderr)
    with Sweep(*flags) as sweep:
        stdout, _ = sweep.end(0)
    assert re.search(rf"{killed.name}: (waits for process|was done)", stdout)
    assert_same_bits(undisturbed, tmp_path)


@needs("slurm", "submitit")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "no srun or sbatch"),
        ({"cluster": "local", "timeout_min": "long"}, "timeout_min"),
        ({"cluster": "local", "slurm_partitoin": "a"}, "partitoin"),
        ({"cluster": "moon"}, "'moon'"),
    ],
)
def test_parameters_that_submitit_refuses(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(UserError, match=words) as caught,
        slurm.on_slurm(pathlib.Path(tmp_path), arguments=arguments),
    ):
        pass
    assert "\n" not in str(caught.value)


@needs("slurm", "submitit")
def test_a_job_that_slurm_has_is_not_submitted_again(tmp_path, monkeypatch):
    """The next driver finds the jobs of the last one in Slurm's own output."""
    programs = tmp_path / "bin"
    programs.mkdir()
    table = "JobID|State|NodeList\\n7_0|RUNNING|n1\\n7_1|CANCELLED by 5|n2\\n"
    scripts = {
        "srun": "",
        "sacct": f"printf '{table}'",
        "sbatch": "echo Submitted batch job 8",
    }
    for name, script in scripts.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    folder = tmp_path / "sweep"
    folder.mkdir()
    cells = make_cells({"lr": [0.1, 0.2, 0.3], "epochs": [1]}, (0,), folder)
    names = [cell.name for cell in cells]
    slurm.write_json(
        folder / slurm.JOBS, slurm.Jobs({names[0]: "7_0", names[1]: "7_1"})
    )
    stop = threading.Event()
    stop.set()
    with slurm.on_slurm(folder, cpus=3) as run_cells:
        run_cells(cells, stop, lambda cell: None)
    jobs = slurm.read_json(folder / slurm.JOBS, slurm.Jobs).jobs
    assert jobs == {names[0]: "7_0", names[1]: "8_0", names[2]: "8_1"}
    scripts = [path.read_text() for path in (folder / slurm.FOLDER).glob("*.sh")]
    assert all("--array=0-1" in script for script in scripts)
    assert all("--cpus-per-task=3" in script for script in scripts)
