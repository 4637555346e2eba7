"""The examples of docs/bring-your-own.md run unchanged, on small data."""

import itertools
import pathlib
import re
import shlex

import numpy as np
import pytest
from PIL import Image

import cifar_flax
from cifar_flax.records import LogPoint
from cifar_flax.runs.settings import Settings
from tests import archives
from tests.conftest import make_split
from tests.forked import command

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "bring-your-own.md"
SPLITS = ("train", "val", "test")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with the files of the page and a picture."""
    folder = tmp_path_factory.mktemp("shelf")
    for _, text in BLOCKS:
        if name := re.match(r"# (\w+\.\w+)\n", text):
            text = text.replace('"runs/', f'"{folder}/runs/')
            (folder / name[1]).write_text(text)
    images = np.random.default_rng(0).integers(0, 256, (240, 9, 9), dtype=np.uint8)
    np.savez(folder / "arrays.npz", images=images, labels=np.arange(240) % 3)
    further = make_split(2, 30)
    np.savez(folder / "corrupt.npz", images=further.images, labels=further.labels)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "picture.png")
    for number, (split, label) in enumerate(itertools.product(SPLITS, "ab")):
        place = folder / "pictures" / split / label
        place.mkdir(parents=True)
        for name, image in enumerate(images[40 * number :][:40]):
            Image.fromarray(image).save(place / f"{name}.png")
    arrays = archives.make_arrays(200, kind=archives.CIFAR100)
    archives.write_binary_archive(folder / "cifar-100-binary.tar.gz", arrays)
    return folder


@pytest.mark.slow
def test_every_command_of_the_page_runs(shelf):
    """The commands run in the order of the page, in the folder."""
    data = archives.tiny_data(shelf)
    text = "\n".join(text for kind, text in BLOCKS if kind == "sh")
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line]
    assert len(lines) == 36
    for number, line in enumerate(lines):
        python, option, module, *words = shlex.split(line, comments=True)
        assert (python, option) == ("python", "-m")
        paths = r"(?<![\w/])(runs/\w+|pictures\b|[\w-]+\.(?:py|toml|png|npz|tar\.gz))"
        words = [re.sub(paths, rf"{shelf}/\1", word) for word in words]
        if module in ("experiments.run", "experiments.sweep"):
            own = any("--dataset" in word for word in words)
            words += [word for word in data if "size" not in word and not own]
            words += vouched(shelf) if "--data_archive" in line else []
            words += [] if own and "cifar100" not in line else ["--val_size=50"]
            words += ["--batch_size=30"]
            if not any("workdir" in word or "print" in word for word in words):
                words.append(f"--workdir={shelf}/runs/{number}")
        done = command(module.removeprefix("experiments."), *words)
        assert done.returncode == 0, (line, done.stderr)


def vouched(shelf):
    """Returns flags for the archive in the folder, which is not official."""
    checksum = archives.sha256(shelf / "cifar-100-binary.tar.gz")
    return [f"--archive_sha256={checksum}", f"--data_dir={shelf}"]


# The commands run the file that needs a finished run.
PROGRAMS = [
    text for kind, text in BLOCKS if kind == "python" and "# distil" not in text
]
OF_TWO_SEEDS = [
    text.replace("cf.Settings(", "cf.Settings(seeds=(0, 1), ")
    for text in PROGRAMS
    if "cf.Observer" in text
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", [*PROGRAMS, *OF_TWO_SEEDS], ids=lambda text: text[-40:]
)
def test_every_program_of_the_page_runs(shelf, monkeypatch, tmp_path, capsys, code):
    train, test = make_split(0, 700), make_split(1, 20)
    arrays = (train.images, train.labels, test.images, test.labels)
    names = [*"abcdefghij"]
    dataset = cifar_flax.make_dataset("cifar10", *arrays, names, source="a test")
    monkeypatch.setattr(Settings, "load_data", lambda self: dataset)
    monkeypatch.syspath_prepend(shelf)
    monkeypatch.chdir(tmp_path)
    if "import wandb" in code:
        pytest.importorskip("wandb", reason="wandb is no dependency; it is not here")
        monkeypatch.setenv("WANDB_MODE", "offline")
        for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
            monkeypatch.setenv(f"WANDB_{name}", str(tmp_path))
    code = code.replace("cf.Settings(", "cf.Settings(val_size=100, ")
    code = code.replace('val_size=100, model="simplenet", lr', 'model="simplenet", lr')
    exec(compile(code, str(PAGE), "exec"), {"__name__": "page"})
    assert ("print(" in code) == bool(capsys.readouterr().out)
    if "import wandb" in code:
        (logged,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
        for name in LogPoint.__struct_fields__:
            assert name.encode() in logged.read_bytes()
