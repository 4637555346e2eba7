"""Checkpoints of a run: the only module that knows Orbax.

A run keeps its latest checkpoint and, where there is a validation split, the one with
the best validation accuracy (mean over the replicas).
"""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from cifar_flax.errors import UserError
from cifar_flax.state import TrainState


class Checkpoints:
    """The checkpoints in one folder; made by ``open_checkpoints``."""

    def __init__(self, manager: ocp.CheckpointManager):
        """Wraps Orbax's manager."""
        self._manager = manager

    @property
    def latest_step(self) -> int | None:
        """Step of the latest checkpoint; None where there is none."""
        return self._manager.latest_step()

    @property
    def best_step(self) -> int | None:
        """Step of the one with the best validation accuracy; None without any."""
        return self._manager.best_step()

    def save(
        self,
        state: TrainState,
        *,
        seconds: float = 0.0,
        val_accuracy: float | None = None,
    ) -> None:
        """Saves in the background; what is in the folder is whole at any moment.

        Args:
          state: of all replicas, all at the same step. It is copied before this
            returns, so that training may go on and consume it.
          seconds: spent on training so far.
          val_accuracy: by which the best one is kept.
        """
        step = int(state.step[0])
        # np.array copies; on a CPU np.asarray would share memory with a buffer that
        # the next training call gives away.
        training, variables = jax.tree.map(np.array, _to_tree(state))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(variables),
                training=ocp.args.StandardSave(training),
                meta=ocp.args.JsonSave({"seconds": seconds}),
            ),
            metrics=None if val_accuracy is None else {"val_accuracy": val_accuracy},
        )

    def restore(
        self, template: TrainState, step: int | None = None
    ) -> tuple[TrainState, float]:
        """Reads a state and the seconds spent on training up to it.

        Args:
          template: a state of the same structure, as ``Trainer.init`` gives.
          step: of the checkpoint; None for the latest.

        Raises:
          UserError: no checkpoint, or one of another structure.
        """
        step = self.latest_step if step is None else step
        if step is None:
            raise UserError(f"no checkpoint in {self._manager.directory}")
        training, variables = _to_tree(template)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(variables),
                    training=ocp.args.StandardRestore(training),
                    meta=ocp.args.JsonRestore(),
                ),
            )
        except ValueError as error:
            raise UserError(
                f"the checkpoint of step {step} in {self._manager.directory} does not "
                f"fit this model: {str(error).splitlines()[0]}"
            ) from error
        state = _from_tree(restored["training"], restored["variables"])
        return state, restored["meta"]["seconds"]

    def restore_variables(self, template: Any, step: int) -> Any:
        """Reads only what evaluation needs.

        Args:
          template: of the same structure; its arrays may be abstract.
          step: of the checkpoint.

        Raises:
          UserError: it is damaged, or of another structure.
        """
        restore = ocp.args.StandardRestore(template)
        try:
            args = ocp.args.Composite(variables=restore)
            return self._manager.restore(step, args=args)["variables"]
        except (ValueError, OSError, KeyError) as error:
            raise UserError(
                f"cannot read the checkpoint of step {step} in "
                f"{self._manager.directory}: {str(error).splitlines()[0]}"
            ) from error


@contextlib.contextmanager
def open_checkpoints(
    folder: str | pathlib.Path, clean_up: bool = True
) -> Iterator[Checkpoints]:
    """Opens a folder for checkpoints, made where it is missing.

    Leaving the context waits until the last save is on disk.

    Args:
      folder: of the checkpoints.
      clean_up: remove what is left of saves that were cut short. Only for the process
        that has the run: to another one a save being made looks the same.
    """
    policies = checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics["val_accuracy"],
        preservation_policy=policies.AnyPreservationPolicy(
            [
                policies.LatestN(n=1),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["val_accuracy"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        ),
        cleanup_tmp_directories=clean_up,
    )
    logging.getLogger("absl").addFilter(_not_about_missing_metrics)
    absolute = pathlib.Path(folder).absolute()
    with ocp.CheckpointManager(absolute, options=options) as manager:
        yield Checkpoints(manager)


def _not_about_missing_metrics(record: logging.LogRecord) -> bool:
    """Drops Orbax's warning of a save without a metric.

    It is meant to be so: within an epoch, and where there is no validation split.
    """
    return "did not provide metrics" not in record.getMessage()


def _to_tree(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    """What only training needs, and what evaluation needs; keys as their raw words."""
    training = {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": jax.random.key_data(state.key),
        "totals": state.totals,
    }
    return training, state.variables


def _from_tree(training: dict[str, Any], variables: dict[str, Any]) -> TrainState:
    return TrainState(
        step=training["step"],
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=training["opt_state"],
        key=jax.random.wrap_key_data(training["key"]),
        totals=training["totals"],
    )
