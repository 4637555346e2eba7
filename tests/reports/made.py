"""Makes records of runs that never ran."""

import itertools

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.predictions import score
from cifar_flax.analysis.statistics import ci95_of_mean

CLASSES = ("cat", "dog", "<b>ship</b>")
COUNT = 200


def make_logits(rng, labels, accuracy):
    """Makes logits with a given accuracy and confidence."""
    logits = rng.normal(size=(len(labels), len(CLASSES))).astype(np.float32)
    right = np.arange(len(labels)) < round(accuracy * len(labels))
    wanted = np.where(right, labels, (labels + 1) % len(CLASSES))
    logits[np.arange(len(labels)), wanted] = logits.max(1) + rng.random(len(labels))
    return logits


def make_run(
    folder,
    model="convnet",
    accuracies=(0.7, 0.71),
    seeds=None,
    dataset="cifar10",
    version="0.1.0",
    diverged=(),
    val_accuracy=None,
    **settings,
):
    """Writes the folder of a finished run; returns it."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    seeds = list(range(len(accuracies))) if seeds is None else seeds
    labels = rng.integers(0, len(CLASSES), COUNT)
    pairs = zip(seeds, accuracies, strict=True)  # a seed has the same loss in any run
    logits = np.stack(
        [make_logits(np.random.default_rng(s), labels, a) for s, a in pairs]
    )
    logits[list(diverged)] = np.nan
    write_config(folder, model, seeds, dataset, version, settings)
    epochs = 2 if len(diverged) < len(seeds) else 1
    write_metrics(folder, len(seeds), epochs, val_accuracy, diverged)
    records.write_predictions(
        folder, logits, labels, seeds, np.zeros((1, 4, 4, 3), np.uint8), np.array([199])
    )
    correct = (logits.argmax(-1) == labels).mean(-1).tolist()
    correct = [None if n in diverged else one for n, one in enumerate(correct)]
    diverged_at = [15 if n in diverged else None for n in range(len(seeds))]
    losses = [score(one[None], labels).nll / COUNT for one in logits]
    write_result(folder, model, seeds, correct, diverged_at, losses)
    return folder


def write_config(folder, model, seeds, dataset, version, settings):
    """Writes ``config.json``."""
    phase = {"kind": "sgdr", "learning_rate": 0.1, "cycles": 2}
    records.write_config(
        folder,
        records.Config(
            kind="run",
            settings={"model": model, "seeds": seeds, "lr": 0.1, **settings},
            recipe={
                "phases": [{**phase, "cycle_len": 1, "cycle_mult": 1}],
                "batch_size": 256,
            },
            schedule=records.Schedule(
                epochs=[0.0, 0.5, 1.0, 1.5], rates=[0.1, 0.05, 0.1, 0.05]
            ),
            dataset=records.DatasetInfo(
                name=dataset,
                fingerprint=dataset,
                source="made up",
                class_names=list(CLASSES),
                image_shape=(4, 4, 3),
                mean=[0.5] * 3,
                std=[0.2] * 3,
                train_size=1000,
                val_size=100,
                test_size=COUNT,
            ),
            versions={"cifar-flax": version},
            command=[
                *("python", "-m", "experiments.run"),
                *(f"--model={model}", "--workdir=secret/place"),
            ],
        ),
    )


def write_metrics(folder, count, epochs, val_accuracy=None, diverged=()):
    """Writes ``metrics.jsonl`` for a number of seeds, of which some diverge."""
    records.cut_metrics(folder, 0)
    figures = [[0.6 + 0.1 * epoch] * count for epoch in range(epochs)]
    for figure, seed in itertools.product(figures[1:], diverged):
        figure[seed] = np.nan
    lines = [
        records.LogPoint(
            step=10 * epoch,
            epoch=epoch,
            learning_rate=0.1,
            train_loss=figure,
            train_accuracy=figure,
            val_loss=None,
            val_accuracy=None if val_accuracy is None else [val_accuracy] * count,
            images_per_second=100.0,
            seconds=1.0,
        )
        for epoch, figure in enumerate(figures, start=1)
    ]
    records.append_metrics(folder, lines)


def write_result(folder, model, seeds, correct, diverged_at, losses):
    """Writes ``result.json``."""
    finished = [one for one in correct if one is not None]
    records.write_result(
        folder,
        records.Result(
            model=model,
            dataset="made up",
            num_params=1000 * len(model),
            flops_per_image=1e6,
            seeds=seeds,
            test_accuracy=correct,
            test_loss=[
                loss if at is None else None
                for loss, at in zip(losses, diverged_at, strict=True)
            ],
            test_accuracy_mean=float(np.mean(finished)) if finished else None,
            test_accuracy_ci95=ci95_of_mean(finished),
            test_size=COUNT,
            epochs=2,
            steps=20,
            train_seconds=3.0,
            compile_seconds=1.0,
            images_per_second=100.0,
            device="cpu",
            diverged_at=diverged_at,
            status="finished" if None in diverged_at else "diverged",
        ),
    )
