"""Dependencies point one way, and nothing heavy comes with an import."""

import ast
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest

import cifar_flax

PACKAGE = pathlib.Path(__file__).parents[1] / "cifar_flax"

# Each part may import those further down in this list, and itself.
ORDER = [
    ["commands"],
    ["sweeps"],
    ["show", "reports"],
    ["runs"],
    ["training"],
    ["models"],
    ["layers"],
    ["analysis"],
    ["identity"],
    ["data", "records"],
    ["search_records", "range_records"],
    ["record_types"],
    ["definitions", "json_files", "jax_settings"],
    ["files", "forks", "own_code"],
    ["errors"],
]
ALONE = {
    "records": {"range_records", "record_types", "json_files", "errors"},
    "record_types": {"json_files", "errors"},
    "analysis": {"records", "files", "errors"},
    "identity": {"records"},
    "search_records": {"record_types", "json_files"},
    "definitions": {"own_code", "errors"},
    "reports": {
        *("analysis", "identity", "records", "search_records", "json_files"),
        *("files", "own_code", "errors"),
    },
    "data": {"definitions", "files", "own_code", "errors"},
    "own_code": {"errors"},
    "json_files": {"files", "errors"},
    "jax_settings": {"errors", "forks"},
    "layers": {"files", "errors"},
    "models": {"layers", "jax_settings", "own_code", "errors"},
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def part_of(module):
    words = module.split(".")
    return words[1] if words[0] == "cifar_flax" and len(words) > 1 else None


def parts():
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.name != "__init__.py" or len(relative.parts) > 1:
            yield relative.parts[0].removesuffix(".py"), path


def test_imports_point_downwards():
    level = {name: i for i, names in enumerate(ORDER) for name in names}
    for part, path in parts():
        assert part in level, f"{path.name}: give {part} its place in ORDER"
        for module in imports_of(path):
            other = part_of(module)
            assert module.split(".")[0] not in ("experiments", "benchmarks"), path
            if other is None or other == part:
                continue
            assert level[part] < level[other], f"{path} imports {module}"
            assert other in ALONE.get(part, {other}), f"{path} imports {module}"


# How the word that names a command begins.
COMMAND = r"experiments\.|benchmarks\.|cifar_flax\.commands"


def names_a_command(tree):
    """Whether a string in a list, a tuple or a call begins with the name of a command.

    Messages name commands, too, but not at their beginning.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Call):
            for text in ast.walk(node):
                value = text.value if isinstance(text, ast.Constant) else None
                if isinstance(value, str) and re.match(COMMAND, value):
                    return True
    return False


def test_only_the_commands_start_a_command_by_its_name():
    starters = ("subprocess", "runpy", "multiprocessing", "ray", "submitit")
    checked = 0
    for part, path in parts():
        tree = ast.parse(path.read_text())
        words = {module.split(".")[0] for module in imports_of(path)}
        words |= {
            node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
        }
        if part != "commands" and words & {*starters, "execv", "execvp", "spawnv"}:
            checked += 1
            assert not names_a_command(tree), f"{path} starts a command by its name"
    assert checked > 3


def test_only_one_module_knows_orbax():
    users = {p.name for _, p in parts() if any("orbax" in m for m in imports_of(p))}
    assert users == {"checkpoint.py"}


def test_the_library_has_no_flags():
    for part, path in parts():
        text = "" if part == "commands" else path.read_text()
        assert not re.search(r"import flags\b", text), path
        assert "absl.flags" not in text, path


# Modules, each imported after those above it, and what none of these brings along.
LIGHT = {
    "cifar_flax": ["jax", "numpy"],
    "cifar_flax.records": ["jax"],
    "cifar_flax.analysis.statistics": ["jax"],
    "cifar_flax.data": ["jax", "tensorflow_datasets", "requests", "PIL"],
    "cifar_flax.reports.page": ["jax"],
}
HEAVY = {
    "cifar_flax.training.trainer": ["orbax", "tensorflow_datasets"],
    "cifar_flax.runs.session": ["matplotlib", "tensorboardX"],
    "cifar_flax.runs.export": ["safetensors"],
}


@pytest.mark.slow
@pytest.mark.parametrize("modules", [LIGHT, HEAVY], ids=["light", "heavy"])
def test_nothing_heavy_at_import(modules):
    code = f"""
import importlib, sys
for module, absent in {modules}.items():
    importlib.import_module(module)
    print(module, [name for name in absent if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [f"{module} []" for module in modules]


def test_every_public_name_of_the_stub_is_loaded_when_it_is_used():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    _, version, *lines = tree.body
    assert ast.unparse(version) == "__version__: str"
    assert re.fullmatch(r"\d+\.\d+.*", cifar_flax.__version__)
    names = [(alias.name, alias.asname) for node in lines for alias in node.names]
    assert sorted(name for name, _ in names) == cifar_flax.__all__ == dir(cifar_flax)
    assert all(name == exported for name, exported in names)
    assert len(names) > 30
    for name in cifar_flax.__all__:
        assert getattr(cifar_flax, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cifar_flax.nothing


@pytest.mark.slow
def test_a_step_is_six_of_our_frames_from_the_command():
    """main, run, the chunks, the steps of all replicas, those of one, the step."""
    code = """
import sys, traceback
from cifar_flax.training import steps
from cifar_flax.commands import run

def traced(*args, **kwargs):
    frames = [f for f in traceback.extract_stack()[:-1] if f.name != "<module>"]
    parts = ("/cifar_flax/", "/experiments/")
    own = [f for f in frames if any(part in f.filename for part in parts)]
    print(len(own) + 1, [f.name for f in own])
    sys.stdout.flush()
    raise SystemExit(0)

steps.TrainStep.__call__ = traced
import runpy
runpy.run_module("experiments.run", run_name="__main__")
"""
    words = ["--model=simplenet", "--dataset=shapes", "--workdir={}/run"]
    with tempfile.TemporaryDirectory() as folder:
        flags = [word.format(folder) for word in words]
        done = subprocess.run(
            [sys.executable, "-c", code, *flags],
            capture_output=True,
            text=True,
            cwd=PACKAGE.parent,
            env={**os.environ, "TFDS_DATA_DIR": folder},
            check=False,
        )
    line = done.stdout.splitlines()[-1]
    assert int(line.split()[0]) <= 6, line
