"""The description of the environment, and the cache of compiled programs."""

import os
import subprocess
import sys

import jax
import pytest

from cifar_flax.runs import environment
from cifar_flax.runs.environment import git_revision, use_compilation_cache

NAMES = [
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
]


@pytest.fixture
def settings(monkeypatch, tmp_path):
    """Restores JAX's settings afterwards; the test has its own cache folder."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no cache elsewhere")
def test_programs_are_cached_below_the_users_cache_folder(settings, tmp_path):
    use_compilation_cache()
    folder = settings.jax_compilation_cache_dir
    assert folder.startswith(str(tmp_path / "cifar_flax" / "programs"))
    assert os.path.isdir(folder)


def test_the_users_own_folder_is_respected(settings, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    use_compilation_cache()
    assert settings.jax_compilation_cache_dir is None


def test_a_cache_that_cannot_be_made_is_done_without(settings, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_compilation_cache()
    assert settings.jax_compilation_cache_dir is None


def git(folder, *words):
    """Runs git in a folder; returns what it prints."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    command = ["git", "-C", folder, *who, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """This package, installed within the repository of another project."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "venv" / "cifar_flax" / "runs" / "environment.py"
    file.parent.mkdir(parents=True)
    file.write_text("x = 1\n")
    (tmp_path / "paper.tex").write_text("x")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "paper.tex")
    git(tmp_path, "commit", "-qm", "theirs")
    monkeypatch.setattr(environment, "__file__", str(file))
    return file


@pytest.mark.parametrize("ignored", [True, False])
def test_the_commit_of_a_surrounding_repository_is_not_this_codes(
    installed, tmp_path, ignored
):
    if ignored:
        (tmp_path / ".gitignore").write_text("venv/\n")
    assert git_revision() is None


def test_the_commit_is_that_of_the_repository_that_has_this_code(installed, tmp_path):
    git(tmp_path, "add", "venv")
    git(tmp_path, "commit", "-qm", "ours")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert git_revision() == commit
    (tmp_path / "paper.tex").write_text("other projects change, too")
    assert git_revision() == commit
    installed.write_text("x = 2\n")
    assert git_revision() == f"{commit}+"


def test_variables_of_git_name_no_other_repository(installed, tmp_path, monkeypatch):
    git(tmp_path, "add", "venv")
    git(tmp_path, "commit", "-qm", "ours")
    other = tmp_path / "other"
    git(tmp_path, "clone", "-q", str(tmp_path), str(other))
    git(other, "commit", "-qm", "later", "--allow-empty")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    assert git_revision() == commit
