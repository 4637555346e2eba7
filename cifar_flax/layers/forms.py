"""Any convolution of ``jax.lax`` as one of the three that a lowering computes.

``lax.conv_general_dilated`` writes the gradients of a convolution as convolutions, too:
that of its input dilates the left operand by the stride, and that of its kernel
exchanges batch and channels, so that the "kernel" is as large as the image. The shapes
tell them apart.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cifar_flax.layers.conv_product import conv2d_product
from cifar_flax.layers.native import primitives
from cifar_flax.layers.native.geometry import Geometry, Pair
from cifar_flax.layers.native.primitives import tile, untile

Array = jax.Array


# With fewer, XLA took 0.1 to 0.7 of the time for plain convolutions of stride 1.
FEW_IMAGES = 8


class Computing(NamedTuple):
    """How a lowering computes a convolution of images [N, H, W, C] and its gradients.

    Attributes:
      convolve: from images, kernel [K, L, C / groups, F] and geometry.
      input_gradient: from the gradient of the outputs, kernel, size of the images and
        geometry.
      kernel_gradient: from images, gradient of the outputs, size of the kernel and
        geometry.
      problem: says of a geometry and the size of a kernel why it cannot; else None.
    """

    convolve: Callable[[Array, Array, Geometry], Array]
    input_gradient: Callable[[Array, Array, Pair, Geometry], Array]
    kernel_gradient: Callable[[Array, Array, Pair, Geometry], Array]
    problem: Callable[[Geometry, Pair], str | None]


@dataclasses.dataclass(frozen=True)
class Form:
    """A convolution in the terms of ``conv_general_dilated``, with axes in one order.

    S stands for the lengths of the spatial axes, at least one.

    Attributes:
      images: shape of the left operand, (N, *S, C).
      kernel: shape of the right operand, (*S, C / groups, F).
      outputs: shape of the result, (N / batch_groups, *S, F).
      strides: of the window.
      padding: before and after each spatial axis of the dilated images.
      lhs_dilation: of the images.
      rhs_dilation: of the kernel.
      groups: ``feature_group_count``.
      batch_groups: ``batch_group_count``.
      sums_over_images: whether to compute it as the gradient of a kernel is, whose sums
        run over images; with several ``batch_groups`` it must be so.
    """

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    outputs: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: tuple[int, ...]
    rhs_dilation: tuple[int, ...]
    groups: int
    batch_groups: int
    sums_over_images: bool

    def problem(self, how: Computing) -> str | None:
        """Says in a few words why a lowering cannot compute this; else None."""
        flat = self._with_two_axes()
        if flat.dilates_twice:
            flat = flat._with_dilated_images()
        return how.problem(*flat.geometry_and_size())

    @property
    def suits_xla(self) -> bool:
        """Whether it is a forward pass that XLA computes faster than the kernels.

        These compute 16 images, of which few would count, and XLA is slow with other
        forms.
        """
        steps = {*self.lhs_dilation, *self.rhs_dilation, self.groups}
        few = self.images[0] < FEW_IMAGES and len(self.strides) <= 2
        return few and steps == {1} and not self.sums_over_images

    def compute(self, how: Computing, images: Array, kernel: Array) -> Array:
        """Computes it by a lowering that has no ``problem`` with it."""
        if len(self.strides) == 1:
            flat = self._with_two_axes()
            images, kernel = images.reshape(flat.images), kernel.reshape(flat.kernel)
            return flat.compute(how, images, kernel).reshape(self.outputs)
        if len(self.strides) > 2:
            return self._by_slices(how, images, kernel)
        if self.dilates_twice:
            zero = jnp.zeros((), images.dtype)
            between = [(0, 0, step - 1) for step in (1, *self.lhs_dilation, 1)]
            images = lax.pad(images, zero, between)
            return self._with_dilated_images().compute(how, images, kernel)
        geometry, size = self.geometry_and_size()
        dilated = self.lhs_dilation != (1, 1)
        if not self.sums_over_images:
            if not dilated:
                return how.convolve(images, kernel, geometry)
            kernel = transposed(kernel, self.groups)
            return how.input_gradient(images, kernel, self.outputs[1:3], geometry)
        operands = self._summed(images), kernel.transpose(2, 0, 1, 3)
        operands = operands[::-1] if dilated else operands
        sums = how.kernel_gradient(*operands, size, geometry)
        return self.of_kernel_gradient(sums, geometry.groups)

    def of_kernel_gradient(self, sums: Array, groups: int) -> Array:
        """Returns the outputs, (N, H', W', F), from the gradient of a kernel.

        Of dilated images it is that of the other operand, with reversed taps.
        """
        if self.lhs_dilation == (1, 1):
            return sums.transpose(2, 0, 1, 3)
        rows, columns, inputs, _ = sums.shape
        sums = jnp.flip(sums, (0, 1)).reshape(rows, columns, inputs, groups, -1)
        return sums.transpose(4, 0, 1, 3, 2).reshape(self.outputs)

    @property
    def dilates_twice(self) -> bool:
        """Whether the images are dilated where no kernel computes it."""
        steps = self.rhs_dilation if self.sums_over_images else self.strides
        return self.lhs_dilation != (1, 1) and steps != (1, 1)

    def _with_dilated_images(self) -> "Form":
        """Returns the form whose images hold the zeros of their dilation."""
        count, *lengths, channels = self.images
        dilated = (
            (length - 1) * step + 1
            for length, step in zip(lengths, self.lhs_dilation, strict=True)
        )
        images = (count, *dilated, channels)
        return dataclasses.replace(self, images=images, lhs_dilation=(1, 1))

    def _with_two_axes(self) -> "Form":
        """Adds an axis of length 1, or leaves out all axes but the last two."""
        if len(self.strides) == 1:
            (count, *images), kernel = self.images, self.kernel
            return dataclasses.replace(
                self,
                images=(count, 1, *images),
                kernel=(1, *kernel),
                outputs=(self.outputs[0], 1, *self.outputs[1:]),
                strides=(1, *self.strides),
                padding=((0, 0), *self.padding),
                lhs_dilation=(1, *self.lhs_dilation),
                rhs_dilation=(1, *self.rhs_dilation),
            )
        return dataclasses.replace(
            self,
            images=(self.images[0], *self.images[-3:]),
            kernel=self.kernel[-4:],
            outputs=(self.outputs[0], *self.outputs[-3:]),
            strides=self.strides[-2:],
            padding=self.padding[-2:],
            lhs_dilation=self.lhs_dilation[-2:],
            rhs_dilation=self.rhs_dilation[-2:],
        )

    def _by_slices(self, how: Computing, images: Array, kernel: Array) -> Array:
        """Computes sums over the first spatial axis of the kernel one by one.

        The outputs of one tap are a convolution with an axis less, whose images are all
        slices of all images. Of the gradient of a kernel, one slice after the other is
        computed, whose sums run over all slices, too.
        """
        rest = _without_first_axis(self)
        taps, outputs = self.kernel[0], self.outputs[1]
        low, high = self.padding[0]
        dilated = [(0, 0, 0)] * images.ndim
        dilated[1] = (low, high, self.lhs_dilation[0] - 1)
        images = lax.pad(images, jnp.zeros((), images.dtype), dilated)
        stride, dilation = self.strides[0], self.rhs_dilation[0]

        def slices(first: int, step: int, count: int) -> Array:
            last = first + step * (count - 1) + 1
            return lax.slice_in_dim(images, first, last, step, axis=1)

        if not self.sums_over_images:
            form = dataclasses.replace(
                rest,
                images=(self.images[0] * outputs, *rest.images[1:]),
                outputs=(self.outputs[0] * outputs, *rest.outputs[1:]),
            )
            parts = [
                form.compute(
                    how,
                    slices(dilation * k, stride, outputs).reshape(form.images),
                    kernel[k],
                )
                for k in range(taps)
            ]
            return functools.reduce(jnp.add, parts).reshape(self.outputs)
        kernel = jnp.moveaxis(kernel, 0, -2)
        form = dataclasses.replace(
            rest,
            images=(*rest.images[:-1], rest.images[-1] * taps),
            kernel=(*rest.kernel[:-2], rest.kernel[-2] * taps, rest.kernel[-1]),
        )
        kernel = kernel.reshape(form.kernel)
        found = [
            form.compute(
                how,
                jnp.moveaxis(slices(stride * k, dilation, taps), 1, -1).reshape(
                    form.images
                ),
                kernel,
            )
            for k in range(outputs)
        ]
        return jnp.stack(found, axis=1)

    def _summed(self, images: Array) -> Array:
        """Makes batches of the channels: [C, H, W, groups * N] -> [N, H, W, ...]."""
        channels, height, width, _ = images.shape
        images = images.reshape(channels, height, width, self.groups, -1)
        return images.transpose(4, 1, 2, 3, 0).reshape(
            -1, height, width, self.groups * channels
        )

    def geometry_and_size(self) -> tuple[Geometry, Pair]:
        """Returns those of the convolution whose outputs or gradient this form is."""
        groups = max(self.groups, self.batch_groups)
        dilated = self.lhs_dilation != (1, 1)
        images, kernel, outputs = self.images[1:3], self.kernel[:2], self.outputs[1:3]
        before = [pads[0] for pads in self.padding]
        if not self.sums_over_images and not dilated:
            geometry = Geometry(self.strides, self.padding, self.rhs_dilation, groups)
            return geometry, kernel
        if not self.sums_over_images:
            # y[u] = sum_j x[a] w[j] over u + d j - p = s a, with j = K - 1 - i
            before = _reversed(before, self.rhs_dilation, kernel)
            steps = self.lhs_dilation, self.rhs_dilation
            return _geometry(outputs, images, kernel, *steps, before, groups), kernel
        if not dilated:
            geometry = _geometry(
                images, kernel, outputs, self.rhs_dilation, self.strides, before, groups
            )
            return geometry, outputs
        # y[i] = sum_u x[u] w[s u - t i + p]
        before = _reversed(before, self.strides, outputs)
        geometry = _geometry(
            kernel, images, outputs, self.lhs_dilation, self.strides, before, groups
        )
        return geometry, outputs


def _without_first_axis(form: Form) -> Form:
    return dataclasses.replace(
        form,
        images=(form.images[0], *form.images[2:]),
        kernel=form.kernel[1:],
        outputs=(form.outputs[0], *form.outputs[2:]),
        strides=form.strides[1:],
        padding=form.padding[1:],
        lhs_dilation=form.lhs_dilation[1:],
        rhs_dilation=form.rhs_dilation[1:],
    )


def transposed(kernel: Array, groups: int) -> Array:
    """Reverses taps and exchanges the channels of each group with its features."""
    rows, columns, inputs, _ = kernel.shape
    kernel = jnp.flip(kernel, (0, 1)).reshape(rows, columns, inputs, groups, -1)
    return kernel.transpose(0, 1, 4, 3, 2).reshape(rows, columns, -1, groups * inputs)


def _reversed(before: list[int], steps: tuple, lengths: tuple) -> list[int]:
    """Returns the zeros before the image when the taps are reversed."""
    return [
        step * (length - 1) - first
        for first, step, length in zip(before, steps, lengths, strict=True)
    ]


def _geometry(
    images: tuple,
    outputs: tuple,
    kernel: tuple,
    strides: tuple,
    dilations: tuple,
    before: list[int],
    groups: int,
) -> Geometry:
    """Returns the geometry with outputs of just this size."""
    pads = [
        (first, (out - 1) * stride + (taps - 1) * dilation + 1 - length - first)
        for first, out, stride, taps, dilation, length in zip(
            before, outputs, strides, kernel, dilations, images, strict=True
        )
    ]
    return Geometry(strides, tuple(pads), dilations, groups)


NATIVE = Computing(
    lambda x, w, geometry: untile(primitives.convolve(tile(x), w, geometry), len(x)),
    lambda dy, w, size, geometry: untile(
        primitives.input_gradient(tile(dy), w, size, geometry), len(dy)
    ),
    lambda x, dy, size, geometry: primitives.kernel_gradient(
        tile(x), tile(dy), size, geometry, len(x)
    ),
    lambda geometry, size: None,
)


# In the order of axes that XLA is fast with also inside a loop; forward passes alone.
XLA = NATIVE._replace(convolve=primitives.convolve_xla)


def _product(images: Array, kernel: Array, geometry: Geometry) -> Array:
    zero = jnp.zeros((), images.dtype)
    pads = [(0, 0, 0), *((*pair, 0) for pair in geometry.padding), (0, 0, 0)]
    padded = lax.pad(images, zero, pads)
    return conv2d_product(padded, kernel, geometry.strides[0], 0)


def _product_input_gradient(
    grad: Array, kernel: Array, size: Pair, geometry: Geometry
) -> Array:
    zeros = jnp.zeros((len(grad), *size, kernel.shape[2]), grad.dtype)
    return jax.vjp(lambda x: _product(x, kernel, geometry), zeros)[1](grad)[0]


def _product_kernel_gradient(
    images: Array, grad: Array, size: Pair, geometry: Geometry
) -> Array:
    zeros = jnp.zeros((*size, images.shape[3], grad.shape[3]), grad.dtype)
    return jax.vjp(lambda w: _product(images, w, geometry), zeros)[1](grad)[0]


def _product_problem(geometry: Geometry, size: Pair) -> str | None:
    if geometry.groups > 1:
        return "it has groups"
    if geometry.dilations != (1, 1):
        return "its kernel is dilated"
    if size[0] != size[1] or geometry.strides[0] != geometry.strides[1]:
        return "it is not square"
    return None


PRODUCT = Computing(
    _product, _product_input_gradient, _product_kernel_gradient, _product_problem
)
