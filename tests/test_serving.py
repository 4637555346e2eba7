"""The server of docs/training.md and its client, as a user would start them."""

import io
import os
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from cifar_flax.runs.inference import Run
from cifar_flax.runs.session import run
from cifar_flax.runs.settings import Settings
from tests.runs.test_session import make_tiny

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text()
PROGRAMS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the programs of the page and a run of two seeds."""
    folder = tmp_path_factory.mktemp("serving")
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text)
    settings = Settings(
        model="simplenet",
        seeds=(0, 1),
        **{"lr": 0.05, "epochs": 1, "batch_size": 32, "val_size": 24},
    )
    run(settings, folder / "run", dataset=make_tiny())
    return folder


def start(folder, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, words)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def url(folder):
    with start(folder, "serve.py", "run", 0) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def ask(url, body, **headers):
    """Returns status and body of an answer."""
    try:
        request = urllib.request.Request(url, body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def as_bytes(array, save=np.save):
    content = io.BytesIO()
    save(content, array)
    return content.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 5, 25])
def test_the_server_answers_with_the_probabilities_of_the_run(folder, url, count):
    images = make_tiny().test_images[:count]
    status, body = ask(url, as_bytes(images))
    assert status == 200
    found = np.load(io.BytesIO(body), allow_pickle=False)
    wanted = Run.load(folder / "run").predict(images).mean(0)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def lying(shape):
    """A file whose header promises more than it holds."""
    content = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue() + bytes(100)


WRONG = {
    "nothing": (b"", "no array"),
    "text": (b"cat.png", "no array"),
    "part": (as_bytes(np.zeros((2, 32, 32, 3), np.uint8))[:-1], "no array"),
    "pickle": (as_bytes(np.array([Harmful()])), "no array"),
    "npz": (as_bytes(np.zeros(3), np.savez), "no array"),
    "promises": (lying((10**12, 32, 32, 3)), "no array"),
    "overflow": (lying((2**62, 32, 32, 3)), "no array"),
    "scalar": (as_bytes(np.uint8(3)), r"uint8 \[\]; give uint8"),
    "no images": (as_bytes(np.zeros((0, 32, 32, 3), np.uint8)), "N from 1 to 256"),
    "one image": (as_bytes(np.zeros((32, 32, 3), np.uint8)), r"\[32, 32, 3\]"),
    "floats": (as_bytes(np.zeros((2, 32, 32, 3), np.float32)), "float32"),
    "grey": (as_bytes(np.zeros((2, 32, 32, 1), np.uint8)), r"\[2, 32, 32, 1\]"),
    "many": (as_bytes(np.zeros((257, 32, 32, 3), np.uint8)), r"\[257, 32, 32, 3\]"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("body", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_gets_one_line(folder, url, body, words):
    status, answer = ask(url, body)
    assert status == 400
    assert re.search(words, answer.decode())
    assert answer.count(b"\n") == 1
    assert not (folder / "harm").exists()


@pytest.mark.slow
@pytest.mark.parametrize("length", ["100000000", "-1", "many"])
def test_a_request_has_a_limited_length(url, length):
    status, answer = ask(url, b"1", **{"Content-Length": length})
    assert status == 400
    assert b"Content-Length of at most 1572864 bytes" in answer


@pytest.mark.slow
def test_the_client_prints_classes_and_throughput(folder, url):
    images = make_tiny().test_images[:3]
    np.save(folder / "images.npy", images)
    with start(folder, "ask.py", url, "images.npy") as client:
        classes, speed = client.stdout.read().splitlines()
    wanted = Run.load(folder / "run").predict(images).mean(0).argmax(1)
    assert classes.split() == ["classes", *map(str, wanted)]
    assert re.fullmatch(r"[\d,]+ images/s", speed)
