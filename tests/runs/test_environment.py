"""The description of the environment, and the cache of compiled programs."""

import os
import sys

import jax
import pytest

from cifar_flax.runs.environment import use_compilation_cache

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
