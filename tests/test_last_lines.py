"""Every command runs to its last line, with tiny sizes; what a user relies on is there.

The test of the command NAME is ``test_NAME``; a command without one fails here.
"""

import ast
import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from benchmarks import gpu_check, kernels
from cifar_flax import records
from cifar_flax.layers.native import library
from tests import archives
from tests.forked import command

ROOT = pathlib.Path(__file__).parents[1]
FAST = ("--model=simplenet", "--lr=0.01", "--epochs=1")

no_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is not here"
)


def commands_in(folder):
    """Returns the names of the modules of a folder that end with ``main()``."""
    for path in sorted((ROOT / folder).glob("[a-z]*.py")):
        last = ast.parse(path.read_text()).body[-1]
        if isinstance(last, ast.If) and "sys.exit(main())" in ast.unparse(last):
            yield path.stem


def test_every_command_has_a_test_here_and_its_alias():
    ours, others = (
        list(commands_in("cifar_flax/commands")),
        list(commands_in("benchmarks")),
    )
    assert "run" in ours
    assert "benchmark" in others
    missing = [name for name in ours + others if f"test_{name}" not in globals()]
    assert not missing, f"give {missing} a test that runs it to its last line"
    aliases = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert aliases == {*ours, "benchmark"}


def last_line_of(done, status=0):
    """Returns the last line of a command that has ended as it should."""
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()[-1]


def assert_picture(path):
    with Image.open(path) as picture:
        picture.load()
        assert min(picture.size) > 100
        assert len(picture.convert("RGB").getcolors(2**24)) > 5  # it is not blank


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return archives.tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """A folder of two finished runs, ``a`` and ``b``, and their output."""
    folder = tmp_path_factory.mktemp("runs")
    done = [
        command("run", *data, *FAST, f"--seeds={seeds}", f"--workdir={folder / name}")
        for name, seeds in (("a", "0,1"), ("b", "2"))
    ]
    return folder, done


@pytest.mark.slow
def test_run(runs):
    folder, done = runs
    for name, one in zip("ab", done, strict=True):
        assert str(folder / name) in last_line_of(one)
        result = records.read_result(folder / name)
        assert result.status == "finished"
        assert result.train_seconds > 0
        assert (folder / name / records.PREDICTIONS).stat().st_size
        assert any((folder / name / records.CHECKPOINTS).iterdir())


@pytest.mark.slow
def test_run_of_fresh_seeds(data, runs, tmp_path):
    again = (f"--replicate={runs[0] / 'a'}", f"--workdir={tmp_path / 'again'}")
    found = last_line_of(command("run", *data, *again))
    assert found.split() == ["differs", "nothing", "but", "the", "seeds"]


@pytest.mark.slow
def test_sweep(data, tmp_path):
    done = command("sweep", *data, *FAST, f"--workdir={tmp_path}", "--momentum=0.8,0.9")
    assert last_line_of(done) == (
        f"compare: python -m experiments.report --runs={tmp_path}"
    )
    folders = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(folders) == 2
    assert all(records.read_result(path).status == "finished" for path in folders)


@pytest.mark.slow
def test_report(runs, tmp_path):
    places = (f"--runs={runs[0]}", f"--output={tmp_path}", f"--figures={tmp_path}/f")
    line = last_line_of(command("report", *places))
    files = line.removeprefix("files ").strip().split(", ")
    assert len(files) >= 4
    assert all(pathlib.Path(path).stat().st_size > 50 for path in files)
    for picture in (tmp_path / "f").glob("*.png"):
        assert_picture(picture)


@pytest.mark.slow
def test_lr_find(tmp_path):
    words = ("--model=simplenet", "--dataset=shapes", "--train_size=600")
    places = (f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'test'}")
    done = command("lr_find", *words, "--batch_size=100", "--seeds=0,1,2", *places)
    assert "suggested rate: " in last_line_of(done)
    assert records.read_range_test(tmp_path / "test").suggested_lr > 0
    assert_picture(tmp_path / "test" / "lr_find.png")


@pytest.mark.slow
def test_summary():
    for model in ("simplenet", "all"):
        line = last_line_of(command("summary", f"--model={model}"))
        assert line.startswith("FLOPs count")


@pytest.mark.slow
def test_predict(data, runs, tmp_path):
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    words = (f"--run={runs[0] / 'a'}", tmp_path / "red.png")
    assert "%" in last_line_of(command("predict", *words))
    likeliest = json.loads(last_line_of(command("predict", *words, "--json")))
    assert all(0 < one["probability"] <= 1 for one in likeliest["classes"])
    done = command("predict", words[0], "--dataset=cifar10", *data[:3])
    result = records.read_result(runs[0] / "a")
    for accuracy in result.test_accuracy:
        assert f"{100 * accuracy:.2f} %" in done.stdout
    (tmp_path / "new" / "cat").mkdir(parents=True)
    (tmp_path / "red.png").rename(tmp_path / "new" / "cat" / "red.png")
    labelled = f"--dataset=folder:{tmp_path / 'new'}"
    words = (words[0], labelled, "--metrics=ece,top5", "--json")
    line = json.loads(last_line_of(command("predict", *words)))
    assert 0 <= line["ece"] <= 1
    assert (line["seed"], line["images"]) == (1, 1)
    assert line["accuracy"] in (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "package"), [("safetensors", "safetensors"), ("stablehlo", "flatbuffers")]
)
def test_export(runs, tmp_path, kind, package):
    pytest.importorskip(package)
    words = (f"--run={runs[0] / 'a'}", f"--format={kind}", f"--output={tmp_path}")
    done = command("export", *words)
    assert "the same class for" in last_line_of(done)
    assert len(done.stdout.splitlines()) == 2  # a line for each seed
    assert len([path for path in tmp_path.iterdir() if path.stat().st_size]) == 2


@pytest.mark.slow
def test_prepare_data(data, tmp_path):
    picture = tmp_path / "images.png"
    done = command("prepare_data", *data[:3], f"--picture={picture}")
    assert last_line_of(done).split() == ["picture", str(picture)]
    assert_picture(picture)


def has_torch_compile():
    compiler = os.environ.get("CXX") or "g++"
    return importlib.util.find_spec("torch") is not None and shutil.which(compiler)


@pytest.mark.slow
def test_benchmark(tmp_path):
    peer = "torch" if has_torch_compile() else "none"
    sizes = ("--rounds=1", "--batch_size=16", "--train_images=64", "--eval_images=64")
    files = (f"--json={tmp_path / 'rows.json'}", f"--figure={tmp_path / 'ratios.png'}")
    words = ("--models=simplenet", "--lowerings=auto,xla", f"--peer={peer}")
    line = last_line_of(command("benchmark", *words, *sizes, *files))
    assert "batch 16, 1 rounds; evaluation of 64 images." in line
    assert line.endswith(" GFLOP/s.")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == (5 if peer == "torch" else 2)
    for row in rows:
        for name in ("step_seconds", "images_per_second", "gflops", "eval_seconds"):
            assert row[name] > 0, name
        assert row["peak_memory_bytes"] > 0
        assert row["step_ratio"]["min"] <= row["step_ratio"]["median"]
    assert_picture(tmp_path / "ratios.png")


@no_torch
@pytest.mark.slow
def test_gpu_check(tmp_path):
    path = tmp_path / "gpu.json"
    words = ("--dry_run", "--minutes=60", f"--json={path}")
    done = command("gpu_check", *words, limit=900)
    assert last_line_of(done) == f"all figures: {path}"
    found = json.loads(path.read_text())
    parts = {name: one["rows"] for name, one in found["parts"].items()}
    assert {one["status"] for one in found["parts"].values()} == {"done"}
    assert [*parts] == [*gpu_check.SHARES]
    assert parts["machine"][0]["versions"]["jax"]
    for row in parts["steps"] + parts["peak"]:
        assert row["step_seconds"] > 0
        assert row["gflops"] > 0
    for row in parts["accuracy"] + parts["torch_accuracy"] + parts["dtypes"][:2]:
        assert row["wall_seconds"] >= row["seconds"] > 0
        assert len(row["accuracies"]) == len(row["seeds"])
    assert [row["seeds"] for row in parts["accuracy"]] == [[0], [1], [0, 1]]
    assert [row["seeds"] for row in parts["seeds"]] == [1, 2]
    for row in parts["peak"]:
        assert sum(row["share_of_kernel_time"].values()) == pytest.approx(1)
    assert [row["cache"] for row in parts["start"]] == ["empty", "filled"]


@pytest.mark.slow
def test_gpu_check_keeps_what_is_known_when_the_time_is_over(tmp_path):
    """Also what a part has written before it was stopped."""
    path = tmp_path / "gpu.json"
    words = ("--dry_run", "--parts=machine,peak", f"--json={path}")
    done = command("gpu_check", *words, "--minutes=0.05")
    last_line_of(done, status=1)
    parts = json.loads(path.read_text())["parts"]
    assert [*parts] == ["machine", "peak"]
    for part in parts.values():
        assert part["status"].startswith("out of time")


@pytest.mark.slow
def test_gpu_check_without_cifar_leaves_parts_out(tmp_path):
    path = tmp_path / "gpu.json"
    done = command("gpu_check", "--parts=accuracy,dtypes", f"--json={path}")
    assert last_line_of(done) == f"all figures: {path}"
    for part in json.loads(path.read_text())["parts"].values():
        assert part["status"].startswith("left out: give --data_dir")


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_f32f32_tf32f32_f32_nhwckrsc", "convolution"),
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize128x128x32", "matrix product"),
        ("void cudnn::ops::nchwToNhwcKernel<float, float>", "copy and layout"),
        ("loop_convert_fusion_3", "other fusion"),
        ("input_reduce_fusion", "reduction"),
        ("loop_gather_fusion", "gather and scatter"),
        ("wrapped_select_and_scatter", "pooling"),
    ],
)
def test_the_kind_of_a_kernel_follows_from_its_name(kernel, kind):
    assert kernels.kind_of(kernel) == kind


@pytest.mark.slow
def test_benchmark_of_a_net_of_flax_layers(tmp_path):
    sizes = ("--rounds=1", "--batch_size=16", "--train_images=64", "--eval_images=64")
    rows = tmp_path / "rows.json"
    line = last_line_of(
        command("benchmark", "--models=vit96", *sizes, f"--json={rows}")
    )
    assert "batch 16, 1 rounds" in line
    (row,) = json.loads(rows.read_text())["rows"]
    assert row["model"] == "vit96"
    assert row["gflops"] > 0


@pytest.mark.slow
@pytest.mark.skipif(not library.available(), reason="no kernels here")
def test_forms():
    words = ("--batch_size=16", "--rounds=1", "--steps=1")
    done = command("forms", *words)
    assert "batch 16, medians of 1 turns" in " ".join(done.stdout.split())
    assert last_line_of(done).endswith("jitted.")
    for form in ("linen", "nnx", "lax"):
        assert re.search(rf"{form}( +\d+\.\d+){{4}}", done.stdout)


@pytest.mark.slow
def test_lr_grid(tmp_path):
    words = ("--models=simplenet", "--dataset=shapes", "--train_size=256")
    places = (f"--workdir={tmp_path / 'grid'}", f"--data_dir={tmp_path}")
    done = command("lr_grid", *words, *places)
    assert "shapes, 256 training images" in done.stdout
    assert last_line_of(done).endswith("divided by that of training.")
    (record,) = (tmp_path / "grid").glob("*/lr_grid.json")
    grid = json.loads(record.read_text())
    assert grid["cost"] > 0
    assert len(grid["accuracies"]) == len(grid["rates"])
    assert_picture(record.parent / "lr_find.png")


@no_torch
@pytest.mark.slow
@pytest.mark.parametrize("how", [[], ["--half"], ["--muon"]])
def test_torch_airbench(tmp_path, how):
    arrays = archives.make_arrays(2)  # 10 training images
    path = archives.write_binary_archive(tmp_path / "few.tar.gz", arrays)
    words = (f"--data_archive={path}", f"--archive_sha256={archives.sha256(path)}")
    words = (*words, f"--data_dir={tmp_path}", "--eager", *how)
    done = command("torch_airbench", *words)
    line = last_line_of(done)
    assert line.startswith("mean ")
    assert "eager, compiled and tried in" in line
    assert "seed 0: " in done.stdout


def test_the_benchmark_of_an_installed_package_says_what_is_missing(tmp_path):
    """Without ``benchmarks``, which belongs to the source tree only."""
    for name in ("experiments", "cifar_flax"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "experiments.benchmark", "--models=all"],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the benchmark is not part of the installed package")
