"""The definition of a convolution and of its gradients, in NumPy and float64."""

import numpy as np


def convolution(images, kernel, stride, padding):
    """Sums ``x[n, s*a + i - p, s*b + j - p, c] * w[i, j, c, f]`` over i, j and c."""
    padded, taps = _padded(images, padding), _taps(images, kernel, stride, padding)
    return sum(padded[pixels] @ np.float64(kernel[tap]) for tap, pixels in taps)


def gradients(images, kernel, stride, padding, grad):
    """The gradients of images and kernel from that of the outputs."""
    padded, grad = _padded(images, padding), np.float64(grad)
    padded_grad, kernel_grad = np.zeros_like(padded), np.zeros(kernel.shape)
    for tap, pixels in _taps(images, kernel, stride, padding):
        padded_grad[pixels] += grad @ np.float64(kernel[tap]).T
        kernel_grad[tap] = np.tensordot(padded[pixels], grad, ([0, 1, 2], [0, 1, 2]))
    height, width = (slice(padding, padding + n) for n in images.shape[1:3])
    return padded_grad[:, height, width], kernel_grad


def _padded(images, padding):
    sides = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
    return np.pad(np.float64(images), sides)


def _taps(images, kernel, stride, padding):
    """Yields each tap (i, j), and which padded pixels it meets."""
    size = kernel.shape[0]
    ends = [
        stride * ((n + 2 * padding - size) // stride) + 1 for n in images.shape[1:3]
    ]
    for i, j in np.ndindex(size, size):
        yield (i, j), np.s_[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
