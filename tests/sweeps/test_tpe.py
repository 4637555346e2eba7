"""Optuna's part in a search: it learns from results, and repeats itself."""

import math

import numpy as np
import pytest

from cifar_flax.errors import UserError
from cifar_flax.sweeps import tpe
from cifar_flax.sweeps.space import make_space

SPACE = make_space(
    {
        "lr": {"log_uniform": [0.003, 0.3]},
        "padding": {"integers": [0, 6]},
        "batch_size": {"log_integers": [16, 512]},
        "label_smoothing": {"uniform": [0, 0.2]},
        "optimizer_args": {"choices": [{"b1": 0.9}, {"b1": 0.8}]},
    },
    "space.toml",
)


def error(values):
    return abs(math.log10(values["lr"] / 0.03))


def tried(values):
    value = 0.9 - 0.2 * error(values)
    return tpe.Tried(values, [value / 2, value], value)


FIRST = [tried(values) for values, _ in zip(SPACE.draws(0), range(20), strict=False)]


def test_proposals_are_points_of_the_space_and_depend_on_their_key():
    for key in ("a", "b"):
        found = tpe.propose(SPACE, FIRST, key)
        assert 0.003 <= found["lr"] <= 0.3
        assert float(f"{found['lr']:.3g}") == found["lr"]
        assert type(found["padding"]) is type(found["batch_size"]) is int
        assert found["optimizer_args"] in ({"b1": 0.9}, {"b1": 0.8})
        assert found == tpe.propose(SPACE, FIRST, key)
    assert tpe.propose(SPACE, FIRST, "a") != tpe.propose(SPACE, FIRST, "b")


def test_proposals_are_nearer_to_the_best_than_draws():
    errors = [error(tpe.propose(SPACE, FIRST, f"{n}")) for n in range(30)]
    drawn = [error(v) for v, _ in zip(SPACE.draws(1), range(300), strict=False)]
    assert np.mean(errors) < 0.7 * np.mean(drawn)


def test_a_running_trial_keeps_others_away():
    """Several proposals at a time do not all try the same."""
    first = tpe.propose(SPACE, FIRST, "a")
    running = [*FIRST, *[tpe.Tried(first, [])] * 10]
    assert tpe.propose(SPACE, running, "a") != first


@pytest.mark.parametrize(
    ("reached", "behind"),
    [
        ([0.01], False),  # the first epoch is not judged
        ([0.01, 0.02], True),
        ([0.01, 0.99], False),
        ([0.99, 0.02], False),  # the best epoch so far counts
        ([0.01, 0.02, 0.02], False),  # no other trial has so many
    ],
)
def test_a_trial_is_behind_below_the_median_of_the_finished_ones(reached, behind):
    every = [*FIRST, tpe.Tried(FIRST[0].values, reached)]
    assert tpe.falls_behind(SPACE, every, len(FIRST)) == behind
    few = [*FIRST[:4], every[-1]]
    assert not tpe.falls_behind(SPACE, few, 4)


def test_the_median_is_that_of_finished_trials():
    halves = [one.reached[1] for one in FIRST]
    for share, behind in ((0.999, True), (1.001, False)):
        reached = [0.0, share * float(np.median(halves))]
        every = [*FIRST, tpe.Tried(FIRST[0].values, reached)]
        pruned = tpe.Tried(FIRST[0].values, [0.0, 0.0], is_pruned=True)
        for more in ([], [pruned] * 30):
            found = tpe.falls_behind(SPACE, [*every, *more], len(FIRST))
            assert found == behind


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--prune needs Optuna.*'cifar-flax\[search\]'"
    ):
        tpe.check_optuna("--prune")
