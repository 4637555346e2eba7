"""Prints checksums of tiny runs of every model, to compare two revisions.

    python -m tests.digests > before.json      # at one revision
    python -m tests.digests > after.json       # at the other, on the same machine
    diff before.json after.json

It uses only the commands and their files, so that any two revisions can
be compared. The bits depend on the processor and on the versions of the libraries, so
the repository holds no checksums.
"""

import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]

MODELS = (
    *("simplenet", "convnet", "convnet2", "convbn", "convbn2"),
    *("resnet", "resnet2"),
)

# Fields that may differ between runs.
TIMES = ("seconds", "train_seconds", "compile_seconds", "images_per_second")

SGDR = ["--lr=0.01", "--cycles=2", "--cycle_mult=2", "--seeds=3,5"]
RUNS = {
    **{model: [f"--model={model}", *SGDR] for model in MODELS},
    "lesson": ["--model=convnet", "--nesterov", "--weight_decay=1e-4"],
    "smoothing": [
        *("--model=convbn", "--lr=0.02", "--epochs=2", "--label_smoothing=0.1"),
        *("--bn_momentum=0.5", "--padding=2", "--padding_mode=reflect", "--noflip"),
    ],
    "bfloat16": ["--model=convbn", "--dtype=bfloat16", "--lr=0.01", "--epochs=1"],
    "auto": [
        *("--model=simplenet", "--lr=auto", "--epochs=1", "--dataset=shapes"),
        *("--train_size=600", "--batch_size=100"),
    ],
}


def digest(parts: list[bytes]) -> str:
    """Returns the checksum of a sequence of texts or arrays."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def of_json(text: str) -> str:
    """Returns one record without its times, with numbers in a fixed format."""
    record = json.loads(text)
    kept = {name: value for name, value in record.items() if name not in TIMES}
    return json.dumps(kept, sort_keys=True)


def of_checkpoint(folder: pathlib.Path) -> str:
    """Returns the checksum of the arrays of the latest checkpoint."""
    import jax
    import orbax.checkpoint as ocp

    steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    parts = []
    with ocp.StandardCheckpointer() as reader:
        for name in ("training", "variables"):
            tree = reader.restore(folder.absolute() / str(max(steps)) / name)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                parts.append(jax.tree_util.keystr(path).encode())
                parts.append(np.asarray(leaf).tobytes())
    return digest(parts)


def of_run(folder: pathlib.Path) -> dict[str, str]:
    """Returns the checksums of all results of training in a run's folder."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    numbers = {
        name: result[name]
        for name in ("test_accuracy", "test_loss", "steps", "diverged_at", "status")
    }
    with np.load(folder / "predictions.npz") as predictions:
        arrays = [
            predictions[name].tobytes()
            for name in sorted(predictions.files)
            if name != "run"
        ]
    found = {
        "metrics": digest([of_json(line).encode() for line in lines]),
        "result": digest([json.dumps(numbers).encode()]),
        "predictions": digest(arrays),
        "state": of_checkpoint(folder / "checkpoints"),
    }
    if (folder / "lr_find.json").exists():
        record = json.loads((folder / "lr_find.json").read_text())
        curves = [record["rates"], record["losses"], record["suggested_lr"]]
        found["range_test"] = digest([json.dumps(curves).encode()])
    return found


def main() -> None:
    """Prints the checksums of each run as JSON."""
    from tests import archives

    found = {}
    with tempfile.TemporaryDirectory() as name:
        data = archives.tiny_data(pathlib.Path(name))
        for run, flags in RUNS.items():
            folder = pathlib.Path(name) / run
            given = data[2:3] if "--dataset=shapes" in flags else data
            subprocess.run(
                [
                    *(sys.executable, "-m", "experiments.run", *given, *flags),
                    f"--workdir={folder}",
                ],
                stdout=subprocess.DEVNULL,
                check=True,
                cwd=ROOT,
            )
            found[run] = of_run(folder)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
