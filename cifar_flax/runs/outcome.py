"""Makes the record of a run's result."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from cifar_flax import records
from cifar_flax.analysis.predictions import largest_class
from cifar_flax.analysis.statistics import ci95_of_mean
from cifar_flax.data.labelled import Labelled
from cifar_flax.models.summary import LayerRow
from cifar_flax.runs.environment import device_name
from cifar_flax.runs.subject import Subject
from cifar_flax.training.evaluation import Evaluation
from cifar_flax.training.trainer import Trainer


def describe_layers(rows: Iterable[LayerRow]) -> list[records.Layer]:
    """Returns the record of a model's layers."""
    return [
        records.Layer(
            path=row.path,
            kind=row.kind,
            output_shape=list(row.output_shape),
            num_params=row.num_params,
            flops=row.flops,
        )
        for row in rows
    ]


def outcome(
    subject: Subject,
    trainer: Trainer,
    config: records.Config,
    ends: tuple[np.ndarray, tuple[int | None, ...]],
    test: Evaluation,
    also: Mapping[str, Evaluation],
    seconds: float,
) -> records.Result:
    """Returns the content of ``result.json``.

    Args:
      subject: what was trained.
      trainer: the trainer that trained it.
      config: the content of ``config.json``.
      ends: number of steps of each replica, [R], and the step at which it diverged.
      test: of the last state on the test split.
      also: the same on the further test images of the subject.
      seconds: time spent on training.
    """
    # The last step may make parameters NaN after its loss was computed.
    steps, lost = ends
    pairs = zip(steps, lost, test.loss, strict=True)
    diverged_at = [
        int(step) if at is None and not np.isfinite(loss) else at
        for step, at, loss in pairs
    ]
    images = int(steps.sum()) * trainer.recipe.batch_size
    largest = largest_class(config.dataset.test_class_sizes)
    finished = test.accuracy[[at is None for at in diverged_at]]
    return records.Result(
        model=subject.name,
        dataset=subject.dataset.name,
        num_params=config.num_params,
        flops_per_image=config.flops_per_image,
        train_flops=trainer.train_flops,
        layers=describe_layers(trainer.layers),
        seeds=list(trainer.seeds),
        test_accuracy=[
            float(accuracy) if at is None else None
            for accuracy, at in zip(test.accuracy, diverged_at, strict=True)
        ],
        test_loss=test.loss.tolist(),
        test_accuracy_mean=float(finished.mean()) if len(finished) else None,
        test_accuracy_ci95=ci95_of_mean(finished),
        test_size=len(subject.splits.test),
        largest_class=None if largest is None else largest[1],
        epochs=trainer.recipe.epochs,
        steps=int(steps.max()),
        train_seconds=seconds,
        compile_seconds=trainer.compile_seconds,
        images_per_second=images / seconds,
        device=device_name(trainer.placement),
        diverged_at=diverged_at,
        status="finished" if None in diverged_at else "diverged",
        test_metrics=_metrics(test, diverged_at),
        also_test={
            name: _also_tested(subject.also_test[name], evaluation, diverged_at)
            for name, evaluation in also.items()
        },
    )


def _also_tested(
    labelled: Labelled, found: Evaluation, diverged_at: Sequence[int | None]
) -> records.AlsoTested:
    """Returns the record of further test images."""
    classes = found.logits.shape[-1]
    largest = largest_class(np.bincount(labelled.split.labels, minlength=classes))
    return records.AlsoTested(
        source=labelled.source,
        fingerprint=labelled.fingerprint,
        size=len(labelled.split),
        largest_class=None if largest is None else largest[1],
        accuracy=_of_finished(found.accuracy, diverged_at),
        loss=_of_finished(found.loss, diverged_at),
        metrics=_metrics(found, diverged_at),
        notes=list(labelled.notes),
    )


def _metrics(
    found: Evaluation, diverged_at: Sequence[int | None]
) -> dict[str, list[float | None]]:
    return {n: _of_finished(one, diverged_at) for n, one in found.metrics.items()}


def _of_finished(
    values: np.ndarray, diverged_at: Sequence[int | None]
) -> list[float | None]:
    """Returns the value of each seed; None if the seed has diverged or has none."""
    return [
        float(value) if at is None and np.isfinite(value) else None
        for value, at in zip(values, diverged_at, strict=True)
    ]
