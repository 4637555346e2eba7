"""A wrong flag always ends with one line that names it.

The flags are those that the commands define.
"""

import functools
import json
import math
import os
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from cifar_flax.definitions import without_none
from cifar_flax.errors import UserError
from cifar_flax.runs.recorded_settings import SETTINGS
from cifar_flax.runs.setting_values import choices_of, parse_value
from cifar_flax.runs.settings import Settings
from tests import archives, forked

MISSING = "/dev/null/missing"

# A path that makes a correct command fail late, with this path in its error.
BACKSTOP = {
    "run": [f"--data_archive={MISSING}"],
    "lr_find": [f"--data_archive={MISSING}"],
    "sweep": ["--nodry_run", f"--data_archive={MISSING}"],
    "report": [f"--runs={MISSING}"],
    "predict": [f"--run={MISSING}", MISSING],
    "export": [f"--run={MISSING}", "--format=stablehlo"],
    "lr_grid": [f"--data_archive={MISSING}"],
    "summary": [],  # needs no data, and takes no time
    "prepare_data": [f"--data_archive={MISSING}"],
    "benchmark": [f"--json={MISSING}"],
}

# Alone or together these are valid for some flags, and wrong for many.
TEXTS = [
    *("", " ", "0", "1", "-1", "3", "-0.0", "0.5", "0.1", str(10**9), str(10**30)),
    *("2147483647", "2147483648", "1e5", "1_000", "0x10", "٣", "nan", "inf", "-inf"),
    *("1e400", "1e39", "5e-324", "1e-40", "0.99999999999", "9" * 5000, "x" * 100_000),
    *(
        "a\nb",
        "a\x00b",
        "a\u2028b",
        "..",
        "/",
        "/dev/null",
        "a" * 300,
        "~no_such/a",
    ),
    *("\udcff", "😀", ",", "1,,2", "1,1", "0,1,2", ",".join("0123456789" * 3), '"'),
    *("all", "all,convbn", "convbn", "auto", "true", "True", "none", "%s", "[red]"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with forked.server(tmp_path_factory.mktemp("flags")) as run:
        yield run


@pytest.fixture(scope="module")
def flags_of(run):
    """Returns the flags of a module by name, with their types and choices."""

    @functools.cache
    def flags_of(module):
        found = {}
        document = ElementTree.fromstring(run(module, "--helpxml").stdout)
        for flag in document.iter("flag"):
            name = flag.findtext("name")
            if flag.findtext("key") == "yes" and name != "debug":
                choices = tuple(value.text for value in flag.iter("enum_value"))
                found[name] = (flag.findtext("type"), choices)
        assert found
        return found

    return flags_of


# Settings that are recorded as absolute paths.
PATHS = ("data_dir", "data_archive")


def one_line(done):
    """Returns the single line of a command's error."""
    assert done.returncode in (1, 2), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "internal error" not in line
    assert done.stdout == ""
    return line


@pytest.mark.slow
@pytest.mark.parametrize("command", BACKSTOP)
@given(data=st.data())
def test_any_flags_end_with_one_line_that_names_one(run, flags_of, command, data):
    module = forked.module_of(command)
    known = flags_of(module)
    names = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=4))
    texts = [data.draw(st.sampled_from([*known[name][1], *TEXTS])) for name in names]
    words = [f"--{name}={text}" for name, text in zip(names, texts, strict=True)]
    done = run(module, *words, *BACKSTOP[command])
    if command == "summary" and done.returncode == 0:
        assert done.stderr == ""
        return
    line = one_line(done)
    assert MISSING in line or any(name in line for name in names)


@pytest.mark.parametrize("command", BACKSTOP)
def test_right_flags_go_as_far_as_what_is_missing(run, command):
    if command == "summary":
        assert run("experiments.summary", "--num_classes=7").returncode == 0
        return
    line = one_line(run(forked.module_of(command), *BACKSTOP[command]))
    assert MISSING in line


# For each type of flag: a usual value, and the value of a text.
MEANINGS = {
    "int": (st.integers(1, 40).map(str), int),
    "float": (st.floats(1e-30, 0.99).map(repr), float),
    "bool": (st.sampled_from(["true", "false"]), lambda text: text == "true"),
    "string enum": (None, str),
    "string": (st.sampled_from(["auto", "0.25", "a" * 64]), str),
    "comma separated list of numbers": (
        st.lists(st.integers(-9, 9), min_size=1, max_size=3).map(
            lambda seeds: ",".join(map(str, seeds))
        ),
        lambda text: [int(seed) for seed in text.split(",")],
    ),
}


@given(data=st.data())
def test_a_run_takes_what_it_accepts_as_it_was_given(run, flags_of, data):
    module = "tests.settings_given"
    known = flags_of(module)
    names = data.draw(st.sets(st.sampled_from(sorted(known)), min_size=1, max_size=3))
    texts = {}
    for name in sorted(names):
        kind, choices = known[name]
        usual, _ = MEANINGS[kind]
        texts[name] = data.draw(st.sampled_from(choices) if choices else usual)
    done = run(module, *(f"--{name}={text}" for name, text in texts.items()))
    if done.returncode == 2:
        assert any(name in one_line(done) for name in names)
        event("refused")
        return
    event("accepted")
    accepted = json.loads(done.stdout)
    assert done.stderr == ""
    for name, text in texts.items():
        meant = MEANINGS[known[name][0]][1](text)
        if name == "lr" and text != "auto":
            meant = float(text)
        if name in PATHS:
            meant = os.path.join(os.path.dirname(accepted[name]), text)
        assert accepted[name] == meant


# Modules whose flags need no process.
more = settings(max_examples=10 * settings().max_examples)


@more
@given(name=st.sampled_from(sorted(SETTINGS)), text=st.sampled_from(TEXTS) | st.text())
def test_a_sweep_takes_what_it_accepts_as_it_was_given(name, text):
    try:
        value = parse_value(SETTINGS[name], text)
    except ValueError as error:
        assert str(error).startswith("give ")  # noqa: PT017
        return
    if isinstance(value, bool):
        assert value is (text.lower() in ("true", "1"))
    elif isinstance(value, float) and math.isnan(value):
        assert math.isnan(float(text))
    elif isinstance(value, dict):
        assert value == parse_value(SETTINGS[name], json.dumps(value))
    elif isinstance(value, tuple) and name == "metrics":
        assert value == tuple(text.split(","))
    elif isinstance(value, tuple):
        assert value == tuple(map(int, text.split(",")))
    else:
        assert value == type(value)(text)


def values_of(name):
    """Returns arbitrary Python values of a setting."""
    kind = without_none(SETTINGS[name].kind)
    if choices_of(SETTINGS[name]):
        return st.sampled_from(choices_of(SETTINGS[name]))
    if name == "seeds":
        return st.lists(st.integers(), max_size=3).map(tuple)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(-2, 40) | st.integers()
    if kind is float or name == "lr":
        return st.floats(0, 1) | st.floats()
    return st.sampled_from(TEXTS)


any_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


@more
@given(
    st.sampled_from([{}, {"lr": 0.1, "epochs": 2}, {"lr": 0.1, "cycles": 3}]),
    st.fixed_dictionaries(
        {}, optional={n: values_of(n) | any_values for n in SETTINGS}
    ),
)
def test_any_settings_are_refused_or_make_a_recipe_that_can_be_trained(start, changes):
    try:
        config = Settings(**{**start, **changes})
    except UserError:
        return
    recipe = config.make_recipe()
    assert 1 <= recipe.epochs < 2**31
    assert len(str(recipe)) < 20_000
    numbers = [phase.learning_rate for phase in recipe.phases]
    numbers += [recipe.momentum, recipe.weight_decay, recipe.label_smoothing]
    norm = [config.bn_epsilon, config.bn_momentum]
    for number in [*numbers, *(x for x in norm if x is not None)]:
        assert np.isfinite(np.float32(number))
        assert np.float32(number) == pytest.approx(number, rel=1e-6)
    assert all(-(2**31) <= seed < 2**31 for seed in config.seeds)


LONG = "a" * 300
MANY = ",".join(map(str, range(1, 101)))


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        # Words.
        ("run --modle=convbn", 2, ["modle", "model"]),
        ("run --model=lenet", 2, ["--model=lenet", "convbn2"]),
        ("run convbn", 2, ["'convbn' is not a flag"]),
        ("run --stderrthreshold=x", 2, ["x"]),
        # Seeds.
        ("run --seeds=", 2, ["--seeds=", "0,1,2"]),
        ("run --seeds=1,,2", 2, ["--seeds=1,,2"]),
        ("run --seeds=1,x", 2, ["--seeds=1,x"]),
        ("run --seeds=1,1", 2, ["--seeds=1,1", "different"]),
        ("run --seeds=2147483648", 2, ["--seeds=2147483648", "2147483647"]),
        ("sweep --seeds=-2147483649", 2, ["--seeds=-2147483649"]),
        # Data and augmentation.
        ("run --padding=1000000000", 2, ["padding is 1000000000", "0 to 32"]),
        ("prepare_data --padding=33", 2, ["padding is 33", "0 to 32"]),
        ("run --val_size=-1", 2, ["--val_size=-1", "0 or more"]),
        ("run --seeds_vary=both", 2, ["--seeds_vary=both", "split, rate"]),
        ("run --seeds=0,1 --seeds_vary=split", 2, ["=split", "experiments.sweep"]),
        ("run --seeds_vary=rate --lr=0.1", 2, ["--seeds_vary=rate", "--lr=auto"]),
        ("run --seeds_vary=split --val_size=0", 2, ["=split", "--val_size=0"]),
        ("run --lr=0.1 --lr_check=false", 2, ["--lr_check=false", "--lr=auto"]),
        ("run --train_size=0", 2, ["--train_size=0", "1 or more"]),
        ("lr_grid --train_size=0", 2, ["--train_size=0"]),
        ("run --dataset=../x", 2, ["dataset is '../x'"]),
        ("lr_grid --dataset=X", 2, ["dataset is 'X'"]),
        ("run --data_archive=", 2, ["--data_archive=", "non-empty"]),
        ("run --data_archive=~no_such/a", 2, ["~no_such/a", "whole path"]),
        (f"run --data_archive={LONG}", 1, [LONG, "too long"]),
        (
            "run --data_dir=~no_such --dataset=cifar10",
            2,
            ["~no_such", "whole path"],
        ),
        ("run --data_dir=/dev/null --dataset=cifar10", 1, ["/dev/null"]),
        ("run --archive_sha256=0", 2, ["archive_sha256='0'", "64 hex digits"]),
        # Recipe.
        ("run --cycles=3", 2, ["--cycles needs --lr"]),
        ("run --model=convnet --phases=3", 2, ["--phases=3", "convnet has 2"]),
        ("run --lr=fast", 2, ["--lr=fast", "auto"]),
        ("run --lr=nan", 2, ["--lr=nan"]),
        ("run --lr=1e400", 2, ["--lr=1e400"]),
        ("run --lr=1e39", 2, ["--lr=1e+39", "3.4e+38"]),
        ("run --lr=5e-324", 2, ["--lr=5e-324", "1.2e-38"]),
        ("run --lr=1 --epochs=2147483648", 2, ["epochs is 2147483648", "2147483647"]),
        ("run --lr=1 --cycles=1000000000", 2, ["cycles is 1000000000", "1000"]),
        ("run --lr=1 --cycles=2 --cycle_len=0", 2, ["cycle_len is 0"]),
        ("run --lr=1 --cycles=999 --cycle_mult=999", 2, ["cycle_mult=999", "lower"]),
        ("run --phases=-1", 2, ["--phases=-1", "has 2"]),
        ("run --batch_size=0", 2, ["batch_size is 0"]),
        ("run --momentum=1", 2, ["momentum is 1"]),
        ("run --momentum=0.99999999999", 2, ["momentum is 0.99999999999"]),
        ("run --weight_decay=inf", 2, ["weight_decay is inf"]),
        ("run --label_smoothing=nan", 2, ["label_smoothing is nan"]),
        ("run --bn_epsilon=inf", 2, ["--bn_epsilon=inf"]),
        ("run --bn_epsilon=1e-46", 2, ["--bn_epsilon=1e-46"]),
        ("run --bn_momentum=nan", 2, ["--bn_momentum=nan"]),
        # The range test.
        ("lr_find --num_steps=1000000000", 2, ["num_steps is 1000000000"]),
        ("lr_find --num_steps=19", 2, ["num_steps is 19", "20 or more"]),
        ("lr_find --start_lr=1 --end_lr=1", 2, ["start_lr is 1 and end_lr 1"]),
        ("lr_find --start_lr=nan", 2, ["start_lr is nan"]),
        ("lr_find --start_lr=1e-40", 2, ["start_lr is 1e-40", "1e-30"]),
        ("lr_find --end_lr=1e39", 2, ["end_lr 1e+39", "3.4e+38"]),
        ("lr_find --start_lr=1e-29 --end_lr=1e9", 2, ["factor of 1e+30"]),
        # Folders.
        ("run --workdir=", 2, ["--workdir=", "non-empty"]),
        ("run --workdir=a\nb", 2, ["--workdir=a b", "printable"]),
        ("run --workdir=a\x00b", 2, ["--workdir=a", "printable"]),
        ("run --resume", 2, ["--resume needs --workdir"]),
        ("run --resume --workdir=/dev/null", 1, ["/dev/null/config.json"]),
        (f"run --resume --workdir={LONG}", 1, [LONG]),
        ("sweep --workdir=/dev/null", 1, ["/dev/null"]),
        (f"sweep --workdir={LONG}", 1, [LONG]),
        ("report --runs=", 2, ["--runs=", "non-empty"]),
        (f"report --runs={LONG}", 1, [LONG]),
        ("report --output=", 2, ["--output="]),
        (f"predict --run={LONG} picture.png", 1, ["picture.png"]),
        (f"predict --run=/dev/null {LONG}", 1, [LONG]),
        ("predict .", 2, ["--run"]),
        # Lists.
        ("sweep --dataset=", 2, ["--dataset=", "one or more values"]),
        ("sweep --lr=0.1,,0.2", 2, ["--lr="]),
        ("sweep --model=all,convnet", 2, ["--model=all"]),
        ("sweep --lr=0.1,0.1", 2, ["--lr=0.1,0.1", "appears twice"]),
        ("sweep --lr=0.1,0.10", 2, ["--lr", "appear twice"]),
        ("sweep --bn_epsilon=auto", 2, ["--bn_epsilon=auto"]),
        ("sweep --flip --dry_run", 2, ["--flip=--dry_run", "true or false"]),
        (f"sweep --padding={MANY} --batch_size={MANY}", 2, ["70000 ", "at most"]),
        ("sweep --budget_epochs=0", 2, ["--budget_epochs=0"]),
        ("sweep --budget_epochs=2147483648", 2, ["--budget_epochs=2147483648"]),
        ("benchmark --models=", 2, ["--models=", "one or more"]),
        ("benchmark --models=convnet,convnet", 2, ["different"]),
        ("benchmark --models=strangers,vit96", 2, ["different"]),
        ("benchmark --models=strangr", 2, ["=strangr:", "vit", "strangers"]),
        ("lr_grid --models=all,convnet", 2, ["--models=all"]),
        # What is written, and the rest.
        ("benchmark --json=", 2, ["--json="]),
        (f"benchmark --json={LONG}", 1, ["--json=", "too long"]),
        ("benchmark --json=/dev/null", 1, ["--json=/dev/null"]),
        ("benchmark --json=/", 1, ["--json=/"]),
        ("benchmark --batch_size=50001", 2, ["--batch_size=50001"]),
        ("benchmark --rounds=0", 2, ["--rounds=0"]),
        ("gpu_check --parts=", 2, ["--parts=", "some of machine, steps"]),
        ("gpu_check --parts=steps,peek", 2, ["=steps,peek:", "peak"]),
        ("gpu_check --minutes=0", 2, ["--minutes=0"]),
        ("prepare_data --picture=x.xyz", 2, ["--picture=x.xyz", ".png"]),
        ("prepare_data --picture=x", 2, ["--picture=x", ".png"]),
        ("predict --top=0", 2, ["--top=0"]),
        ("export --format=stablehlo", 2, ["--run"]),
        ("export --run=/dev/null", 2, ["--format"]),
        ("export --run=/dev/null --format=onnx", 2, ["onnx", "safetensors"]),
        ("export --run=/dev/null --format=stablehlo", 1, ["/dev/null/config.json"]),
        ("export --images=0", 2, ["--images=0"]),
        ("summary --num_classes=0", 2, ["--num_classes=0"]),
    ],
)
def test_a_wrong_flag_is_named(run, line, status, words):
    command, *given_flags = line.split(" ")
    done = run(forked.module_of(command), *given_flags)
    assert done.returncode == status, done.stderr
    for word in words:
        assert word in one_line(done)


@pytest.mark.parametrize(
    "workdir",
    [
        LONG,
        *(
            pytest.param(f"/dev/null{end}", marks=pytest.mark.slow)
            for end in ("", "/a")
        ),
    ],
)
def test_a_folder_that_cannot_be_made_is_named(run, tmp_path, workdir):
    path = archives.write_binary_archive(
        tmp_path / "cifar-10-binary.tar.gz", archives.make_arrays(20)
    )
    done = run(
        "experiments.run",
        f"--data_archive={path}",
        f"--archive_sha256={archives.sha256(path)}",
        f"--data_dir={tmp_path}",
        "--val_size=0",
        "--batch_size=10",
        f"--workdir={workdir}",
    )
    assert done.returncode == 1
    # The path is shown whole, as it is from the current folder.
    assert re.search(f"cannot make the folder (/.*/)?{workdir}", one_line(done))
