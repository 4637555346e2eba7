"""airbench94 in PyTorch: the training that ``benchmarks.torch_airbench`` runs.

It implements the method of Jordan 2024 (https://arxiv.org/abs/2404.00498) from the
paper and its published settings: 9.9 epochs of 48 batches of 1,024, rounded up to 476
steps, with the whitening layer, partial identities, Nesterov SGD with decoupled
settings, 64 times the rate for the biases of norms, Lookahead after three epochs,
alternating flips, translation by two pixels, and evaluation over six views. The data
stay on the device, and the network is ``channels_last``. In half precision, as it was
published, the parameters are of the type ``HALF``, and norms compute in float32.
``docs/results.md`` lists what differs from the published code.
"""

import math
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_peer import Airbench, compiled, move
from cifar_flax.data import Split

# Of the pixels of CIFAR-10, as published.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EPOCHS, BATCH_SIZE = 9.9, 1024
MOMENTUM, BIAS_SCALER = 0.85, 64.0
# The published rate 11.5 and decay 0.0153 are for the sum over 1,024 examples, and
# include the growth of a step by Nesterov's momentum. These are for the mean loss,
# without it.
GROWTH = 1 + 1 / (1 - MOMENTUM)
LEARNING_RATE, WEIGHT_DECAY = 11.5 / GROWTH, 0.0153 / GROWTH
WHITEN_BIAS_EPOCHS = 3
LOOKAHEAD, LOOKAHEAD_DECAY, LOOKAHEAD_EPOCH = 5, 0.95, 3
# A CPU has no convolutions of float16; this lets it try the program.
HALF = torch.float16 if torch.cuda.is_available() else torch.bfloat16


def initialise(network: Airbench, images: torch.Tensor) -> None:
    """Sets partial identities, and the whitening layer from normalised images."""
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
                module.reset_parameters()
        for convolution in convolutions[1:]:
            nn.init.dirac_(convolution.weight[: convolution.in_channels])
        patches = functional.unfold(images.float(), 2).transpose(1, 2).reshape(-1, 12)
        covariance = patches.T @ patches / len(patches)
        values, vectors = torch.linalg.eigh(covariance)
        filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
        whiten = network.whiten
        whiten.weight.copy_(torch.cat([filters, -filters]))
        whiten.weight.requires_grad_(False)
        whiten.bias.zero_()


def make_optimizer(network: Airbench, summed: int = 1) -> torch.optim.SGD:
    """Makes Nesterov SGD, with groups for the biases of norms and for the rest.

    Args:
      network: whose parameters to train.
      summed: number of images whose losses are summed; 1: the loss is their mean.
    """
    rate = LEARNING_RATE / summed
    biases = [m.bias for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    norms = {id(bias) for bias in biases}
    others = [p for p in network.parameters() if p.requires_grad and id(p) not in norms]
    groups = [
        {"params": params, "lr": one, "weight_decay": WEIGHT_DECAY / one, "peak": one}
        for params, one in ((biases, BIAS_SCALER * rate), (others, rate))
    ]
    return torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True, fused=True)


class Training:
    """Trains the network, once for each seed, with one compiled program.

    Attributes:
      per_epoch: number of steps in an epoch.
      total: number of steps of a training.
      slow: the average of Lookahead; None: there is none yet.
    """

    def __init__(
        self,
        split: Split,
        is_compiled: bool,
        is_half: bool = False,
        epochs: float = EPOCHS,
        batch_size: int | None = None,
    ):
        """Takes the training images."""
        torch.backends.cudnn.allow_tf32 = False  # as in matrix products
        torch.backends.cudnn.benchmark = is_half  # as published
        self.dtype = HALF if is_half else torch.float32
        images, labels = split.images, split.labels
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.mean = torch.tensor(MEAN, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(STD, device=self.device).view(1, 3, 1, 1)
        self.labels = torch.tensor(labels, dtype=torch.int64, device=self.device)
        self.images = self.normalise(images)
        self.padded = functional.pad(self.images, (2,) * 4, "reflect")
        self.size = min(batch_size or BATCH_SIZE, len(images))  # of a trial on few
        self.per_epoch = len(images) // self.size
        self.total = math.ceil(self.per_epoch * epochs)
        # Gradients of a mean would be too small for half precision.
        self.summed = self.size if is_half else 1
        self.network = network = Airbench().to(self.dtype)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        move(network, self.device, torch.channels_last)
        initialise(network, self.images[:256])
        self.compiled = compiled(network) if is_compiled else network

    def normalise(self, images: np.ndarray) -> torch.Tensor:
        """Normalises uint8 [N, H, W, C] to [N, C, H, W] of the network's type."""
        pixels = torch.tensor(images, device=self.device).permute(0, 3, 1, 2)
        pixels = (pixels.float() / 255 - self.mean) / self.std
        return pixels.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def batch(self, indices: torch.Tensor, flips: torch.Tensor) -> torch.Tensor:
        """Returns images, moved by up to two pixels and mirrored according to flips."""
        count = len(indices)
        moved = torch.randint(0, 5, (2, count, 1), device=self.device)
        steps = torch.arange(32, device=self.device)
        columns = torch.where(flips[indices, None], 31 - steps, steps)
        rows, columns = moved[0] + steps, moved[1] + columns
        pixels = self.padded[
            indices[:, None, None], :, rows[:, :, None], columns[:, None, :]
        ]
        return pixels.permute(0, 3, 1, 2)  # a view that is channels_last

    def begin(self) -> None:
        """Makes new parameters and a new optimizer."""
        initialise(self.network, self.images[:5000])
        self.network.whiten.bias.requires_grad_(True)
        self.optimizer = make_optimizer(self.network, self.summed)
        self.slow: dict[str, torch.Tensor] | None = None
        self.compiled.train()

    def warm_up(self, test: Split) -> float:
        """Compiles and tries everything; returns the seconds."""
        start = time.perf_counter()
        self.train(0, most=2)
        self.accuracy(Split(test.images[:500], test.labels[:500]))
        return time.perf_counter() - start

    def train(self, seed: int, most: float = math.inf) -> float:
        """Trains from the start for at most ``most`` steps; returns the seconds."""
        torch.manual_seed(seed)
        start = time.perf_counter()
        self.begin()
        count, size = len(self.images), self.size
        flips = torch.rand(count, device=self.device) < 0.5
        for step in range(int(min(self.total, most))):
            place = step % self.per_epoch
            if place == 0:
                order = torch.randperm(count, device=self.device)
                flips = ~flips
            indices = order[place * size : (place + 1) * size]
            self.step(step, self.batch(indices, flips), self.labels[indices])
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def step(self, step: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes a step, counted from 0, on a batch of normalised images."""
        total, optimizer, network = self.total, self.optimizer, self.network
        epoch, done = step // self.per_epoch, step + 1
        network.whiten.bias.requires_grad_(epoch < WHITEN_BIAS_EPOCHS)
        share = np.interp(step, [0, int(0.23 * total), total], [0.2, 1, 0.07])
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * float(share)
        optimizer.zero_grad(set_to_none=True)
        logits = self.compiled(images)
        loss = functional.cross_entropy(logits, labels, label_smoothing=0.2)
        (self.summed * loss).backward()
        optimizer.step()
        if epoch >= LOOKAHEAD_EPOCH and done % LOOKAHEAD == 0:
            keep = LOOKAHEAD_DECAY**LOOKAHEAD * (done / total) ** 3
            if self.slow is None:
                self.slow = {n: v.clone() for n, v in network.state_dict().items()}
            else:
                look_ahead(network, self.slow, keep)
        ends = done % self.per_epoch == 0 or done == total
        if self.slow is not None and ends:
            look_ahead(network, self.slow, 1.0)

    def accuracy(self, split: Split) -> float:
        """Returns the share of correctly classified images, over six views of each."""
        self.compiled.eval()
        right, images, labels = 0, split.images, split.labels
        with torch.inference_mode():
            for first in range(0, len(images), 500):
                some = self.normalise(images[first : first + 500])
                padded = functional.pad(some, (1,) * 4, "reflect")
                views = [(0.5, some)]
                views += [(0.25, padded[:, :, d : d + 32, d : d + 32]) for d in (0, 2)]
                logits = sum(
                    weight * (self.compiled(one) + self.compiled(one.flip(3)))
                    for weight, one in views
                )
                found = logits.argmax(1).cpu().numpy()
                right += int((found == labels[first : first + 500]).sum())
        return right / len(images)


def look_ahead(network: nn.Module, slow: dict[str, torch.Tensor], keep: float) -> None:
    """Updates the slow average, and sets the network to it."""
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                slow[name].lerp_(value, 1 - keep)
                value.copy_(slow[name])
