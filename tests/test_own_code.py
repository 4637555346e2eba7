"""A user's own functions, by their place or from a program, with their source."""

import functools
import hashlib
import os
import subprocess
import sys

import pytest

from cifar_flax.errors import UserError
from cifar_flax.own_code import Source, load_code

CODE = "import factor\n\n\ndef double(x):\n    return factor.TWO * x\n\n\nVALUE = 3\n"


@pytest.fixture
def place(tmp_path):
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "factor.py").write_text("TWO = 2\n")
    return f"{tmp_path / 'own.py'}:double"


def checksum(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_a_function_by_its_place_is_called_and_its_source_known(place):
    code = load_code(place, "loss")
    assert code(21) == 42
    assert (code.name, code.source.text) == (place, CODE)
    assert code.source.sha256 == checksum(CODE)
    assert [one.text for one in code.source.helpers] == ["TWO = 2\n"]
    assert load_code(code, "loss") is code


def test_what_is_loaded_stays_and_a_changed_file_is_loaded_anew(place, tmp_path):
    before = load_code(place, "loss")
    (tmp_path / "factor.py").write_text("TWO = 5\n")
    after = load_code(place, "loss")
    assert (before(1), after(1)) == (2, 5)
    assert before != after
    assert before.source.text == after.source.text


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("VALUE", "there is no callable VALUE"),
        ("missing", "there is no callable missing"),
    ],
)
def test_an_error_names_the_setting(place, what, words):
    name = place.replace("double", what)
    with pytest.raises(UserError, match=f"^--loss={name}: {words}$"):
        load_code(name, "loss")
    with pytest.raises(UserError, match=r"^--augment=no_such:f cannot be loaded"):
        load_code("no_such:f", "augment")


def test_a_function_of_a_program_has_the_source_of_its_file(tmp_path):
    (tmp_path / "factor.py").write_text("TWO = 2\n")
    (tmp_path / "own.py").write_text(CODE)
    for path in tmp_path.glob("*.py"):
        os.utime(path, (0, 0))
    program = "; ".join(
        [
            "import functools, own",
            "from cifar_flax.own_code import load_code",
            "code = load_code(functools.partial(own.double), 'loss')",
            "source = code.source",
            "print(code.name, source.sha256, source.helpers[0].text.strip())",
        ]
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[0] == f"double {checksum(CODE)} TWO = 2", done.stderr


def test_a_source_that_may_be_another_is_not_recorded(tmp_path, monkeypatch):
    """The file may have been edited after Python had imported it."""
    (tmp_path / "late.py").write_text("def f(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import late

    assert load_code(late.f, "loss").source == Source(None)


def test_functions_without_a_file_have_no_source():
    class Callable:
        def __call__(self):
            return 1

    assert load_code(len, "loss").source == Source(None)
    assert load_code(eval("lambda: 1"), "loss").source.text is None
    named = load_code(functools.partial(Callable()), "loss")
    assert (named.name, named()) == ("Callable", 1)
