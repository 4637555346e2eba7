"""Where the taps of a convolution lie."""

import dataclasses

# Of the two spatial axes.
Pair = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the taps of a convolution lie.

    Along each spatial axis, with zeros outside the image,
    ``y[a] = sum_i x[stride * a + dilation * i - before] * w[i]``.

    Attributes:
      strides: in pixels, of the two spatial axes.
      padding: zeros before and after the image along each axis; negative values crop.
      dilations: in pixels, between neighbouring taps.
      groups: of channels and features; features see the channels of their group alone.
    """

    strides: Pair = (1, 1)
    padding: tuple[tuple[int, int], ...] = ((0, 0), (0, 0))
    dilations: Pair = (1, 1)
    groups: int = 1

    @classmethod
    def square(cls, stride: int, padding: int) -> "Geometry":
        """Returns the geometry that is the same on all sides."""
        return cls((stride, stride), ((padding, padding), (padding, padding)))

    def outputs(self, lengths: tuple, sizes: tuple) -> Pair:
        """Returns height and width of the outputs, for those of images and kernel."""
        both = zip(
            lengths, sizes, self.strides, self.padding, self.dilations, strict=True
        )
        return tuple(
            max(0, (length + sum(pads) - (size - 1) * dilation - 1) // stride + 1)
            for length, size, stride, pads, dilation in both
        )
