"""The definition of a convolution and of its gradients, in NumPy and float64."""

import numpy as np


def convolution(images, kernel, geometry):
    """Sums ``x[n, s*a + d*i - p, s*b + d*j - p, c] * w[i, j, c, f]`` over i, j and c.

    Features of a group see the channels of their group; see ``Geometry`` for s, d, p.
    """
    outputs = np.zeros((len(images), *_size(images, kernel, geometry), kernel.shape[3]))
    images, kernel, parts = _grouped(images, kernel, outputs, geometry.groups)
    for tap, pixels, reached in _taps(images, kernel, geometry):
        parts[reached] += np.einsum("nabgc,cgf->nabgf", images[pixels], kernel[tap])
    return outputs


def gradients(images, kernel, geometry, grad):
    """The gradients of images and kernel from that of the outputs."""
    shapes = images.shape, kernel.shape
    images, kernel, grad = _grouped(images, kernel, grad, geometry.groups)
    images_grad, kernel_grad = np.zeros_like(images), np.zeros_like(kernel)
    for tap, pixels, reached in _taps(images, kernel, geometry):
        images_grad[pixels] += np.einsum("nabgf,cgf->nabgc", grad[reached], kernel[tap])
        kernel_grad[tap] = np.einsum(
            "nabgc,nabgf->cgf", images[pixels], grad[reached], optimize=True
        )
    return images_grad.reshape(shapes[0]), kernel_grad.reshape(shapes[1])


def _size(images, kernel, geometry):
    reach = [
        d * (k - 1) for d, k in zip(geometry.dilations, kernel.shape, strict=False)
    ]
    room = [
        n + sum(pads) - k - 1
        for n, pads, k in zip(images.shape[1:3], geometry.padding, reach, strict=True)
    ]
    return [max(0, r // s + 1) for r, s in zip(room, geometry.strides, strict=True)]


def _grouped(images, kernel, outputs, groups):
    return (
        np.float64(images).reshape(*images.shape[:3], groups, -1),
        np.float64(kernel).reshape(*kernel.shape[:3], groups, -1),
        np.asarray(outputs, np.float64).reshape(*outputs.shape[:3], groups, -1),
    )


def _taps(images, kernel, geometry):
    """Yields each tap (i, j), the pixels it meets, and the outputs that these reach."""
    size = _size(images, kernel, geometry)
    for tap in np.ndindex(*kernel.shape[:2]):
        met, reached = [], []
        for axis in range(2):
            stride, dilation = geometry.strides[axis], geometry.dilations[axis]
            at = stride * np.arange(size[axis]) + dilation * tap[axis]
            at -= geometry.padding[axis][0]
            inside = (at >= 0) & (at < images.shape[1 + axis])
            met.append(at[inside])
            reached.append(np.flatnonzero(inside))
        yield tap, *(np.ix_(range(len(images)), *both) for both in (met, reached))
