"""Runs that are killed; ``python -m tests.kill --kills=100`` does it more often."""

import random

from tests import archives
from tests.kill import Undisturbed, disturb


def test_killed_runs_go_on_to_the_same_bits(tmp_path):
    flags = ["--model=convnet", "--lr=0.01", "--epochs=2", "--momentum=0.9"]
    flags += archives.tiny_data(tmp_path)
    undisturbed = Undisturbed.run(tmp_path / "undisturbed", flags)
    stages, ended = disturb(undisturbed, flags, kills=3, rng=random.Random(3))
    assert stages.total() == 3
    assert ended >= 1
