"""Commands with odd names, broken channels and missing parts of the system."""

import contextlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cifar_flax import records
from cifar_flax.runs.folder import LOCK, lock_holder
from tests.forked import command
from tests.test_commands import ROOT, assert_one_line_error, data  # noqa: F401

pytestmark = pytest.mark.slow

RUN = [sys.executable, "-m", "experiments.run", "--model=simplenet", "--lr=0.01"]


@pytest.fixture(autouse=True)
def a_signal_that_is_heard():
    """Under ``nohup``, the programs that these tests start would ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def start(*flags, first=(), **settings):
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | settings
    return subprocess.Popen([*first, *RUN, *flags], text=True, cwd=ROOT, **settings)


@contextlib.contextmanager
def training(data, folder, **settings):  # noqa: F811
    """A process that has trained for an epoch and would continue for long."""
    with start(*data, "--epochs=40000", f"--workdir={folder}", **settings) as process:
        wait_for(lambda: records.read_metrics(folder), process)
        yield process


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_saved(folder):
    """Asserts that the run can continue from where it was stopped."""
    steps = [int(path.name) for path in (folder / records.CHECKPOINTS).glob("[0-9]*")]
    assert max(steps) >= records.read_metrics(folder)[-1].step
    assert lock_holder(folder) is None


@pytest.mark.parametrize("terminal", ["utf-8", "ascii"])
def test_what_is_printed_of_a_name_can_be_pasted(data, tmp_path, terminal):  # noqa: F811
    folder = tmp_path / "a[\\b] m[bold]x[red] :car: it's $HOME \u00fc"
    environment = {**os.environ, "PYTHONIOENCODING": terminal}
    with training(data, folder, env=environment) as process:
        process.terminate()
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, stderr
    (line,) = [line for line in stdout.splitlines() if "--resume" in line]
    assert terminal == "utf-8" or line.isascii()
    words = ["bash", "-c", f"printf '%s\\n' {line.strip()}"]
    printed = subprocess.run(words, capture_output=True, check=True).stdout.decode()
    assert f"--workdir={folder}" in printed.splitlines()


def test_nobody_reads_the_output_any_more(data, tmp_path):  # noqa: F811
    with start(*data, "--epochs=40000", f"--workdir={tmp_path / 'run'}") as process:
        assert process.stdout.readline().startswith("model")
        process.stdout.close()
        process.wait(timeout=60)
        stderr = process.stderr.read()
    assert process.returncode == 128 + signal.SIGPIPE
    assert f"--workdir={tmp_path / 'run'} --resume" in stderr
    assert list((tmp_path / "run" / records.CHECKPOINTS).glob("[0-9]*"))


@pytest.mark.parametrize("closed", ["1", "2", "0 1 2"])
def test_a_channel_that_is_closed_stops_nothing(data, tmp_path, closed):  # noqa: F811
    """No other file may take its place, because a library could print into it."""
    flags = [*data, "--epochs=2", f"--workdir={tmp_path / 'run'}"]
    closing = " ".join(f"{number}>&-" for number in closed.split())
    command = f"exec {shlex.join([*RUN, *flags])} {closing}"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=False)
    assert done.returncode == 0
    assert records.read_result(tmp_path / "run").status == "finished"
    for name in (records.METRICS, records.CONFIG, records.RESULT):
        text = (tmp_path / "run" / name).read_text()
        assert all(line[:1] in '{}[] "' for line in text.splitlines())


def test_a_lost_terminal_is_a_stop(data, tmp_path):  # noqa: F811
    """Shell and terminal may each send a SIGHUP; the second one is ignored."""
    with training(data, tmp_path / "run") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert_saved(tmp_path / "run")


def test_a_signal_while_python_ends_prints_no_traceback():
    code = """
import atexit, os, signal, sys
from cifar_flax.commands import cli
atexit.register(os.kill, os.getpid(), signal.SIGHUP)
sys.argv = sys.argv[:1]
with cli.command():
    print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
    assert done.returncode == -signal.SIGHUP


def test_nohup_is_obeyed(data, tmp_path):  # noqa: F811
    with training(data, tmp_path / "run", first=["nohup"]) as process:
        process.send_signal(signal.SIGHUP)
        lines = len(records.read_metrics(tmp_path / "run"))
        wait_for(
            lambda: len(records.read_metrics(tmp_path / "run")) > lines + 3, process
        )
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_a_program_that_ends_takes_its_run_with_it(data, tmp_path):  # noqa: F811
    with start(
        *data,
        "--epochs=40000",
        "--stop_with_input",
        f"--workdir={tmp_path / 'run'}",
        stdin=subprocess.PIPE,
    ) as process:
        wait_for(lambda: records.read_metrics(tmp_path / "run"), process)
        process.stdin.close()
        process.stdout.read()
        process.wait(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert_saved(tmp_path / "run")


def test_a_lock_that_is_removed_is_taken_anew(data, tmp_path):  # noqa: F811
    with training(data, tmp_path / "run") as process:
        (tmp_path / "run" / LOCK).unlink()
        wait_for((tmp_path / "run" / LOCK).exists, process)
        refused = start(f"--workdir={tmp_path / 'run'}", *data, "--resume")
        assert "in use by process" in refused.communicate(timeout=60)[1]
        process.terminate()
        assert "is created again" in process.communicate(timeout=60)[1]


def test_whoever_has_the_lock_writes_alone(data, tmp_path):  # noqa: F811
    """A process that takes a removed lock continues, and the first run ends."""
    from cifar_flax.files import locked

    with training(data, tmp_path / "run") as process:
        process.send_signal(signal.SIGSTOP)
        (tmp_path / "run" / LOCK).unlink()
        with locked(tmp_path / "run" / LOCK, wait=False):
            lines = (tmp_path / "run" / records.METRICS).read_bytes()
            process.send_signal(signal.SIGCONT)
            _, stderr = process.communicate(timeout=60)
            assert process.returncode == 1
            assert f"was removed, and process {os.getpid()} on" in stderr
            now = (tmp_path / "run" / records.METRICS).read_bytes()
            # The line that was being written when it was stopped.
            assert now.count(b"\n") - lines.count(b"\n") <= 1


@pytest.mark.parametrize("home", [None, ""])
def test_no_home_folder(data, tmp_path, home):  # noqa: F811
    """Then there is no cache, and a path that begins with ~ is refused."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for name in ("HOME", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        environment.pop(name, None)
    if home is not None:
        environment["HOME"] = home
    code = (
        "import os, pwd, runpy, sys\n"
        "def nobody(_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "sys.argv[0] = '-m'\n"
        "runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)"
    )
    command = [sys.executable, "-c", code, *RUN[3:], "--epochs=1"]
    settings = {"cwd": tmp_path, "env": environment, "text": True}
    workdir = f"--workdir={tmp_path / 'run'}"
    done = subprocess.run(
        [*command, *data, workdir], capture_output=True, check=False, **settings
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*command, "--data_archive=~/a.tar.gz"],
        capture_output=True,
        check=False,
        **settings,
    )
    assert_one_line_error(done, 2, "~/a.tar.gz", "HOME")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert not pathlib.Path("/.cache").exists()


def test_what_other_systems_lack_is_not_needed():
    """macOS has no sched_getaffinity; Windows has neither fcntl nor resource."""
    code = (
        "import os, signal, sys\n"
        "del os.sched_getaffinity, signal.SIGHUP, signal.SIGPIPE\n"
        "sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "import cifar_flax as cf, cifar_flax.commands.sweep\n"
        "import cifar_flax.runs.inference, benchmarks.benchmark\n"
        "settings = cf.Settings(\n"
        "    model='simplenet', dataset='shapes', train_size=256, lr=0.01, epochs=1)\n"
        "print(cf.run(settings).status)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "finished\n", done.stderr


def test_a_file_system_without_locks_is_named_and_will_do(data, tmp_path):  # noqa: F811
    code = (
        "import errno, fcntl, sys\n"
        "def flock(*_): raise OSError(errno.ENOLCK, 'No locks available')\n"
        "fcntl.flock = flock\n"
        "import runpy; sys.argv[0] = '-m'\n"
        "runpy.run_module('experiments.run', run_name='__main__', alter_sys=True)"
    )
    folder = tmp_path / "run"
    flags = [*RUN[3:], *data, "--epochs=1", f"--workdir={folder}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (one for one in done.stderr.splitlines() if str(folder) in one)
    assert "No locks available" in line
    assert records.read_result(folder).status == "finished"
    assert not list(folder.glob("*.lease"))


def test_a_damaged_program_in_the_cache_is_replaced(data, tmp_path):  # noqa: F811
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    flags = [*RUN, *data, "--epochs=1"]

    def go(name):
        done = subprocess.run(
            [*flags, f"--workdir={tmp_path / name}"],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stderr, records.read_result(tmp_path / name)

    _, first = go("first")
    programs = list((tmp_path / "cache").rglob("*-cache"))
    sizes = {path: path.stat().st_size for path in programs}
    assert programs
    for path in programs:
        os.truncate(path, sizes[path] // 2)
    stderr, second = go("second")
    assert stderr == ""
    assert second.test_loss == first.test_loss
    assert all(path.stat().st_size > 0.9 * sizes[path] for path in programs)


def test_a_relative_path_is_recorded_whole(data, tmp_path):  # noqa: F811
    (archive,) = (word for word in data if word.startswith("--data_archive="))
    shutil.copy(archive.partition("=")[2], tmp_path / "a.tar.gz")
    others = [word for word in data if word != archive]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for cwd, words in [
        (tmp_path, [*RUN, "--data_archive=a.tar.gz", "--epochs=1", *others]),
        (ROOT, [*RUN[:3], "--resume"]),
    ]:
        done = subprocess.run(
            [*words, f"--workdir={tmp_path / 'run'}"],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert re.search("holds a finished run", done.stdout)


@pytest.mark.parametrize("limit", ["-f 100", "-n 24"])
def test_a_limit_of_the_system_loses_nothing(data, tmp_path, limit):  # noqa: F811
    """After any failed write, the resumed run ends with the same bits."""
    flags = [*RUN, *data, "--model=convnet", "--epochs=2"]

    def go(name, *more, limits=""):
        words = shlex.join([*flags, f"--workdir={tmp_path / name}", *more])
        return subprocess.run(
            ["bash", "-c", f"{limits} exec {words}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    assert go("undisturbed").returncode == 0
    limited = go("run", limits=f"ulimit {limit};")
    assert limited.returncode == 1
    # Orbax's threads may print errors after the last line of the command.
    (error,) = (x for x in limited.stderr.splitlines() if x.startswith("error: "))
    assert "--resume" in error or "cannot" in error
    assert records.read_result(tmp_path / "run") is None
    assert go("run", "--resume").returncode == 0
    results = [records.read_result(tmp_path / name) for name in ("undisturbed", "run")]
    assert results[0].test_loss == results[1].test_loss


STRANGERS = {
    "a folder of someone": {
        ".movie.mp4.partial": b"x",
        ".lock": b"mine",
        "notes.txt": b"",
        "checkpoints/7/data": b"y",
    },
    "a record of another program": {"config.json": b'{"a": 1}', "metrics.jsonl": b"[]"},
    "a record that is cut": {"config.json": b'{"kind": "run"', "result.json": b""},
}

COMMANDS = {
    "run": ["run", "--model=simplenet", "--workdir={}"],
    "resume": ["run", "--workdir={}", "--resume"],
    "range test": ["lr_find", "--model=simplenet", "--workdir={}"],
    "grid": ["lr_grid", "--models=simplenet", "--train_size=20", "--workdir={}"],
    "report": ["report", "--runs={}"],
    "predict": ["predict", "--run={}", "{}"],
    "export": ["export", "--run={}", "--format=stablehlo"],
    "archive": ["run", "--data_archive={}", "--archive_sha256=" + "0" * 64],
}


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_refused_command_leaves_a_folder_as_it_was(data, tmp_path, kind, name):  # noqa: F811
    folder = tmp_path / "stranger"
    for path, content in STRANGERS[kind].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    module, *flags = (word.format(folder) for word in COMMANDS[name])
    if name in ("run", "range test"):
        flags += data

    def tree():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in [folder, *folder.rglob("*")]
        }

    before = tree()
    done = command(module, *flags)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert tree() == before


def test_a_full_device_is_one_line_with_the_remedy():
    code = """
from cifar_flax.commands import cli
with cli.command():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying\\nto allocate")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False
    )
    (line,) = done.stderr.decode().splitlines()
    assert done.returncode == 1
    assert line.startswith("error: the memory of the device is full; lower --batch_siz")
