"""Settings for all tests, and tiny data."""

import gc
import os
import pathlib
import tempfile

import jaxlib.version

# Many tests compile the same program, in this process or in one they start, today or
# tomorrow; `pytest --cache-clear` empties pytest's own folder.
ROOT = pathlib.Path(__file__).parents[1]
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(ROOT / ".pytest_cache" / "d" / "jax")
# The built-in data set is drawn once, and the home folder stays as it is; workers of
# pytest-xdist share the folder of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    DATA = tempfile.TemporaryDirectory(prefix="cifar_flax_tests_")
    os.environ.setdefault("TFDS_DATA_DIR", DATA.name)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Use several CPU devices, so that sharded programs can be tested, and spend no time on
# optimising programs that run once. All must be set before JAX starts.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
# It divides the time of compilation by three; other versions end at an unknown flag.
if jaxlib.version.__version_info__[:2] == (0, 10):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["JAX_PLATFORMS"] = "cpu"
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

# JAX keeps many objects, and Python would look at all of them again and again.
gc.set_threshold(50_000, 50, 100)

import hypothesis
import numpy as np
import pytest

from cifar_flax.data import Split, Splits

# Use few and fixed examples; --hypothesis-profile=many uses more.
hypothesis.settings.register_profile(
    "few", max_examples=16, deadline=None, derandomize=True
)
hypothesis.settings.register_profile("many", max_examples=1_000, deadline=None)
hypothesis.settings.load_profile("few")


def make_split(seed: int, count: int, classes: int = 4) -> Split:
    """Makes images whose mean brightness depends on their class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count).astype(np.int32)
    noise = rng.integers(0, 100, (count, 32, 32, 3))
    images = noise + (labels * (150 // (classes - 1)))[:, None, None, None]
    return Split(images.astype(np.uint8), labels)


def make_splits() -> Splits:
    """96 training, 24 validation and 25 test images of four classes."""
    return Splits(
        train=make_split(0, 96),
        val=make_split(1, 24),
        test=make_split(2, 25),
        num_classes=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )


@pytest.fixture
def splits() -> Splits:
    """Tiny data."""
    return make_splits()


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes each compiled call take one step."""
    from cifar_flax.training import trainer  # JAX starts slowly

    monkeypatch.setattr(trainer, "CHUNK_SECONDS", 0.0)
