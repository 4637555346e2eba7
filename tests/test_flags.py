"""Whatever the flags are, a wrong one ends with one line that names it.

The flags are those that the commands themselves say they have.
"""

import functools
from xml.etree import ElementTree

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from tests import forked

MISSING = "/dev/null/missing"

# Of each command, what lets it fail late: a line without a mistake ends with this path.
BACKSTOP = {
    "run": [f"--data_archive={MISSING}"],
    "lr_find": [f"--data_archive={MISSING}"],
    "sweep": [f"--workdir={MISSING}"],
    "report": [f"--runs={MISSING}"],
    "predict": [f"--run={MISSING}", MISSING],
    "lr_grid": [f"--data_archive={MISSING}"],
    "summary": [],  # has nothing to miss, and takes no time
    "prepare_data": [f"--data_archive={MISSING}"],
    "benchmark": [f"--json={MISSING}"],
}

TEXTS = [
    *("", " ", "0", "1", "-1", "3", "-0.0", "0.5", "0.1", str(10**9), str(10**30)),
    *("2147483647", "2147483648", "1e5", "1_000", "0x10", "٣", "nan", "inf", "-inf"),
    *("1e400", "1e39", "5e-324", "1e-40", "0.99999999999", "9" * 5000, "x" * 100_000),
    *("a\nb", "a\x00b", "a\u2028b", "..", "/", "/dev/null", "a" * 300, "~nobody/a"),
    *("\udcff", "😀", ",", "1,,2", "1,1", "0,1,2", ",".join("0123456789" * 3), '"'),
    *("all", "all,convbn", "convbn", "auto", "true", "True", "none", "%s", "[red]"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with forked.server(tmp_path_factory.mktemp("forked")) as run:
        yield run


@pytest.fixture(scope="module")
def flags_of(run):
    """The flags of a module: (name, values to give)."""

    @functools.cache
    def flags_of(module):
        done = run(module, "--helpxml")
        found = []
        for flag in ElementTree.fromstring(done.stdout).iter("flag"):
            name = flag.findtext("name")
            if flag.findtext("key") == "yes" and name != "debug":
                values = [value.text for value in flag.iter("enum_value")]
                found.append((name, [*values, *TEXTS]))
        assert found
        return found

    return flags_of


def draw_flags(data, flags_of, module):
    """One to four flags with values, as pairs."""
    known = flags_of(module)
    count = data.draw(st.integers(1, 4))
    pairs = []
    for _ in range(count):
        name, values = data.draw(st.sampled_from(known))
        pairs.append((name, data.draw(st.sampled_from(values))))
    return pairs


def words_of(pairs):
    return [f"--{name}={value}" for name, value in pairs]


def the_error(done):
    """The one line that a command ended with."""
    assert done.returncode in (1, 2), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "internal error" not in line
    assert done.stdout == ""
    return line


@pytest.mark.parametrize("command", BACKSTOP)
@given(data=st.data())
def test_any_flags_end_with_one_line_that_names_one(run, flags_of, command, data):
    module = f"experiments.{command}"
    pairs = draw_flags(data, flags_of, module)
    done = run(module, *words_of(pairs), *BACKSTOP[command])
    if not BACKSTOP[command] and done.returncode == 0:
        assert done.stderr == ""
        return
    line = the_error(done)
    event("wrong" if done.returncode == 2 else "fails")
    assert MISSING in line or any(name in line for name, _ in pairs)
