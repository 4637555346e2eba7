"""The space of a search: what its file may hold, and how points are drawn from it."""

import collections
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from cifar_flax.errors import UserError
from cifar_flax.sweeps.space import key_of, make_space, read_space, with_values

MANY = 2_000


def draws(plain, count=MANY, seed=0):
    points = make_space(plain, "space.toml").draws(seed)
    return list(itertools.islice(points, count))


def test_ranges_have_the_distributions_of_their_formulas():
    """Kolmogorov and Smirnov's test; rounding to three digits is far below it."""
    plain = {
        "lr": {"log_uniform": [0.003, 0.3]},
        "label_smoothing": {"uniform": [0.05, 0.25]},
    }
    points = [point for seed in range(2) for point in draws(plain, 1_000, seed)]
    logs = np.log([point["lr"] for point in points])
    low, high = math.log(0.003), math.log(0.3)
    assert stats.kstest(logs, stats.uniform(low, high - low).cdf).pvalue > 0.01
    shares = [point["label_smoothing"] for point in points]
    assert stats.kstest(shares, stats.uniform(0.05, 0.2).cdf).pvalue > 0.01
    # Two settings of a trial are independent.
    assert abs(stats.spearmanr(logs, shares).statistic) < 3 / math.sqrt(MANY)


def test_integers_and_choices_are_drawn_equally_often():
    plain = {
        "padding": {"integers": [0, 4]},
        "optimizer": {"choices": ["sgd", "adamw", "lion"]},
        "lr": {"uniform": [0.1, 0.9]},
    }
    points = [point for seed in range(2) for point in draws(plain, 900, seed)]
    for name, values in (
        ("padding", range(5)),
        ("optimizer", ("sgd", "adamw", "lion")),
    ):
        counts = collections.Counter(point[name] for point in points)
        assert set(counts) == set(values)
        assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert all(type(point["padding"]) is int for point in points)


def test_logarithms_of_integers_are_uniform():
    plain = {"batch_size": {"log_integers": [16, 1023]}, "lr": {"uniform": [0.1, 0.9]}}
    points = [point for seed in range(2) for point in draws(plain, 900, seed)]
    sizes = [point["batch_size"] for point in points]
    octaves = collections.Counter(int(math.log2(size)) for size in sizes)
    assert set(octaves) == set(range(4, 10))
    assert stats.chisquare(list(octaves.values())).pvalue > 0.01


def test_values_have_three_digits_and_stay_in_their_range():
    plain = {
        "lr": {"log_uniform": [0.00312345, 0.3]},
        "ema": {"uniform": [0.99901, 0.99909]},
        "label_smoothing": {"uniform": [0, 0.2]},
    }
    points = draws(plain, 500)
    inner = {point["lr"] for point in points} - {0.00312345, 0.3}
    assert all(float(f"{value:.3g}") == value for value in inner)
    near = [point["ema"] for point in points]
    assert all(0.99901 <= value <= 0.99909 for value in near)
    assert len(set(near)) > 100
    assert all(0 <= point["label_smoothing"] <= 0.2 for point in points)


def test_a_seed_gives_the_same_points_whatever_else_is_searched():
    plain = {"lr": {"log_uniform": [0.003, 0.3]}}
    more = {**plain, "padding": {"integers": [0, 6]}}
    assert draws(plain, 20) == draws(plain, 30)[:20]
    assert [p["lr"] for p in draws(more, 20)] == [p["lr"] for p in draws(plain, 20)]
    assert draws(plain, 20, seed=1) != draws(plain, 20)
    # On every machine and with every version.
    assert [p["lr"] for p in draws(plain, 3)] == [0.007, 0.0655, 0.045]


def test_a_small_space_gives_each_point_once_and_then_says_so():
    plain = {
        "padding": {"integers": [0, 2]},
        "optimizer": {"choices": ["sgd", "adamw"]},
    }
    points = draws(plain, 6)
    assert len({key_of(point) for point in points}) == 6
    with pytest.raises(UserError, match="only about 6 different points"):
        draws(plain, 7)


def test_the_items_of_a_table_are_settings_of_their_own(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text("optimizer_args.b1 = {uniform = [0.8, 0.9]}\n")
    ((one),) = read_space(path).dimensions
    assert one.name == "optimizer_args.b1"
    given = with_values({"optimizer_args": {"b2": 0.99, "b1": 0.5}}, {one.name: 0.85})
    assert given == {"optimizer_args": {"b2": 0.99, "b1": 0.85}}
    whole = make_space({"optimizer_args": {"choices": [{"b1": 0.9}]}}, "s").dimensions
    assert whole[0].values == ({"b1": 0.9},)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "lr = {log_uniform"]),
        ("lr = ", ["is not a TOML file"]),
        ("lr = 0.1", ["lr is 0.1", "log_uniform", "choices"]),
        ("lr = {lognormal = [1, 2]}", ["lognormal", "one of log_uniform"]),
        ("lr = {uniform = [0.1, 0.2], choices = [1]}", ["lr is", "give one of"]),
        ("lr = {uniform = [0.2, 0.1]}", ["[0.2, 0.1]", "below the second"]),
        ("lr = {uniform = [0.2]}", ["give two numbers"]),
        ("lr = {uniform = 0.2}", ["give a list"]),
        ("lr = {uniform = [0.1, inf]}", ["give two numbers"]),
        ("lr = {uniform = [true, 2]}", ["give two numbers"]),
        ("lr = {log_uniform = [0, 0.1]}", ["above 0 for a logarithm"]),
        ("lr = {choices = []}", ["give a list"]),
        ("lr = {choices = [0.1, 0.1]}", ["a value twice"]),
        ("lr = {choices = [0.1, 'fast']}", ["--lr='fast'", "auto"]),
        ("lr = {choices = [2026-01-01]}", ["--lr='2026-01-01'"]),
        ("padding = {uniform = [0, 4]}", ["--padding=0.0", "a whole number"]),
        ("padding = {integers = [0, 4.5]}", ["two whole numbers"]),
        ("paddin = {integers = [0, 4]}", ["paddin is not a setting", "padding"]),
        ("model = {choices = ['convnet']}", ["model is not searched", "--model"]),
        ("seeds = {choices = [[1]]}", ["seeds is not searched", "--seeds"]),
        ("val_size = {integers = [10, 20]}", ["val_size is fixed in a search"]),
        ("optimizer_args = {}", ["names nothing to choose"]),
        ("a" * 2**21, ["more than"]),
    ],
)
def test_a_wrong_space_is_one_line(tmp_path, text, words):
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_space(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    for word in words:
        assert word in message


def test_a_missing_space_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot read --space=.*: No such file"):
        read_space(tmp_path / "none.toml")
    with pytest.raises(UserError, match="--space"):
        read_space(tmp_path)
