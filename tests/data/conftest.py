"""Tiny arrays and archives; these tests use no network except the loopback."""

import importlib.util

import pytest

from tests import archives

# Port 1 of the loopback refuses connections at once.
NOWHERE = "http://127.0.0.1:1/cifar.tar.gz"


needs_array_record = pytest.mark.skipif(
    importlib.util.find_spec("array_record") is None,
    reason="array_record is not made for this system",
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Makes the archives' address refuse connections, without proxies."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in archives.KINDS:
        archives.change(monkeypatch, name, url=NOWHERE)


@pytest.fixture
def kind():
    """The data set; a test or a class may parametrise it."""
    return archives.CIFAR10


@pytest.fixture
def arrays(kind):
    return archives.make_arrays(kind=kind)


@pytest.fixture
def binary_archive(tmp_path, arrays, kind):
    """A binary archive with an image of each class in each batch, not official."""
    folder = tmp_path / "given"
    folder.mkdir()
    name = f"{kind.title.lower()}-binary.tar.gz"
    return archives.write_binary_archive(folder / name, arrays)


@pytest.fixture
def official_archive(monkeypatch, binary_archive, arrays):
    """A binary archive that counts as the official one."""
    archives.make_official(monkeypatch, binary_archive, arrays)
    return binary_archive
