"""The commands, programs and links of the pages, and the notebooks."""

import contextlib
import dataclasses
import importlib
import inspect
import pathlib
import re
import shlex
import typing

import flax.linen as nn
import pytest

import cifar_flax
from tests import forked

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


def commands_of(page):
    """Returns the lines of a page's shell blocks that start our commands."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    for block in blocks:
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if re.match(r"python -m (experiments|benchmarks)\.", part.strip()):
                    yield words[2], [word for word in words[3:] if word[0] == "-"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with forked.server(tmp_path_factory.mktemp("docs")) as run:
        yield run


@pytest.mark.slow
def test_every_flag_of_every_command_on_the_pages_is_known(run):
    commands = {}
    for page in PAGES:
        for module, flags in commands_of(page):
            commands.setdefault(module, []).extend(flags)
    assert len(commands) > 8
    for module, flags in commands.items():
        known = set(re.findall(r"--(\[no\])?(\w+)", run(module, "--help").stdout))
        names = {name for _, name in known}
        for flag in flags:
            name = flag.lstrip("-").partition("=")[0]
            assert name in names or name.removeprefix("no") in names, (module, flag)


def test_the_example_of_the_statistics_runs(capsys):
    page = (DOCS / "comparing.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "comparing.md", "exec"), {})
    first, difference, *_ = capsys.readouterr().out.splitlines()
    low, high = map(float, re.findall(r"[\d.]+", first))
    assert low < 86 < high
    gap, half = map(float, re.findall(r"[\d.]+", difference)[:2])
    assert abs(gap - 2) < half


def listed_names():
    """Returns what the reference lists by name: public names, and what they hold."""
    public, _, held = (DOCS / "api.md").read_text().partition("## What these objects")
    for text in (public, held):
        found = {}
        for path in re.findall(r"^::: cifar_flax\.([\w.]+)$", text, re.M):
            module, _, name = path.rpartition(".")
            module = importlib.import_module(f"cifar_flax.{module}")
            found[name] = getattr(module, name)
        yield found


def test_every_public_name_has_its_place_in_the_reference_and_a_docstring():
    public, held = listed_names()
    assert sorted(public) == cifar_flax.__all__
    for name, found in public.items():
        assert found is getattr(cifar_flax, name)
        assert found.__doc__
    assert not public.keys() & held.keys()


def fields_of(one):
    """Returns the names of the fields of a class."""
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
    else:
        names = getattr(one, "__struct_fields__", ())
    is_linen = issubclass(one, nn.Module)
    return [n for n in names if not (is_linen and n in ("parent", "name"))]


def described_in(one):
    """Returns the names that the docstring of a class describes as attributes."""
    found = re.search(r"^Attributes:\n((  .*\n?|\n)*)", inspect.getdoc(one) or "", re.M)
    return re.findall(r"^  (\w+)(?: \(.*?\))?:", found[1], re.M) if found else []


def classes_in(hint):
    """Yields our classes in the type of a field."""
    for argument in typing.get_args(hint):
        yield from classes_in(argument)
    if isinstance(hint, type) and hint.__module__.startswith("cifar_flax"):
        yield hint


def test_the_reference_describes_every_field_and_lists_its_class():
    public, held = listed_names()
    listed = {**public, **held}
    for name, one in listed.items():
        if not isinstance(one, type):
            continue
        fields = fields_of(one)
        missing = set(fields) - set(described_in(one))
        assert not missing, f"describe {missing} in the docstring of {name}"
        with contextlib.suppress(NameError):  # optax's own types have no names
            hints = typing.get_type_hints(one)
            for field in fields:
                for other in classes_in(hints[field]):
                    where = f"{name}.{field} is a {other.__name__}"
                    assert other in listed.values(), f"{where}; list it in api.md"


def test_every_link_between_the_pages_leads_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("http", "#")):
                target = page.parent / link.partition("#")[0]
                assert target.exists(), (page.name, link)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", ["lesson", "after-the-lesson"])
def test_the_notebook_is_made_from_its_source(name):
    jupytext = pytest.importorskip("jupytext", reason="pip install -e '.[docs]'")
    source, made = (jupytext.read(DOCS / f"{name}.{end}") for end in ("py", "ipynb"))
    cells = [[(c.cell_type, c.source) for c in one.cells] for one in (source, made)]
    assert cells[0] == cells[1]


def test_every_folder_is_in_the_source_distribution():
    """So that its tests run there."""
    given = re.findall(r"^graft (\w+)$", (ROOT / "MANIFEST.in").read_text(), re.M)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages | {"docs"} == {"cifar_flax", *given}
