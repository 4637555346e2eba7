"""Runs that are killed; ``python -m tests.kill`` does it at many random moments."""

import random

import pytest

from cifar_flax import records
from tests import archives
from tests.kill import Undisturbed, finish, start

pytestmark = pytest.mark.slow


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    flags = ["--model=convnet", "--lr=0.01", "--epochs=2", "--momentum=0.9"]
    flags += archives.tiny_data(tmp_path)
    undisturbed = Undisturbed.run(tmp_path / "undisturbed", flags)
    folder = tmp_path / "killed"
    # At the end of the second epoch, so that the run continues from a checkpoint.
    number = undisturbed.operations.count(records.METRICS)
    assert not finish(start(folder, flags, f"{records.METRICS}:{number}"))
    assert len(records.read_metrics(folder)) == 1
    moment = random.Random(0).uniform(0, undisturbed.seconds)
    finish(start(folder, flags), after=moment)
    assert finish(start(folder, flags))
    undisturbed.compare(folder)
