"""Studies that add seeds until it is shown which entry is the best."""

import json
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from cifar_flax import records
from cifar_flax.analysis.sequential import planned_looks
from cifar_flax.errors import UserError
from cifar_flax.reports.looks import JOURNAL, PLAN
from cifar_flax.reports.studies import read_studies
from cifar_flax.sweeps.cells import make_cells
from cifar_flax.sweeps.until_shown import Study, conclusion, decide, plan_of_study
from tests import archives
from tests.forked import command
from tests.reports.made import make_run
from tests.test_commands import ROOT, assert_one_line_error
from tests.test_surroundings import wait_for

LOOKS = planned_looks(30)
SEEDS = list(range(30))


def entries(*gaps, seed=0, count=30, deviation=0.01):
    """Draws the accuracies of entries that are some deviations apart."""
    rng = np.random.default_rng(seed)
    values = 0.7 + deviation * (rng.normal(size=(len(gaps), count)) + np.c_[list(gaps)])
    return [dict(enumerate(map(float, one))) for one in values]


def follow(*gaps, margin=None, **given):
    return decide(entries(*gaps, **given), LOOKS, SEEDS, 10_000, margin)


def test_a_study_ends_as_soon_as_the_best_is_shown():
    found = follow(0, 3)
    assert (found.count, found.front, found.needed) == (10, [1], None)
    assert found.pairs[0, 1].shown
    assert found.pairs[0, 1].looks == 2
    assert "beats" in conclusion(found, ["a", "b"])[0]
    equal = follow(0, 0, seed=2)
    assert (equal.count, equal.needed) == (30, None)
    assert len(equal.front) == 2
    (text,) = conclusion(equal, ["a", "b"])
    below = 100 * (abs(equal.pairs[0, 1].mean) + equal.pairs[0, 1].half_width)
    assert f"not shown with 30 seeds; the difference is below {below:.1f}" in text


def test_only_entries_whose_order_is_open_get_more_seeds():
    every = entries(0, 0.1, 8, 8.2)
    some = [{s: v for s, v in one.items() if s < 10} for one in every]
    found = decide(some, LOOKS, SEEDS, 10_000)
    assert (found.count, found.needed) == (10, 15)
    assert sorted(found.front) == [2, 3]
    assert set(found.left) == {0, 1}
    some[2:] = every[2:]  # seeds of the others are not asked for
    assert decide(some, LOOKS, SEEDS, 10_000).count > 10
    # Seeds that nobody asked for yet change nothing.
    assert decide(every, LOOKS, SEEDS, 10_000) == decide(some, LOOKS, SEEDS, 10_000)
    before = decide([{} for _ in every], LOOKS, SEEDS)
    assert (before.count, before.needed, before.front) == (0, 5, [0, 1, 2, 3])


def test_an_entry_that_is_behind_is_dropped_and_this_is_said():
    found = follow(0, 0, -0.8, seed=28)
    reasons = [why for why in found.left.values() if "points behind" in why]
    assert "less than one of 100 studies" in reasons[0]
    texts = conclusion(found, ["a", "b", "c"])
    assert any(re.match(r"c got no more seeds: it is .* behind", t) for t in texts)
    # What is far behind stays until this is shown, and so do the last two entries.
    assert not any("behind" in why for why in follow(0, 0, -1.3).left.values())
    for seed in range(20):
        found = follow(0, -1, seed=seed)
        assert set(found.left) <= {1}
        assert len(found.left) == found.pairs[0, 1].shown


def test_a_diverged_seed_takes_its_entry_out():
    values = entries(0, 0, 5)
    values[2][7] = float("nan")
    found = decide(values, LOOKS, SEEDS, 10_000)
    assert "diverged" in found.left[2]
    assert set(found.pairs) == {(0, 1)}
    assert any("c got no more seeds: a seed div" in t for t in conclusion(found, "abc"))
    for one in values:
        one[0] = float("nan")
    none = decide(values, LOOKS, SEEDS)
    assert (none.front, none.pairs, none.needed) == ([], {}, None)
    assert len(conclusion(none, "abc")) == 3


def test_a_margin_ends_a_study_of_equals():
    found = follow(0, 0, margin=0.02, seed=2)
    assert found.needed is None
    assert found.count < 30
    assert len(found.front) == 2
    (text,) = conclusion(found, ["a", "b"], 0.02)
    assert re.match(r"[ab] and [ab] are the same within 2.0 points \(p [=<] ", text)
    found = follow(0, 4, margin=0.1)  # both different and the same
    texts = conclusion(found, ["a", "b"], 0.1)
    assert "b beats a" in texts[0]
    assert "within 10.0 points" in texts[0]
    false = sum(follow(0, 1, margin=0.01, seed=n).same[0, 1] < 0.05 for n in range(100))
    assert false <= 8


def test_a_false_verdict_is_rare_and_a_true_one_is_not():
    """A short version of ``tests.reports.simulate``, with its very code."""
    shown = [follow(0, 0, seed=n).pairs[0, 1].shown for n in range(150)]
    assert sum(shown) <= 14  # 7.5 expected at most, 14 with 99 %
    ends = [follow(0, 2**0.5, seed=n) for n in range(60)]  # 1 deviation of a difference
    assert sum(one.pairs[0, 1].shown for one in ends) >= 57
    assert np.mean([one.count for one in ends]) == pytest.approx(16, abs=2)


# -- with cells that nobody trains


def make(folder):
    lists = {"model": ["simplenet"], "lr": [0.1, 0.2]}
    return lambda seeds: make_cells(lists, seeds, folder)


def train(cells, values):
    for cell in cells:
        seeds = list(cell.settings.seeds)
        entry = cell.settings.lr
        accuracies = [values[entry][seed] for seed in seeds]
        made = make_run(cell.folder, "simplenet", accuracies, seeds)
        config = records.read_config(made)
        config.settings = cell.settings.record()
        records.write_config(made, config)


def begin(folder, most=30, margin=None):
    plan = plan_of_study(["a", "b"], most, 0, margin)
    return Study(folder, plan, make(folder))


def go_on(folder, values, rounds=9):
    folder.mkdir(exist_ok=True)
    study, found = begin(folder), []
    for _ in range(rounds):
        every = study.plan_cells()
        study.write_plan()
        train([cell for cell in every if cell.result is None], values)
        assert all(cell.result for cell in study.plan_cells())
        found.append(study.look())
        if found[-1].needed is None:
            break
    return study, found


def test_a_study_that_goes_on_has_the_same_looks(tmp_path):
    first, second = entries(0, 0.2, seed=3, deviation=0.02)
    values = {0.1: first, 0.2: second}
    whole = tmp_path / "whole"
    study, found = go_on(whole, values)
    assert [one.count for one in found] == list(LOOKS[: len(found)])
    assert found[-1].count == 30
    assert len(study.cells) == 12  # each round trains only what is new
    parts = tmp_path / "parts"
    for _ in found:  # as if the command was killed after each round
        _, again = go_on(parts, values, rounds=1)
    text = study.state(found[0])
    assert "look at 5 seeds: open between" in text
    assert "at most 50 more seeds" in text
    _, again = go_on(parts, values)
    assert [one.pairs for one in again] == [one.pairs for one in found]
    assert {p.name for p in parts.iterdir()} == {p.name for p in whole.iterdir()}
    # A report has the same verdict, from the records and the plan.
    (judged,), _ = read_studies(whole, compared=["lr"])
    ((_, _, difference),) = judged.comparisons
    mine = found[-1].pairs[0, 1]
    assert difference.p == pytest.approx(mine.p)
    assert difference.half_width == pytest.approx(mine.half_width)
    assert difference.looks == len(found)
    with pytest.raises(UserError, match="looks of this study are"):
        begin(whole, most=40)
    with pytest.raises(UserError, match="margin of this study are"):
        begin(whole, margin=0.01)


def test_a_study_without_results_may_be_planned_anew(tmp_path):
    begin(tmp_path).write_plan()
    study = begin(tmp_path, most=40, margin=0.01)
    study.plan_cells()
    study.write_plan()
    assert json.loads((tmp_path / PLAN).read_text())["looks"][-1] == 40


def test_seeds_of_an_earlier_sweep_are_used(tmp_path):
    first, second = entries(0, 0.2, seed=3, deviation=0.02)
    values = {0.1: first, 0.2: second}
    train(make(tmp_path)((0, 1, 2)), values)
    study, _ = go_on(tmp_path, values, rounds=1)
    assert [cell.settings.seeds for cell in study.cells] == [(0, 1, 2), (3, 4)] * 2


# -- the command

FLAGS = ["--model=simplenet", "--lr=0.01,0.02", "--epochs=1", "--train_size=60"]
STUDY = ["--until_shown", "--most_seeds=6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return archives.tiny_data(tmp_path_factory.mktemp("data"))


def seeds_in(folder):
    paths = [path for path in folder.iterdir() if (path / records.RESULT).is_file()]
    return sorted(records.read_result(path).seeds for path in paths)


@pytest.mark.slow
def test_the_command_runs_to_its_last_line_and_goes_on(data, tmp_path):
    flags = [*data, *FLAGS, *STUDY, f"--workdir={tmp_path / 'study'}"]
    plan = command("sweep", *flags, "--dry_run")
    assert plan.stdout.splitlines()[-1] == "looks at 5, 6 seeds of each"
    assert not (tmp_path / "study").exists()
    done = command("sweep", *flags)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "study"
    assert "look at 5 seeds: " in done.stdout
    assert re.search(r"simplenet lr=0.0[12].* simplenet lr=0.0[12]", done.stdout)
    assert done.stdout.splitlines()[-1].startswith("compare: ")
    *_, last = seeds_in(folder)
    assert last in ([5], [0, 1, 2, 3, 4])
    again = command("sweep", *flags)
    assert again.returncode == 0
    ours, theirs = (re.split("is over", one.stdout)[1] for one in (done, again))
    assert ours == theirs
    other = command("sweep", *flags, "--most_seeds=7")
    assert_one_line_error(other, 1, PLAN, "[5, 6], not [5, 7]", "--workdir")
    shown = command("report", f"--runs={folder}", f"--output={tmp_path}")
    assert shown.returncode == 0, shown.stderr
    assert "simplenet lr=0.01" in shown.stdout
    assert json.loads((folder / PLAN).read_text())["looks"] == [5, 6]


@pytest.mark.slow
def test_finished_cells_of_other_data_do_not_decide(data, tmp_path):
    flags = [*FLAGS, *STUDY, f"--workdir={tmp_path / 'study'}"]
    archive = archives.write_binary_archive(
        tmp_path / "other.tar.gz", archives.make_arrays(100, seed=1)
    )
    others = [f"--data_archive={archive}", f"--data_dir={tmp_path}"]
    others.append(f"--archive_sha256={archives.sha256(archive)}")
    assert command("sweep", *data, *flags).returncode == 0
    done = command("sweep", *data, *flags, *others)
    assert done.returncode == 1
    assert "the data set was cifar10" in done.stderr
    assert "look at" not in done.stdout


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_same_looks(data, tmp_path):
    flags = [*data, *FLAGS[:2], "--epochs=30", "--train_size=60", *STUDY]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = command("sweep", *flags, f"--workdir={whole}")
    assert done.returncode == 0, done.stderr
    words = [sys.executable, "-m", "experiments.sweep", *flags, f"--workdir={parts}"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        metrics = records.METRICS
        wait_for(
            lambda: any(p.stat().st_size for p in parts.glob(f"*/{metrics}")), process
        )
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in output
    again = command("sweep", *flags, f"--workdir={parts}")
    assert again.returncode == 0, again.stderr
    ours, theirs = (
        re.findall(r"(?m)^.*(?:points|seeds of|look at \d+).*$", one.stdout)
        for one in (done, again)
    )
    assert [line.partition(";")[0] for line in ours] == [
        line.partition(";")[0] for line in theirs
    ]
    assert seeds_in(whole) == seeds_in(parts)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "flags"),
    [
        ("ray", ["--launcher=ray"]),
        ("submitit", ["--launcher=slurm", '--slurm_args={"cluster": "local"}']),
    ],
)
def test_other_launchers_train_a_study(data, tmp_path, package, flags):
    pytest.importorskip(package)
    workdir = f"--workdir={tmp_path / 'study'}"
    done = command("sweep", *data, *FLAGS, *STUDY, *flags, workdir)
    assert done.returncode == 0, done.stderr
    assert "look at 5 seeds: " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("compare: ")


@pytest.mark.slow
def test_a_sweep_notes_what_it_has_shown(data, tmp_path):
    flags = [*data, *FLAGS, f"--workdir={tmp_path}"]
    for seeds, lines in (("0,1", 1), ("0,1", 1), ("0,1,2", 2)):
        done = command("sweep", *flags, f"--seeds={seeds}")
        assert done.returncode == 0, done.stderr
        assert len((tmp_path / JOURNAL).read_text().splitlines()) == lines
    (study,), _ = read_studies(tmp_path, compared=["lr"])
    assert study.comparisons[0][2].looks == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--most_seeds=10"], ["--most_seeds needs --until_shown"]),
        (["--margin=0.5"], ["--margin needs --until_shown"]),
        ([*STUDY, "--shard=1/2"], ["drop --shard"]),
        ([*STUDY, "--seeds=0,1"], ["give one seed"]),
        (["--until_shown", "--most_seeds=4"], ["--most_seeds"]),
        (["--until_shown", "--lr=0.1"], ["two or more combinations"]),
        ([*STUDY, "--margin=0"], ["--margin=0.0: give points"]),
    ],
)
def test_wrong_flags_are_one_line(flags, words, tmp_path):
    done = command("sweep", *FLAGS, *flags, f"--workdir={tmp_path / 'x'}")
    assert done.returncode in (1, 2)
    assert_one_line_error(done, done.returncode, *words)
    assert not (tmp_path / "x").exists()
