"""The picture of training images."""

import numpy as np
import pytest

from cifar_flax.data import make_dataset
from cifar_flax.data.augment import Augmentation
from cifar_flax.show.figures import plot_images


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_images_of_any_number_of_channels_are_drawn(channels):
    shape = (4, 8, 8, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pair = images, np.array([0, 1, 0, 1])
    dataset = make_dataset("d", *pair, *pair, ["a", "b"], source="a test")
    figure = plot_images(dataset, Augmentation())
    figure.canvas.draw()
    drawn = np.asarray(figure.axes[0].images[0].get_array())
    expected = images[0, ..., :3] if channels > 2 else images[0, ..., 0]
    np.testing.assert_array_equal(drawn, expected)
