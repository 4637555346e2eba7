"""A schedule of equal floating-point operations for every model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cifar_flax.data import Dataset
from cifar_flax.errors import UserError
from cifar_flax.runs.recipe_choice import AUTO
from cifar_flax.runs.settings import OF_DATA, Settings
from cifar_flax.runs.subject import Subject

# What the operations of an epoch depend on, besides the code of a model.
_DECIDING = ("model", "model_args", "recipe", "batch_size", *OF_DATA)


class FlopsBudget:
    """Gives each combination of settings one cosine cycle of the same operations.

    A step counts as three times the multiplications and additions of the forward pass,
    as ``train_flops`` in ``result.json`` does.
    """

    def __init__(self, flops: float):
        """Makes the budget of one seed's training."""
        self.flops = flops
        self._epoch: dict[str, tuple[int, int]] = {}  # operations and steps
        self._datasets: dict[str, Dataset] = {}

    def __call__(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns settings with the length of the cycle, in epochs with three digits.

        Raises:
          UserError: the budget is below one step, or the data cannot be loaded.
        """
        cycle = {"lr": AUTO, **given, "cycles": 1}
        flops, steps = self._of_epoch(Settings(**cycle))
        epochs = self.flops / flops
        if epochs * steps < 1:
            raise UserError(
                f"--budget_flops={self.flops:g} is below one step of "
                f"{given.get('model', 'the model')}, which takes {flops / steps:.3g}; "
                f"an epoch takes {flops:.3g}"
            )
        return {**cycle, "cycle_len": float(f"{epochs:.3g}")}

    def _of_epoch(self, settings: Settings) -> tuple[int, int]:
        key = repr([getattr(settings, name) for name in _DECIDING])
        if key not in self._epoch:
            source = repr([getattr(settings, name) for name in OF_DATA])
            if source not in self._datasets:
                self._datasets[source] = settings.load_data()
            alone = dataclasses.replace(settings, seeds=(settings.seeds[0],))
            subject = Subject.prepare(alone, dataset=self._datasets[source])
            trainer = subject.make_trainer()
            self._epoch[key] = trainer.train_flops, trainer.total_steps
        return self._epoch[key]
