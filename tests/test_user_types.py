"""A user's own file passes mypy --strict, and a wheel holds what that needs."""

import pathlib
import tomllib

import pytest
from mypy import api

ROOT = pathlib.Path(__file__).parents[1]

PROGRAM = """
import threading

import cifar_flax as cf
from cifar_flax.records import LogPoint
from cifar_flax.training.state import TrainState


class Last(cf.Observer):
    step = 0
    best = 0.0

    def epoch_done(self, line: LogPoint, state: TrainState) -> None:
        if line.val_accuracy is not None:
            self.best = max(self.best, *line.val_accuracy)

    def ended(self, result: cf.RunResult | cf.RangeTestResult | None) -> None:
        if isinstance(result, cf.RunResult) and result.metrics:
            self.step = result.metrics[-1].step


def make_recipe() -> cf.Recipe:
    groups = (cf.Group("^conv0", rate=0.1),)
    return cf.Recipe((cf.Cosine(3e-3, epochs=2, warmup=0.5),), groups=groups)


settings = cf.Settings(model="convbn", seeds=(0, 1), lr=0.1, epochs=2)
last = Last()
result = cf.run(settings, recipe=make_recipe(), observers=[last, cf.ConsoleDisplay()])
if result.record is not None:
    print(result.status, result.record.test_accuracy, last.step)
found = cf.range_test(settings, stop=threading.Event())
print(found.rate)
try:
    cf.report("runs")
except cf.UserError as error:
    print(error)
"""


@pytest.fixture
def strict(tmp_path, monkeypatch):
    """Checks a program as mypy --strict does where this package is installed."""
    monkeypatch.setenv("MYPYPATH", str(ROOT))

    def check(program, *flags):
        path = tmp_path / "program.py"
        path.write_text(program)
        # Errors in an installed package are not shown either.
        words = ["--strict", "--follow-imports=silent", "--config-file="]
        words += [f"--cache-dir={tmp_path / 'cache'}", *flags, str(path)]
        return api.run(words)

    return check


@pytest.mark.slow
def test_a_program_has_no_error_and_exact_types(strict):
    """Without JAX's types, which take mypy a quarter of a minute."""
    output, errors, status = strict(
        f"{PROGRAM}\nreveal_type(result.metrics)\nreveal_type(found.status)",
        "--no-site-packages",
    )
    assert status == 0, output + errors
    lists, literal = (line for line in output.splitlines() if "Revealed" in line)
    assert "list[cifar_flax.record_types.LogPoint]" in lists
    assert "'finished'" in literal


@pytest.mark.slow
def test_what_is_not_public_or_wrong_is_an_error(strict):
    wrong = "cf.nothing\ncf.Recipe(nothing=1)\nresult.status = 3\n"
    output, _, status = strict(PROGRAM + wrong, "--no-site-packages")
    assert status == 1
    assert len([line for line in output.splitlines() if "error:" in line]) >= 3


@pytest.mark.slow
def test_a_program_has_no_error_beside_the_types_of_jax(strict):
    output, errors, status = strict(PROGRAM)
    assert status == 0, output + errors


def test_a_wheel_holds_every_file_of_the_package():
    """The stub, for example, without which importing the package fails."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["cifar_flax"]
    package = ROOT / "cifar_flax"
    held = {path for pattern in patterns for path in package.glob(pattern)}
    others = [
        path
        for path in package.rglob("*.*")
        if path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    ]
    assert package / "__init__.pyi" in others
    assert set(others) <= held
