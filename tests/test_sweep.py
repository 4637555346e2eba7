"""Sweeps, reports and predictions, run as a user runs them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from cifar_flax import records
from cifar_flax.runs.folder import lock_holder
from tests import archives
from tests.forked import command
from tests.test_commands import ROOT, assert_one_line_error, data  # noqa: F401
from tests.test_surroundings import assert_saved, wait_for

pytestmark = pytest.mark.slow

FAST = ["--epochs=1", "--train_size=60"]


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory):  # noqa: F811
    """A sweep of three cells; one fails at first, and one diverges."""
    folder = tmp_path_factory.mktemp("sweeps") / "sweep"
    flags = [*data, *FAST, "--model=simplenet", "--lr=0.01,0.02,1e38", "--seeds=0,1"]
    flags.append(f"--workdir={folder}")
    plan = command("sweep", *flags, "--dry_run")
    names = re.findall(r"^(simplenet-\S+)", plan.stdout, re.MULTILINE)
    assert len(names) == 3, plan.stderr
    assert not folder.exists()
    folder.mkdir()
    (folder / names[0]).write_text("in the way")
    first = command("sweep", *flags)
    (folder / names[0]).unlink()
    second = command("sweep", *flags)
    return folder, names, flags, first, second


def test_a_failed_cell_is_reported_and_the_rest_go_on(swept):
    folder, names, _, first, _ = swept
    assert first.returncode == 1
    (line,) = [line for line in first.stderr.splitlines() if line.startswith("error")]
    assert names[0] in line
    assert f"{names[1]}: done" in first.stdout
    assert f"{names[2]}: diverged at step 2" in first.stdout
    assert records.read_result(folder / names[1]).test_accuracy


def test_the_same_command_goes_on_with_what_is_left(swept):
    folder, names, _, _, second = swept
    assert second.returncode == 0, second.stderr
    assert f"{names[0]}: done" in second.stdout
    assert f"{names[1]}: was done" in second.stdout
    assert f"{names[2]}: diverged at step 2" in second.stdout
    rates = [records.read_config(folder / name).settings["lr"] for name in names]
    assert rates == [0.01, 0.02, 1e38]


def test_the_chosen_cell_gets_fresh_seeds_when_all_are_done(data, tmp_path):  # noqa: F811
    flags = [*data, *FAST, "--model=simplenet", "--lr=0.01,0.02", "--seeds=0,1"]
    flags += ["--fresh_seeds=2", f"--workdir={tmp_path / 'sweep'}"]
    plan = command("sweep", *flags, "--dry_run")
    assert "fresh seeds 2, 3" in plan.stdout
    for word in ("done", "was done"):
        swept = command("sweep", *flags)
        assert swept.returncode == 0, swept.stderr
        after = swept.stdout.partition("with the fresh seeds 2, 3")[2]
        assert f"{word}, rate 0.0" in after
        assert "--choose_seeds=0,1" in after.splitlines()[-1]
    made = command("report", f"--runs={tmp_path / 'sweep'}", "--choose_seeds=0,1")
    assert "The seeds 0, 1 chose" in made.stdout


def test_cells_of_other_data_are_not_taken_for_done(swept, tmp_path):
    folder, _, flags, _, _ = swept
    archive = archives.write_binary_archive(
        tmp_path / "other.tar.gz", archives.make_arrays(100, seed=1)
    )
    others = [
        f"--data_archive={archive}",
        f"--archive_sha256={archives.sha256(archive)}",
        f"--data_dir={tmp_path}",
    ]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    plan = command("sweep", *flags, *others, "--dry_run")
    assert plan.stdout.count("the data set was cifar10") == 3
    assert "is done" not in plan.stdout
    done = command("sweep", *flags, *others)
    assert done.returncode == 1
    assert done.stdout.count("failed: ") >= 3
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def sweep(*flags):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def test_a_cell_that_another_process_holds_is_waited_for(swept):
    folder, names, flags, _, _ = swept
    held = folder / names[0]
    result = held / records.RESULT
    content = result.read_text()
    result.unlink()
    code = (
        "import pathlib, sys; from cifar_flax.runs import folder\n"
        "with folder.locked_folder(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(held)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout.readline() == "held\n"
        refused = command("run", *flags[:5], f"--workdir={held}", "--resume")
        with sweep(*flags) as waiting:
            holder = f"process {process.pid} on"
            assert f"{names[0]}: waits for {holder}" in waiting.stdout.readline()
            assert f"{names[1]}: was done" in waiting.stdout.readline()
            whole = result.with_suffix(".new")
            whole.write_text(content)
            whole.replace(result)  # in the way that a run writes it
            process.stdin.close()
            rest = waiting.stdout.read()
    assert waiting.returncode == 0
    assert f"1 of 3  {names[0]}: was done" in rest
    assert lock_holder(held) is None  # the file exists, the process has ended
    assert_one_line_error(refused, 1, "is in use by process", str(process.pid))


def test_two_sweeps_share_the_cells(data, tmp_path):  # noqa: F811
    flags = [*data, *FAST, "--model=simplenet", "--lr=0.01,0.02,0.03,0.04"]
    both = [sweep(*flags, f"--workdir={tmp_path}") for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    for stdout, stderr in outputs:
        assert stderr == ""
        assert len(re.findall(r" of 4  \S+: (was )?done.*accuracy", stdout)) == 4
    lines = "".join(stdout for stdout, _ in outputs)
    assert lines.count(": done, rate") == 4  # each is trained once
    for log in tmp_path.glob("*.log"):
        assert log.read_text().count("files  ") == 1


def test_a_killed_sweep_leaves_no_orphan(data, tmp_path):  # noqa: F811
    flags = [*data, "--model=simplenet", "--lr=0.01", "--epochs=40000"]
    with sweep(*flags, f"--workdir={tmp_path}") as process:
        name = re.search(r"1 of 1  (\S+): runs", process.stdout.readline())[1]
        folder = tmp_path / name
        wait_for(lambda: records.read_metrics(folder), process)
        assert lock_holder(folder)
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 30
    while lock_holder(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert_saved(folder)


def test_a_cell_that_is_ended_from_outside_is_said_to_be(data, tmp_path):  # noqa: F811
    flags = [*data, "--model=simplenet", "--lr=0.01", "--epochs=40000"]
    with sweep(*flags, f"--workdir={tmp_path}") as process:
        name = re.search(r"1 of 1  (\S+): runs", process.stdout.readline())[1]
        wait_for(lambda: records.read_metrics(tmp_path / name), process)
        holder = lock_holder(tmp_path / name)
        os.kill(int(re.search(r"process (\d+)", holder)[1]), signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "ended from outside by SIGKILL" in stderr


def test_paths_with_commas_are_one_path(data, tmp_path):  # noqa: F811
    (archive,) = (word for word in data if word.startswith("--data_archive="))
    shutil.copy(archive.partition("=")[2], tmp_path / "a,b.tar.gz")
    others = [word for word in data if word != archive]
    flags = [f"--data_archive={tmp_path / 'a,b.tar.gz'}", "--model=simplenet", *FAST]
    flags.append("--lr=0.01")
    done = command("sweep", *others, *flags, f"--workdir={tmp_path / 'sweep'}")
    assert done.returncode == 0, done.stderr


def test_an_interrupted_sweep_goes_on_where_it_was(data, tmp_path):  # noqa: F811
    flags = [*data, "--model=convnet", "--lr=0.01", "--epochs=400"]
    flags.append(f"--workdir={tmp_path}")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in output
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert list((folder / records.CHECKPOINTS).iterdir())
    assert lock_holder(folder) is None


def test_equal_budgets_find_a_rate_for_every_model():
    models = "--model=simplenet,convnet"
    done = command("sweep", models, "--budget_epochs=6", "--dry_run")
    lines = [line for line in done.stdout.splitlines() if "6 epochs" in line]
    assert len(lines) == 2, done.stderr
    assert all("rate from a range test" in line for line in lines)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=convnet,nonet"], ["--model=nonet", "convbn2"]),
        (["--model=convnet,resnet", "--phases=1,3"], ["--phases=3", "model=convnet"]),
        (["--budget_epochs=2", "--epochs=3"], ["--budget_epochs", "--epochs"]),
        (["--budget_flops=1e12", "--cycles=3"], ["--budget_flops", "--cycles"]),
        (["--budget_flops=1e12", "--budget_epochs=3"], ["give one of --budget_e"]),
        (["--lr=0.1,0.1", "--epochs=1"], ["appears twice"]),
    ],
)
def test_wrong_flags_of_sweep(flags, words):
    assert_one_line_error(command("sweep", *flags), 2, *words)


def test_a_report_compares_the_sweep(swept, tmp_path):
    folder, names, *_ = swept
    done = command("report", f"--runs={folder}", f"--output={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert "simplenet lr=0.01" in done.stdout
    assert "Others (2) are listed below it." in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert "Most confidently wrong" in page
    assert names[0] not in (tmp_path / "report.md").read_text()
    output = f"--output={tmp_path}"
    done = command("report", f"--runs={folder}", "--compare=lr", output)
    assert done.returncode == 0, done.stderr
    assert "p is that of one pair" in done.stdout
    assert "simplenet lr=1e+38: 2 of 2 seeds diverged" in done.stdout


def test_a_report_needs_no_jax():
    code = "import sys, experiments.report; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_folder_without_runs_cannot_be_reported(tmp_path):
    done = command("report", f"--runs={tmp_path}")
    assert_one_line_error(done, 1, "holds no finished run", str(tmp_path))


def test_predict_names_the_classes_of_pictures(swept, tmp_path):
    from PIL import Image

    folder, names, *_ = swept
    Image.new("L", (90, 50), 128).save(tmp_path / "grey.png")
    (tmp_path / "note.png").write_text("hello")
    run = f"--run={folder / names[0]}"
    done = command("predict", run, tmp_path, "--json", "--top=10")
    assert_one_line_error(done, 1, "note.png is not a picture")
    (line,) = done.stdout.splitlines()
    seen = json.loads(line)
    assert seen["image"] == str(tmp_path / "grey.png")
    probabilities = [one["probability"] for one in seen["classes"]]
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    assert len({one["class"] for one in seen["classes"]}) == 10
    assert_one_line_error(command("predict", run), 2, "give pictures")
    assert_one_line_error(command("predict", tmp_path), 2, "--run")
