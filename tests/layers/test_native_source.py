"""The C source of the kernels: warnings of compilers, sanitizers, and ARM."""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from cifar_flax.layers.native import library

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not library.available(), reason="no kernels here"),
]

# AVX2 and four lanes have code of their own; Neon has four lanes, too.
ARM = platform.machine().lower() in ("aarch64", "arm64")
HERE = ["native"] if ARM else ["native", "x86-64-v3", "x86-64"]
ANYWHERE = ["native", "generic"] if ARM else [*HERE, "x86-64-v4"]


def for_processor(name):
    return f"-mcpu={name}" if ARM else f"-march={name}"


def compiled(path, source, compiler, *options):
    """Compiles a file; returns what the compiler says and whether it succeeds."""
    flags = [flag for flag in library._flags() if flag != "-shared"]
    command = [compiler, *flags, str(source), *options, "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr, done.returncode == 0


def test_kernels_are_right_on_an_emulated_arm_processor(tmp_path):
    compiler, emulator = "aarch64-linux-gnu-gcc", "qemu-aarch64"
    for name in (compiler, emulator):
        if not shutil.which(name):
            pytest.skip(f"there is no {name}")
    source, program = Path(__file__).parent / "sanitized.c", tmp_path / "program"
    flags = [flag for flag in library._flags() if flag[:2] not in ("-m", "-s")]
    options = "-static", "-pthread", "-Wall", "-Wextra", "-Werror"
    command = [compiler, *flags, f"-I{library.FOLDER}", *options, str(source), "-lm"]
    subprocess.run([*command, "-o", str(program)], check=True)
    threads, shapes = "2", "40"
    done = subprocess.run(
        [emulator, program, threads, shapes, "no large ones"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout[-200:]


@pytest.fixture
def empty(tmp_path):
    """A program that does nothing, to see whether there are such options here."""
    path = tmp_path / "empty.c"
    path.write_text("int main(void) { return 0; }\n")
    return path


@pytest.mark.parametrize("variant", ANYWHERE)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_do_not_warn(tmp_path, empty, compiler, variant):
    options = for_processor(variant), "-c"
    if not shutil.which(compiler):
        pytest.skip(f"there is no {compiler}")
    if compiled(tmp_path / "empty.o", empty, compiler, *options) != ("", True):
        pytest.skip(f"{compiler} does not know {options[0]}")
    options += "-Wall", "-Wextra", "-Werror"
    source = library.FOLDER / "kernels.c"
    assert compiled(tmp_path / "kernels.o", source, compiler, *options) == ("", True)


@pytest.mark.parametrize(
    ("sanitizer", "variant"),
    [*(("address,undefined", variant) for variant in HERE), ("thread", "native")],
)
def test_sanitizers_find_no_error(tmp_path, empty, sanitizer, variant):
    program, compiler = tmp_path / "program", library._find_compiler()[0]
    options = [
        *(for_processor(variant), "-O2", "-g", "-pthread", "-lm"),
        *(f"-I{library.FOLDER}", f"-fsanitize={sanitizer}"),
        "-fno-sanitize-recover=all",
    ]
    has_sanitizer = compiled(program, empty, compiler, *options)[1]
    if not (has_sanitizer and subprocess.run(program).returncode == 0):
        pytest.skip(f"{compiler} has no -fsanitize={sanitizer}")
    source = Path(__file__).parent / "sanitized.c"
    assert compiled(program, source, compiler, *options) == ("", True)
    threads, shapes = "4", "60"
    done = subprocess.run(
        [program, threads, shapes], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr + done.stdout[-200:]
