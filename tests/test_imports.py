"""Dependencies point one way, and nothing heavy comes with an import."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "cifar_flax"

# Each part may import those further down in this list, and itself.
ORDER = [
    ["lr_range", "inference"],
    ["loop"],
    ["checkpoint"],
    ["steps"],
    ["state"],
    ["models"],
    ["layers"],
    ["recipes"],
    ["schedules"],
    ["records", "reports", "data"],
    ["fields"],
    ["errors"],
]
ALONE = {
    "records": {"errors"},
    "reports": {"records", "fields", "errors"},
    "data": {"errors"},
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
            assert not module.startswith("experiments"), f"{path}: {module}"
            if other is None or other == part:
                continue
            assert level[part] < level[other], f"{path} imports {module}"
            assert other in ALONE.get(part, {other}), f"{path} imports {module}"


def test_only_one_module_knows_orbax():
    users = {p.name for _, p in parts() if any("orbax" in m for m in imports_of(p))}
    assert users == {"checkpoint.py"}


def test_the_library_has_no_flags():
    for _, path in parts():
        text = path.read_text()
        assert "import flags" not in text, path
        assert "absl.flags" not in text, path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("cifar_flax", ["jax", "numpy"]),
        ("cifar_flax.records", ["jax"]),
        ("cifar_flax.reports.statistics", ["jax"]),
        ("cifar_flax.data", ["jax", "tensorflow_datasets", "requests", "PIL"]),
        ("cifar_flax.loop", ["orbax", "tensorflow_datasets"]),
    ],
)
def test_nothing_heavy_at_import(module, absent):
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
