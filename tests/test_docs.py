"""The commands, programs and links of the pages, and the notebook."""

import importlib
import pathlib
import re
import shlex

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


def test_every_public_name_has_its_place_in_the_reference_and_a_docstring():
    listed = re.findall(
        r"^::: cifar_flax\.([\w.]+)$", (DOCS / "api.md").read_text(), re.M
    )
    assert sorted(path.rpartition(".")[2] for path in listed) == cifar_flax.__all__
    for path in listed:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(f"cifar_flax.{module}"), name)
        assert found is getattr(cifar_flax, name)
        assert found.__doc__


def test_every_link_between_the_pages_leads_somewhere():
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("http", "#")):
                target = page.parent / link.partition("#")[0]
                assert target.exists(), (page.name, link)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_notebook_is_made_from_its_source():
    jupytext = pytest.importorskip("jupytext", reason="pip install -e '.[docs]'")
    source, made = (jupytext.read(DOCS / f"lesson.{end}") for end in ("py", "ipynb"))
    cells = [[(c.cell_type, c.source) for c in one.cells] for one in (source, made)]
    assert cells[0] == cells[1]


def test_every_folder_is_in_the_source_distribution():
    """So that its tests run there."""
    given = re.findall(r"^graft (\w+)$", (ROOT / "MANIFEST.in").read_text(), re.M)
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages | {"docs"} == {"cifar_flax", *given}
