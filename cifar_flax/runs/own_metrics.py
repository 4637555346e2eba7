"""The metrics that settings name, and those that a program gives."""

import re
from collections.abc import Collection, Sequence

from cifar_flax.analysis.metrics import METRICS, Function, Metric
from cifar_flax.errors import UserError
from cifar_flax.own_code import OwnCode, is_own, label_of, load_code, whole_name

_TAKEN = ("accuracy", "loss")


def check_metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of metrics with absolute paths, without running their code.

    Raises:
      UserError: a name is unknown, or is there twice.
    """
    for name in names:
        if name not in METRICS and not is_own(name):
            raise UserError(
                f"--metrics={name}: give some of {', '.join(METRICS)}, or your own as "
                "FILE.py:NAME or MODULE:NAME"
            )
    own = [index for index, name in enumerate(names) if is_own(name)]
    _check_labels([label_of(name) for name in names], own)
    return tuple(whole_name(name) for name in names)


def load_metrics(
    given: Sequence[str | Function],
) -> tuple[list[Metric], list[OwnCode]]:
    """Returns metrics, and the code of those that are not named ones.

    Args:
      given: names, places of functions, whose code this runs, and functions.

    Raises:
      UserError: a name is unknown, the code cannot be loaded, or two metrics have the
        same name.
    """
    check_metric_names([one for one in given if isinstance(one, str)])
    own = {
        index: load_code(one, "metrics")
        for index, one in enumerate(given)
        if one not in METRICS
    }
    metrics = [
        Metric(label_of(own[index].name), own[index])
        if index in own
        else METRICS[str(one)]
        for index, one in enumerate(given)
    ]
    _check_labels([metric.name for metric in metrics], own)
    return metrics, list(own.values())


def _check_labels(labels: Sequence[str], own: Collection[int]) -> None:
    """Raises a UserError unless the names can be those of different columns.

    Args:
      labels: of all metrics.
      own: indices of those that are not named ones.
    """
    for index, label in enumerate(labels):
        is_name = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,39}", label)
        taken = label in _TAKEN or (index in own and label in METRICS)
        if not is_name or taken or label in labels[:index]:
            why = "names two" if label in labels[:index] else "cannot name a metric"
            raise UserError(
                f"metrics: {label!r} {why}; give the function another name, of "
                "letters, digits and _"
            )
