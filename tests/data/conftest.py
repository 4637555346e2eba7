"""Tiny arrays and archives; no test of this folder reaches beyond the loopback."""

import pytest

from cifar_flax.data import download
from tests import archives


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing answers at the archive's address, and proxies are not asked."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Port 1 of the loopback refuses connections at once.
    monkeypatch.setattr(download, "ARCHIVE_URL", "http://127.0.0.1:1/cifar.tar.gz")


@pytest.fixture
def arrays():
    return archives.make_arrays()


@pytest.fixture
def binary_archive(tmp_path, arrays):
    """A binary archive of 50 and 10 images, not official."""
    folder = tmp_path / "given"
    folder.mkdir()
    return archives.write_binary_archive(folder / "cifar-10-binary.tar.gz", arrays)


@pytest.fixture
def official_archive(monkeypatch, binary_archive, arrays):
    """A binary archive that passes for the official one."""
    archives.make_official(monkeypatch, binary_archive, arrays)
    return binary_archive
