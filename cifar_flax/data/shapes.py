"""Shapes: a procedural replacement for CIFAR-10, made in a second or two.

Ten figures (disk, ring, square, ...) are drawn at random places, sizes and angles, in
random colours, on textured and cluttered backgrounds, as 32x32 RGB images. The task is
built so that architectures rank on it as on CIFAR-10. The figure's outline decides the
class. Its place varies, which defeats linear models and hurts fully connected ones,
but not convolutions. Each class also has a weak colour cue, as ships have on CIFAR-10:
its background and its figure are each tinted along one axis (red to cyan, green to
magenta or blue to yellow). Both ends of an axis are equally likely, so that mean images
show no tint and a linear model cannot use it.

Every figure is symmetric or occurs in both mirror images, so horizontal flips are safe.

Pixels are computed with correctly rounded operations only (``+ - * / sqrt floor min
max``, no ``sin`` or ``exp``), whose results do not depend on the processor: the same
NumPy gives the same bits everywhere.
"""

import hashlib
import inspect
import sys
from collections.abc import Callable

import numpy as np

from cifar_flax.data.dataset import Dataset, make_dataset

SIZE = 32  # height and width of an image, in pixels
BATCH = 200  # images drawn together: few enough that the arrays stay in the cache

# Without a cue that is learnt early, networks without normalisation first see no
# gradient and then diverge at the usual learning rates for CIFAR-10.
TINT = 0.35
TINT_AXES = np.eye(3, dtype=np.float32) - np.float32(1 / 3)

Array = np.ndarray


def _norm(x: Array, y: Array) -> Array:
    # np.hypot is slower and its last bit depends on the C library.
    return np.sqrt(x * x + y * y)


def _star(x: Array, y: Array) -> Array:
    # Two reflections fold the plane into the wedge of one point of the star.
    x, y = abs(x), -y
    for side in (1.0, -1.0):
        across = np.maximum(side * 0.809 * x - 0.588 * y, 0.0)
        x = x - side * 2 * 0.809 * across
        y = y + 2 * 0.588 * across
    return 0.89 * abs(x) + 0.456 * (y - 1.1)


def _cross(x: Array, y: Array) -> Array:
    x, y = abs(x), abs(y)
    return np.maximum(np.minimum(x, y) - 0.28, np.maximum(x, y) - 1.0)


def _heart(x: Array, y: Array) -> Array:
    x, y = abs(x), 0.2 - y
    lobes = _norm(x - 0.5, y - 0.5) - 0.66
    return np.minimum(lobes, 0.707 * (x + abs(y)) - 0.68)


# name: (signed distance from the outline, negative inside, in units of the figure's
# radius, at points x to the right and y down; largest rotation as tan(angle / 2)).
FIGURES: dict[str, tuple[Callable[[Array, Array], Array], float]] = {
    "disk": (lambda x, y: _norm(x, y) - 0.9, 1.0),
    "ring": (lambda x, y: abs(_norm(x, y) - 0.75) - 0.25, 1.0),
    # 16 degrees: at 45 it would be a diamond
    "square": (lambda x, y: np.maximum(abs(x), abs(y)) - 0.8, 0.14),
    "diamond": (lambda x, y: 0.8 * abs(x) + 0.6 * abs(y) - 0.66, 0.14),
    # 30 degrees
    "triangle": (lambda x, y: np.maximum(0.866 * abs(x) - 0.5 * y, y) - 0.55, 0.27),
    "star": (_star, 0.27),
    "cross": (_cross, 0.18),  # 20 degrees
    # 90 degrees, and it opens to either side
    "crescent": (
        lambda x, y: np.maximum(_norm(x, y) - 1.0, 0.8 - _norm(x - 0.55, y)),
        1.0,
    ),
    "bars": (lambda x, y: np.maximum(abs(x) - 0.95, abs(abs(y) - 0.6) - 0.27), 1.0),
    "heart": (_heart, 0.27),
}


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Array:
    return rng.random(shape, np.float32) * np.float32(high - low) + np.float32(low)


def _plane(a: Array, b: Array, c: Array) -> Array:
    """Returns ``a * column + b * row + c``, ``[N, H, W]``, pixels from the centre."""
    pixels = np.arange(SIZE, dtype=np.float32) - np.float32((SIZE - 1) / 2)
    return (a[:, None] * pixels + c[:, None])[:, None, :] + (b[:, None] * pixels)[
        :, :, None
    ]


def _directions(rng: np.random.Generator, limit: Array) -> tuple[Array, Array]:
    """Returns cosines and sines of random angles, ``|tan(angle / 2)| <= limit``."""
    t = _uniform(rng, -1, 1, len(limit)) * limit
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def _coverage(distance: Array, softness: Array | float = 1.0) -> Array:
    """Returns the part of a pixel inside an outline ``distance`` pixels away."""
    return np.clip(0.5 - distance / softness, 0, 1)


def _figures(labels: Array, rng: np.random.Generator) -> Array:
    """Returns the coverage ``[N, H, W]`` of one randomly placed figure per label."""
    n = len(labels)
    limits = np.array([limit for _, limit in FIGURES.values()], np.float32)
    cos, sin = _directions(rng, limits[labels])
    upside_down = (limits[labels] == 1) & (rng.random(n) < 0.5)
    cos = np.where(upside_down, -cos, cos)
    radius = _uniform(rng, 6, 12, n)
    left, top = (_uniform(rng, -7, 7, n) for _ in range(2))
    x = _plane(cos / radius, sin / radius, -(cos * left + sin * top) / radius)
    y = _plane(-sin / radius, cos / radius, (sin * left - cos * top) / radius)
    distance = np.empty_like(x)
    for label, (outline, _) in enumerate(FIGURES.values()):
        chosen = labels == label
        distance[chosen] = outline(x[chosen], y[chosen])
    softness = _uniform(rng, 1.0, 2.0, n)
    return _coverage(distance * radius[:, None, None], softness[:, None, None])


def _texture(n: int, rng: np.random.Generator) -> Array:
    """Returns backgrounds ``[N, H, W]`` about -1 to 1: slope, stripes, smooth noise."""
    weight = _uniform(rng, 0, 1, 3, n)
    weight /= weight.sum(0)
    cos, sin = _directions(rng, np.ones(n, np.float32))
    slope = _plane(*(weight[0] * np.stack([cos, sin, 0 * cos]) / (SIZE / 2)))
    cos, sin = _directions(rng, np.ones(n, np.float32))
    period = _uniform(rng, 4, 14, n)
    phase = _plane(cos / period, sin / period, _uniform(rng, 0, 1, n))
    stripes = 4 * abs(phase - np.floor(phase) - 0.5) - 1  # a triangle wave
    # Smooth noise: 6x6 random values, interpolated to 32x32.
    place = np.arange(SIZE, dtype=np.float32) * np.float32(5 / SIZE)
    cell = place.astype(int)
    part = place - cell
    grid = _uniform(rng, -1, 1, n, 6, 6) * weight[2, :, None, None]
    rows = grid[:, cell] + (grid[:, cell + 1] - grid[:, cell]) * part[:, None]
    noise = rows[:, :, cell] + (rows[:, :, cell + 1] - rows[:, :, cell]) * part
    return slope + stripes * weight[1, :, None, None] + noise


def _clutter(n: int, rng: np.random.Generator) -> Array:
    """Returns the coverage ``[N, H, W]`` of a line and two blobs in each image."""
    cos, sin = _directions(rng, np.ones(n, np.float32))
    line = _plane(cos, sin, _uniform(rng, -16, 16, n))
    cover = _coverage(abs(line) - _uniform(rng, 0.3, 1.2, n)[:, None, None])
    zero, one = np.zeros(n, np.float32), np.ones(n, np.float32)
    for _ in range(2):
        stretch = _uniform(rng, 0.6, 1, n)
        x = _plane(stretch, zero, _uniform(rng, -16, 16, n))
        y = _plane(zero, one, _uniform(rng, -16, 16, n))
        blob = _norm(x, y) - _uniform(rng, 0.5, 3.0, n)[:, None, None]
        np.maximum(cover, _coverage(blob), out=cover)
    return cover


def _away(
    rng: np.random.Generator, color: Array, low: float, high: float, brighter: float
) -> Array:
    """Returns colours ``[3, N]``, low to high brighter or darker than ``color``."""
    n = color.shape[1]
    sign = np.where(rng.random(n) < brighter, np.float32(1), np.float32(-1))
    return color + sign * _uniform(rng, low, high, n) + _uniform(rng, -0.1, 0.1, 3, n)


def _draw(labels: Array, rng: np.random.Generator) -> Array:
    """Returns images ``[N, H, W, 3]``, uint8, of the figures that ``labels`` name."""
    n = len(labels)
    figure, clutter, texture = (
        _figures(labels, rng),
        _clutter(n, rng),
        _texture(n, rng),
    )
    ground = _uniform(rng, 0.2, 0.65, n) + _uniform(rng, -0.07, 0.07, 3, n)
    ink = _away(rng, ground, 0.15, 0.4, 0.9)
    for color, axis in ((ground, labels % 3), (ink, labels // 3 % 3)):
        sign = np.where(rng.random(n) < 0.5, np.float32(1), np.float32(-1))
        color += TINT * sign * _uniform(rng, 0.2, 1, n) * TINT_AXES[:, axis]
    litter = _away(rng, ground, 0.05, 0.15, 0.5)
    relief = _uniform(rng, -0.12, 0.12, 3, n)
    # Contrast and brightness of the picture as a whole, in units of pixel values.
    gain = _uniform(rng, 200, 255, n)
    offset = _uniform(rng, -20, 20, n) + np.float32(127.5)
    grain = _uniform(rng, 0.03, 0.2, n)[:, None, None]
    images = np.empty((n, SIZE, SIZE, 3), np.uint8)
    speckle = rng.integers(0, 256, (3, n, SIZE, SIZE), np.uint8)
    for c in range(3):
        back, fore, side = (
            ((k[c] - np.float32(0.5)) * gain + offset)[:, None, None]
            for k in (ground, ink, litter)
        )
        pixels = back + clutter * (side - back)
        pixels += figure * (fore - pixels)
        pixels += texture * (relief[c] * gain)[:, None, None]
        pixels += (speckle[c] - np.float32(127.5)) * grain
        images[..., c] = np.clip(pixels, 0, 255) + np.float32(0.5)
    return images


def _split(count: int, seed: int, split: int) -> tuple[Array, Array]:
    """Returns ``count`` images and labels, a function of the seed and the split."""
    rng = np.random.default_rng([seed, split])
    labels = rng.permutation(np.arange(count) % len(FIGURES)).astype(np.int32)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for start in range(0, count, BATCH):
        images[start : start + BATCH] = _draw(labels[start : start + BATCH], rng)
    return images, labels


def make_shapes(
    num_train: int = 25_000, num_test: int = 5_000, seed: int = 0
) -> Dataset:
    """Draws the data set.

    Args:
      num_train: number of training images; class sizes differ by at most one.
      num_test: number of test images, as ``num_train``.
      seed: another seed gives another set of the same kind.

    Returns:
      The data set 'shapes', 32x32 RGB images of ten figures.
    """
    return make_dataset(
        "shapes",
        *_split(num_train, seed, 0),
        *_split(num_test, seed, 1),
        tuple(FIGURES),
        source="built in",
    )


def cache_key() -> str:
    """Returns a checksum of what decides the images: this code and NumPy."""
    code = inspect.getsource(sys.modules[__name__])
    return hashlib.sha256(f"{np.__version__} {code}".encode()).hexdigest()[:24]
