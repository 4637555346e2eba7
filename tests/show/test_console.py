"""What a run prints."""

import io
import types

import numpy as np
import rich.console

from cifar_flax import records
from cifar_flax.show.console import ConsoleDisplay
from cifar_flax.training.phases import Sgdr
from cifar_flax.training.recipes import Recipe


def test_an_epoch_shows_its_highest_rate_and_not_that_of_its_last_step():
    recipe = Recipe((Sgdr(0.1, cycles=3),))
    trainer = types.SimpleNamespace(
        rates=lambda steps: np.array([*map(recipe.schedule(50), range(steps))]),
        steps_per_epoch=50,
        recipe=recipe,
    )
    plan = types.SimpleNamespace(kind="run", trainer=trainer, step=0, total_steps=150)
    plan.config = types.SimpleNamespace(kind="lr_find")  # prints no header
    file = io.StringIO()
    display = ConsoleDisplay(rich.console.Console(file=file, width=200))
    display.started(plan)
    for epoch in (1, 2, 3):
        line = records.LogPoint(
            step=50 * epoch,
            epoch=epoch,
            learning_rate=float(recipe.schedule(50)(50 * epoch - 1)),
            train_loss=[1.0],
            train_accuracy=[0.5],
            val_loss=None,
            val_accuracy=None,
            images_per_second=1.0,
            seconds=1.0,
        )
        assert line.learning_rate < 0.001
        display.epoch_done(line, None)
    lines = file.getvalue().splitlines()
    assert [line.split()[2:4] for line in lines] == [["rate", "0.1"]] * 3
