"""airbench94 with Muon in PyTorch, as published, for ``benchmarks.torch_airbench``.

The settings are those of ``airbench94_muon.py`` in the repository
KellerJordan/cifar10-airbench: 8 epochs of 25 batches of 2,000, the sum of the losses of
a batch, and rates that fall linearly to 0, that of the first layer's bias within three
epochs. The kernels of 3x3 get Muon with Nesterov's momentum 0.6, three iterations in
bfloat16, and the norm sqrt(F) before each step; the other parameters get SGD. Data,
network, crops, flips and the six views of the evaluation are those of
``torch_training``. One thing differs from the published code: ``torch.compile`` has its
default mode.
"""

import torch
from torch import nn
from torch.nn import functional

from benchmarks.torch_training import Training, initialise
from cifar_flax.data import Split

EPOCHS, BATCH_SIZE, WHITEN_BIAS_EPOCHS = 8, 2_000, 3
BIAS_RATE, HEAD_RATE, FILTER_RATE = 0.053, 0.67, 0.24
DECAY = 2e-6 * BATCH_SIZE  # of a step, whatever its rate
MOMENTUM, FILTER_MOMENTUM, ITERATIONS = 0.85, 0.6, 3


def orthogonalised(gradient: torch.Tensor) -> torch.Tensor:
    """Moves the singular values of a matrix [F, N] towards 1, in bfloat16.

    Three times ``X <- a X + (b A + c A A) X`` with ``A = X X^T``, from ``G / |G|`` on.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradient.bfloat16()
    x = x / (x.norm() + 1e-7)
    is_tall = x.size(0) > x.size(1)
    x = x.T if is_tall else x
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


class MuonTraining(Training):
    """Trains the network with Muon; see ``Training`` for the rest."""

    def __init__(self, split: Split, is_compiled: bool, is_half: bool = False):
        """Takes the training images."""
        super().__init__(split, is_compiled, is_half, EPOCHS, BATCH_SIZE)
        self.summed = self.size
        self.network.divisor = float(self.network.head.in_features)
        self.orthogonalised = (
            torch.compile(orthogonalised) if is_compiled else orthogonalised
        )

    def begin(self) -> None:
        """Makes new parameters and new optimizers."""
        network = self.network
        initialise(network, self.images[:5000])
        with torch.no_grad():
            network.head.weight.div_(network.head.weight.std())
        network.whiten.bias.requires_grad_(True)
        modules = list(network.modules())
        norms = [m.bias for m in modules if isinstance(m, nn.BatchNorm2d)]
        groups = [
            {"params": params, "lr": rate, "weight_decay": DECAY / rate, "peak": rate}
            for params, rate in (
                ([network.whiten.bias], BIAS_RATE),
                (norms, BIAS_RATE),
                ([network.head.weight], HEAD_RATE),
            )
        ]
        self.optimizer = torch.optim.SGD(
            groups, momentum=MOMENTUM, nesterov=True, fused=True
        )
        kernels = [m.weight for m in modules if isinstance(m, nn.Conv2d)]
        kernels = [kernel for kernel in kernels if kernel.requires_grad]
        self.buffers = [(kernel, torch.zeros_like(kernel)) for kernel in kernels]
        self.compiled.train()

    def step(self, step: int, images: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes a step, counted from 0, on a batch of normalised images."""
        network = self.network
        whitening = WHITEN_BIAS_EPOCHS * self.per_epoch
        network.whiten.bias.requires_grad_(step < whitening)
        first, *others = self.optimizer.param_groups
        first["lr"] = first["peak"] * max(0.0, 1 - step / whitening)
        for group in others:
            group["lr"] = group["peak"] * (1 - step / self.total)
        network.zero_grad(set_to_none=True)
        logits = self.compiled(images)
        loss = functional.cross_entropy(
            logits, labels, label_smoothing=0.2, reduction="sum"
        )
        loss.backward()
        self.optimizer.step()
        self.step_kernels(FILTER_RATE * (1 - step / self.total))

    @torch.no_grad()
    def step_kernels(self, rate: float) -> None:
        """Takes a step of Muon."""
        for kernel, buffer in self.buffers:
            assert kernel.grad is not None
            buffer.mul_(FILTER_MOMENTUM).add_(kernel.grad)
            ahead = kernel.grad.add(buffer, alpha=FILTER_MOMENTUM)
            update = self.orthogonalised(ahead.reshape(len(ahead), -1))
            kernel.mul_(len(kernel) ** 0.5 / kernel.norm())
            kernel.add_(update.view(kernel.shape).to(kernel.dtype), alpha=-rate)
