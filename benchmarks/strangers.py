"""Networks of flax's own layers, as users write them who do not know this project.

Each has a peer of the same name in ``benchmarks.torch_strangers``, with the same
parameters and products. ConvMixer exists in three forms: ``FORMS``.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax


class Stranger(nn.Module):
    """The lesson's ``convbn``."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, 32, 32, C] to logits [N, 10]."""
        x = nn.Conv(10, (5, 5))(x)
        for width in (20, 40, 80, 160):
            x = nn.relu(nn.Conv(width, (3, 3), 2, padding=1, use_bias=False)(x))
            x = batch_norm(x, train)
        return nn.Dense(10)(x.max((1, 2)))


def batch_norm(x: jax.Array, train: bool) -> jax.Array:
    """Normalises each channel, as PyTorch's default does."""
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


def gelu(x: jax.Array) -> jax.Array:
    """Returns x times the normal distribution function of x, as PyTorch's default."""
    return nn.gelu(x, approximate=False)


def conv_norm(
    x: jax.Array,
    train: bool,
    features: int,
    size: int,
    stride: int = 1,
    groups: int = 1,
) -> jax.Array:
    """A convolution without bias and a batch norm; [N, H, W, C] to [N, H', W', F]."""
    conv = nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
    )
    return batch_norm(conv(x), train)


class ConvMixer(nn.Module):
    """Trockman and Kolter, 2022: depthwise 5x5 and 1x1 on patches of 2x2."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = batch_norm(gelu(nn.Conv(64, (2, 2), 2)(x)), train)
        for _ in range(4):
            depthwise = nn.Conv(64, (5, 5), feature_group_count=64)
            x = x + batch_norm(gelu(depthwise(x)), train)
            x = batch_norm(gelu(nn.Conv(64, (1, 1))(x)), train)
        return nn.Dense(10)(x.mean((1, 2)))


class MobileNet(nn.Module):
    """Howard et al., 2017: five pairs of a depthwise 3x3 and a 1x1."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = nn.relu(conv_norm(x, train, 32, 3))
        for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
            inputs = x.shape[-1]
            x = nn.relu(conv_norm(x, train, inputs, 3, stride, groups=inputs))
            x = nn.relu(conv_norm(x, train, width, 1))
        return nn.Dense(10)(x.mean((1, 2)))


class ResNeXt(nn.Module):
    """Xie et al., 2017: three bottlenecks whose 3x3 convolutions have 8 groups."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = nn.relu(conv_norm(x, train, 64, 3))
        for width, stride in ((128, 1), (256, 2), (512, 2)):
            y = nn.relu(conv_norm(x, train, width // 2, 1))
            y = nn.relu(conv_norm(y, train, width // 2, 3, stride, groups=8))
            y = conv_norm(y, train, width, 1)
            x = nn.relu(y + conv_norm(x, train, width, 1, stride))
        return nn.Dense(10)(x.mean((1, 2)))


class Dilated(nn.Module):
    """After each convolution of stride 2, two 3x3 convolutions of dilation 2."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = nn.relu(conv_norm(x, train, 32, 3))
        for width in (64, 128):
            x = nn.relu(conv_norm(x, train, width, 3, 2))
            for _ in range(2):
                conv = nn.Conv(width, (3, 3), kernel_dilation=2, use_bias=False)
                x = nn.relu(batch_norm(conv(x), train))
        return nn.Dense(10)(x.mean((1, 2)))


class Transposed(nn.Module):
    """An encoder of stride 2 and a decoder of transposed 4x4 convolutions."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        for width, stride in ((32, 1), (64, 2), (128, 2)):
            x = nn.relu(conv_norm(x, train, width, 3, stride))
        for width in (64, 32):
            up = nn.ConvTranspose(width, (4, 4), (2, 2), use_bias=False)
            x = nn.relu(batch_norm(up(x), train))
        return nn.Dense(10)(x.mean((1, 2)))


def mlp(x: jax.Array, width: int) -> jax.Array:
    """A hidden layer of this width; keeps the shape [..., C]."""
    return nn.Dense(x.shape[-1])(gelu(nn.Dense(width)(x)))


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7, a layer norm, and an MLP of four times the width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps the shape [N, H, W, C]."""
        width = x.shape[-1]
        y = nn.LayerNorm()(nn.Conv(width, (7, 7), feature_group_count=width)(x))
        scale = self.param("scale", nn.initializers.constant(1e-6), (width,))
        return x + scale * mlp(y, 4 * width)


class ConvNeXt(nn.Module):
    """Liu et al., 2022: patches of 2x2 and three stages of two blocks."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = nn.LayerNorm()(nn.Conv(48, (2, 2), 2)(x))
        for width in (48, 96, 192):
            if width > 48:
                x = nn.Conv(width, (2, 2), 2)(nn.LayerNorm()(x))
            for _ in range(2):
                x = ConvNeXtBlock()(x)
        return nn.Dense(10)(nn.LayerNorm()(x.mean((1, 2))))


class ViTBlock(nn.Module):
    """Attention of 4 heads, and an MLP of four times the width."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps the shape [N, patches, C]."""
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(nn.LayerNorm()(x))
        return x + mlp(nn.LayerNorm()(x), 4 * x.shape[-1])


class ViT(nn.Module):
    """Dosovitskiy et al., 2021: four blocks on patches of 4x4, without class token."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = nn.Conv(96, (4, 4), 4)(x)
        x = x.reshape(len(x), -1, 96)
        shape = (1, *x.shape[1:])
        x = x + self.param("positions", nn.initializers.normal(0.02), shape)
        for _ in range(4):
            x = ViTBlock()(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


class MixerBlock(nn.Module):
    """An MLP along the patches, and one along the channels."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Keeps the shape [N, patches, C]."""
        width = x.shape[-1]
        y = mlp(nn.LayerNorm()(x).swapaxes(1, 2), width // 2)
        x = x + y.swapaxes(1, 2)
        return x + mlp(nn.LayerNorm()(x), 4 * width)


class MLPMixer(nn.Module):
    """Tolstikhin et al., 2021: four blocks on patches of 4x4."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        x = nn.Conv(128, (4, 4), 4)(x)
        x = x.reshape(len(x), -1, 128)
        for _ in range(4):
            x = MixerBlock()(x)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


STRANGERS: dict[str, type[nn.Module]] = {
    "stranger": Stranger,
    "convmixer64": ConvMixer,
    "mobilenet": MobileNet,
    "resnext512": ResNeXt,
    "convnext48": ConvNeXt,
    "dilated": Dilated,
    "transposed": Transposed,
    "vit96": ViT,
    "mlp_mixer": MLPMixer,
}

LEARNING_RATE = 0.01

# Of the parameters, the running statistics, images [N, H, W, C] and labels [N]: returns
# the mean loss and the new statistics.
Loss = Callable[[Any, Any, jax.Array, jax.Array], tuple[jax.Array, Any]]

# Of a state, images and labels: returns the next state and the loss. It is a pure
# function, so that jax.jit and jax.lax.scan take it.
Step = Callable[[Any, jax.Array, jax.Array], tuple[Any, jax.Array]]


def make_step(loss_of: Loss) -> Step:
    """Returns a step of gradient descent."""

    def step(state: Any, images: jax.Array, labels: jax.Array) -> Any:
        params, stats = state["params"], state["batch_stats"]
        (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(
            params, stats, images, labels
        )
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return {"params": params, "batch_stats": stats}, loss

    return step


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean over the batch."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean()


def linen_convmixer(key: jax.Array) -> tuple[Any, Step]:
    """Returns the variables of ``ConvMixer`` and a step of training."""
    model = ConvMixer()

    def loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        logits, updated = model.apply(
            {"params": params, "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, labels), updated["batch_stats"]

    return model.init(key, jnp.zeros((1, 32, 32, 3)), train=False), make_step(loss)


class NnxConvMixer(nnx.Module):
    """``ConvMixer`` in nnx."""

    def __init__(self, rngs: nnx.Rngs):
        """Makes the layers in the order of their calls."""
        convs = [nnx.Conv(3, 64, (2, 2), 2, rngs=rngs)]
        for _ in range(4):
            convs += [
                nnx.Conv(64, 64, (5, 5), feature_group_count=64, rngs=rngs),
                nnx.Conv(64, 64, (1, 1), rngs=rngs),
            ]
        self.convs = nnx.List(convs)
        norms = [nnx.BatchNorm(64, momentum=0.9, rngs=rngs) for _ in convs]
        self.norms = nnx.List(norms)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to logits [N, 10]."""
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(gelu(conv(x)))
            x = x + y if number % 2 else y
        return self.head(x.mean((1, 2)))


def nnx_convmixer(key: jax.Array) -> tuple[Any, Step]:
    """Returns the state of ``NnxConvMixer`` and a step of training."""
    model = NnxConvMixer(nnx.Rngs(key))
    graph, *states = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
        model = nnx.merge(graph, params, stats, copy=True)
        value = cross_entropy(model(images), labels)
        return value, nnx.state(model, nnx.BatchStat)

    return dict(zip(("params", "batch_stats"), states, strict=True)), make_step(loss)


def lax_convmixer(key: jax.Array) -> tuple[Any, Step]:
    """Returns the state of ConvMixer in plain ``lax``, and a step of training."""
    shapes = [(2, 2, 3, 64), *4 * [(5, 5, 1, 64), (1, 1, 64, 64)]]
    keys = jax.random.split(key, 1 + len(shapes))
    draw = jax.nn.initializers.lecun_normal()
    zeros, ones = jnp.zeros(64), jnp.ones(64)
    kernels = [draw(one, shape) for one, shape in zip(keys[1:], shapes, strict=True)]
    params = {
        "convs": [{"kernel": kernel, "bias": zeros} for kernel in kernels],
        "norms": [{"scale": ones, "bias": zeros} for _ in kernels],
        "head": {"kernel": draw(keys[0], (64, 10)), "bias": jnp.zeros(10)},
    }
    stats = {"norms": [{"mean": zeros, "var": ones} for _ in kernels]}
    return {"params": params, "batch_stats": stats}, make_step(lax_loss)


def lax_loss(params: Any, stats: Any, images: jax.Array, labels: jax.Array) -> Any:
    """Returns the loss of ConvMixer and the new running statistics."""
    x, updated = images, []
    layers = zip(params["convs"], params["norms"], stats["norms"], strict=True)
    for number, (conv, norm, old) in enumerate(layers):
        y = lax.conv_general_dilated(
            x,
            conv["kernel"],
            window_strides=(1, 1) if number else (2, 2),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=64 if number % 2 else 1,
        )
        y = gelu(y + conv["bias"])
        mean = y.mean((0, 1, 2))
        var = (y * y).mean((0, 1, 2)) - mean * mean
        y = (y - mean) * (norm["scale"] * lax.rsqrt(var + 1e-5)) + norm["bias"]
        x = x + y if number % 2 else y
        new = {"mean": mean, "var": var}
        updated.append(jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new))
    logits = x.mean((1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    return cross_entropy(logits, labels), {"norms": updated}


# Each takes a key, and returns a state and a step of training.
FORMS: dict[str, Callable[[jax.Array], tuple[Any, Step]]] = {
    "linen": linen_convmixer,
    "nnx": nnx_convmixer,
    "lax": lax_convmixer,
}
