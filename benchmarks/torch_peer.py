"""The same networks and the same training step in PyTorch, to measure against.

    python -m benchmarks.torch_peer VARIANT BATCH_SIZE TRAIN_IMAGES EVAL_IMAGES MODEL

answers the requests of ``experiments.benchmark``; of this project it needs ``turns``,
``torch_families`` and ``torch_strangers`` alone. It is written as a good user of
PyTorch would: data resident as uint8, augmentation in one vectorised pass, fused loss
and optimizer, ``channels_last``, ``torch.compile``.
"""

import itertools
import sys
import time
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_families import TORCH_FAMILIES
from benchmarks.torch_strangers import TORCH_STRANGERS
from benchmarks.turns import serve


class ConvReluNorm(nn.Module):
    """See ``cifar_flax.models.convbn``."""

    def __init__(self, inputs, outputs, stride=2, kernel_size=3):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x):
        """Maps [N, C, H, W] to [N, outputs, H', W']."""
        return self.norm(functional.relu(self.conv(x)))


class Residual(ConvReluNorm):
    """``x + f(x)``."""

    def forward(self, x):
        """Keeps the shape."""
        return x + super().forward(x)


class ConvRelu(nn.Module):
    """A strided convolution with ReLU."""

    def __init__(self, inputs, outputs, padding):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, padding)

    def forward(self, x):
        """Maps [N, C, H, W] to [N, outputs, H', W']."""
        return functional.relu(self.conv(x))


class Net(nn.Module):
    """Layers one after the other, a global max pool, a dense layer."""

    def __init__(self, layers, width, dropout_rate=0.0):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout_rate)
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        """Maps images [N, C, H, W] to logits."""
        return self.head(self.dropout(self.layers(x).amax((2, 3))))


class SimpleNet(nn.Module):
    """See ``cifar_flax.models.simplenet``."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(3072, 40)
        self.head = nn.Linear(40, 10)

    def forward(self, x):
        """Maps images [N, C, H, W] to logits."""
        x = x.permute(0, 2, 3, 1).flatten(1)  # the order of [H, W, C]
        return self.head(functional.relu(self.hidden(x)))


class Airbench(nn.Module):
    """See ``cifar_flax.models.airbench``."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 24, 2), nn.GELU()]
        inputs = 24
        for width in (64, 256, 256):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False)]
            layers += [nn.MaxPool2d(2), make_norm(width), nn.GELU()]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False)]
            layers += [make_norm(width), nn.GELU()]
            inputs = width
        self.layers = nn.Sequential(*layers, nn.MaxPool2d(3), nn.Flatten())
        self.head = nn.Linear(inputs, 10, bias=False)
        self.divisor = 9.0

    @property
    def whiten(self) -> Any:
        """The first convolution."""
        return self.layers[0]

    def forward(self, x):
        """Maps images [N, 3, 32, 32] to logits."""
        return self.head(self.layers(x)) / self.divisor


def make_norm(width: int) -> nn.BatchNorm2d:
    """Batch norm that keeps 0.6 of its statistics, with a bias and no scale."""
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def make_network(name: str) -> nn.Module:
    """The network of a name that the benchmark knows."""
    if name == "airbench":
        return Airbench()
    for known in (TORCH_FAMILIES, TORCH_STRANGERS):
        if name in known:
            return known[name]()
    if name == "stranger":
        name = "convbn"
    if name == "simplenet":
        return SimpleNet()
    if name in ("convnet", "convnet2"):
        widths = [3, 20, 40, 80]
        padding = 1 if name == "convnet2" else 0
        pairs = itertools.pairwise(widths)
        return Net([ConvRelu(a, b, padding) for a, b in pairs], 80)
    wide = name == "resnet2"
    widths = [16, 32, 64, 128, 256] if wide else [10, 20, 40, 80, 160]
    layers = [ConvReluNorm(3, 16, 1, 7) if wide else nn.Conv2d(3, 10, 5, padding=2)]
    for a, b in itertools.pairwise(widths):
        layers.append(ConvReluNorm(a, b))
        if name == "convbn2":
            layers.append(ConvReluNorm(b, b, 1))
        if name in ("resnet", "resnet2"):
            layers += [Residual(b, b, 1), Residual(b, b, 1)]
    return Net(layers, widths[-1], 0.2 if wide else 0.0)


def move(
    network: nn.Module, device: str, memory_format: torch.memory_format
) -> nn.Module:
    """Moves a network to a device, with its kernels in a memory format."""
    to: Any = network.to  # the types of PyTorch do not know this use
    return to(device, memory_format=memory_format)


def compiled(network: nn.Module) -> nn.Module:
    """Compiles a network; the result is a module, which PyTorch's types do not say."""
    module: Any = torch.compile(network)
    return module


class PeerTrainer:
    """Trains a network on random images; only its speed is of interest."""

    def __init__(
        self, name: str, variant: str, batch_size: int, images: int, device: str
    ):
        """Makes network, data and optimizer.

        Args:
          name: of the model.
          variant: ``eager`` (NCHW), ``channels_last`` or ``compile`` (the latter and
            ``torch.compile``).
          batch_size: images in a step.
          images: number of images.
          device: of PyTorch.
        """
        torch.manual_seed(0)
        self.batch_size, self.device = batch_size, device
        self.format = (
            torch.contiguous_format if variant == "eager" else torch.channels_last
        )
        network = move(make_network(name), device, self.format)
        self.network = compiled(network) if variant == "compile" else network
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=0.9, fused=True
        )
        shape = (images, 40, 40, 3)
        self.padded = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        self.labels = torch.randint(0, 10, (images,), device=device)

    def batch(self):
        """Random crops and flips of random images, normalised."""
        count, device = self.batch_size, self.device
        indices = torch.randint(0, len(self.padded), (count,), device=device)
        offsets = torch.randint(0, 9, (2, count, 1), device=device)
        flips = torch.rand((count, 1), device=device) < 0.5
        steps = torch.arange(32, device=device)
        rows = offsets[0] + steps
        columns = offsets[1] + torch.where(flips, 31 - steps, steps)
        images = self.padded[
            indices[:, None, None], rows[:, :, None], columns[:, None, :]
        ]
        return self.normalise(images), self.labels[indices]

    def normalise(self, images):
        """uint8 [N, H, W, C] to float32 [N, C, H, W] of the network's layout."""
        images = images.permute(0, 3, 1, 2).float() * (1 / (255 * 0.25)) - 0.5 / 0.25
        return images.contiguous(memory_format=self.format)

    def train(self, steps: int) -> float:
        """Trains; returns the seconds a step took."""
        self.network.train()
        start = time.perf_counter()
        for _ in range(steps):
            images, labels = self.batch()
            self.optimizer.zero_grad()
            loss = functional.cross_entropy(self.network(images), labels)
            loss.backward()
            self.optimizer.step()
        loss.item()  # waits for an accelerator
        return (time.perf_counter() - start) / steps

    def evaluate(self, count: int, batch_size: int = 500) -> float:
        """Computes logits of some images; returns the seconds."""
        self.network.eval()
        images = self.padded[:count, 4:36, 4:36]
        start = time.perf_counter()
        with torch.inference_mode():
            logits = [
                self.network(self.normalise(images[first : first + batch_size]))
                for first in range(0, count, batch_size)
            ]
            torch.cat(logits).argmax(1).cpu()
        return time.perf_counter() - start


class Theirs:
    """A trainer that learns how many steps a second takes."""

    def __init__(
        self,
        name: str,
        variant: str,
        batch_size: int,
        train_images: int,
        eval_images: int,
    ):
        """Makes it."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        count = max(train_images, eval_images)
        self.trainer = PeerTrainer(name, variant, batch_size, count, device)
        self.images = eval_images

    def ready(self) -> dict[str, float | str]:
        """Compiles."""
        start = time.perf_counter()
        self.trainer.train(2)
        self.evaluate()
        compiled = time.perf_counter() - start
        again = time.perf_counter()
        self.steps = max(1, round(1 / self.trainer.train(4)))
        warm = time.perf_counter() - again
        seconds = max(0.0, compiled - warm)
        return {"compile_seconds": seconds, "version": torch.__version__}

    def train(self) -> float:
        """Seconds a step, over about a second."""
        return self.trainer.train(self.steps)

    def evaluate(self) -> float:
        """Seconds for the logits of the images."""
        return self.trainer.evaluate(self.images)


if __name__ == "__main__":
    variant, *sizes, model = sys.argv[1:]
    peer = Theirs(model, variant, *map(int, sizes))
    serve({"ready": peer.ready, "train": peer.train, "evaluate": peer.evaluate})
