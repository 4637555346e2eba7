"""The recipes that have a name.

``lesson`` and ``original`` are for the lesson's models, ``modern`` is for any model,
and the others are for ``airbench``: the published recipe, and shorter ones.
"""

import dataclasses
from typing import Any

import numpy as np

from cifar_flax.data.augment import Augmentation
from cifar_flax.training.optimizers import Group
from cifar_flax.training.phases import Constant, Linear, OneCycle, Sgdr
from cifar_flax.training.recipes import Recipe

_RESIDUAL = (Constant(1e-2, 2), Sgdr(1e-2, 3, 1, 2), Sgdr(1e-2, 8, 4))

LESSON: dict[str, Recipe] = {
    "simplenet": Recipe((Constant(1e-2, 2), Sgdr(1e-2, 2))),
    "convnet": Recipe((Constant(1e-1, 2), Sgdr(1e-1, 4))),
    "convnet2": Recipe((Constant(1e-1, 2), Sgdr(1e-1, 2))),
    "convbn": Recipe((Constant(3e-2, 2), Sgdr(1e-1, 4))),
    "convbn2": Recipe((Constant(1e-2, 2), Sgdr(1e-2, 2))),
    "resnet": Recipe(_RESIDUAL, weight_decay=1e-5),
    "resnet2": Recipe(_RESIDUAL, weight_decay=1e-6),
}

# The lesson's library does more than its recipes say: each fit starts with a momentum
# buffer of zeros, the first 5 % of a fit's first cycle have a hundredth of the rate,
# the offsets of a crop end one pixel earlier, and batch norm evaluates with the
# statistics of the last training batch.
_ORIGINAL_SLOW_START = 0.05
_ORIGINAL_BN_MOMENTUM = 0.0


def _original(recipe: Recipe) -> Recipe:
    phases = tuple(
        dataclasses.replace(phase, slow_start=_ORIGINAL_SLOW_START)
        if isinstance(phase, Sgdr)
        else phase
        for phase in recipe.phases
    )
    augmentation = dataclasses.replace(recipe.augmentation, last_offset=False)
    return dataclasses.replace(
        recipe, phases=phases, restart_momentum=True, augmentation=augmentation
    )


ORIGINAL = {model: _original(recipe) for model, recipe in LESSON.items()}

# For any network: one cycle, Muon, whose steps have a size that suits every network,
# and little augmentation, because a short training sees each image only a few times.
MODERN = Recipe(
    (OneCycle(0.03, 6),),
    batch_size=256,
    optimizer="muon",
    weight_decay=0.05,
    decay="kernels",
    groups=(Group("(bias|scale)$", rate=0.3),),
    label_smoothing=0.1,
    augmentation=Augmentation(padding=2, padding_mode="reflect", alternate=True),
)


def _rise_and_fall(
    rate: float, top: float, final: float, *parts: tuple[float, dict[str, Any]]
) -> tuple[Linear, ...]:
    """Makes phases whose rate rises from a fifth of the highest and falls, linearly.

    Args:
      rate: the highest rate.
      top: the epoch of the highest rate; it must lie in the first part.
      final: share of the rate at the end.
      *parts: epochs, and what a phase changes besides the rate.
    """
    total = sum(epochs for epochs, _ in parts)
    phases = [Linear(rate, top, start=0.2, end=1.0, **parts[0][1])]
    begin, end = top, 0.0
    for epochs, fields in parts:
        end += epochs
        shares = np.interp([begin, end], [top, total], [1.0, final])
        first, last = shares.tolist()
        phases.append(Linear(rate, end - begin, start=first, end=last, **fields))
        begin = end
    return tuple(phases)


# The settings of airbench94 (Jordan 2024, https://arxiv.org/abs/2404.00498). Its rate
# of 11.5 for 1,024 examples is the length of a step on a constant gradient, including
# the factor 1 + 1 / 0.15 of Nesterov's momentum of 0.85; its decay of 0.0153 has the
# same unit. 9.9 epochs of 48 batches are 476 steps, rounded up. The rate rises from 0.2
# of the highest over 23 % of them, rounded down, and falls to 0.07 of it. The bias of
# the first layer is trained for 3 epochs, and then Lookahead begins.
AIRBENCH94 = Recipe(
    _rise_and_fall(
        *(1.5, 109 / 48, 0.07, (3, {"at_start": True})),
        (476 / 48 - 3, {"at_start": True, "freeze": "whiten/bias"}),
    ),
    batch_size=1024,
    momentum=0.85,
    nesterov=True,
    weight_decay=0.0153 / 11.5,
    groups=(
        Group("whiten/kernel", frozen=True),
        Group("norm.*bias", rate=64, decay=1 / 64),
    ),
    label_smoothing=0.2,
    ema=0.95,
    lookahead=5,
    lookahead_start=3,
    augmentation=Augmentation(padding=2, padding_mode="reflect", alternate=True),
    tta="multicrop",
)


def _fast(*parts: tuple[float, int | None]) -> Recipe:
    """Makes a short recipe of Muon that trains on small images first.

    The rate rises over a fifth of the epochs and then falls to 0.

    Args:
      *parts: epochs, and the height and width of their images; None: not resized.
    """
    top = 0.2 * sum(epochs for epochs, _ in parts)
    sizes = ((epochs, {"image_size": size}) for epochs, size in parts)
    return Recipe(
        _rise_and_fall(0.06, top, 0.0, *sizes),
        batch_size=256,
        optimizer="muon",
        options={"beta": 0.9, "ns_steps": 3},
        weight_decay=0.1,
        decay="kernels",
        groups=(Group("whiten/kernel", frozen=True),),
        label_smoothing=0.2,
        augmentation=AIRBENCH94.augmentation,
        tta="multicrop",
    )


# A name is the test accuracy in whole per cent on CIFAR-10 after a JPEG encoding, which
# costs this network 3.5 points; see docs/results.md.
FAST = {
    "fast85": _fast((1, 17), (1, None)),
    "fast87": _fast((2, 17), (2, None)),
    "fast89": _fast((4, 17), (4, None)),
    "fast90": _fast((4, 17), (5, 24), (5, None)),
}

_AIRBENCH = {"airbench94": AIRBENCH94, **FAST}

NAMES = ("lesson", "original", "modern", *_AIRBENCH)


def own_name(model: str) -> str:
    """Returns the name of a model's default recipe; ``lesson`` for a custom model."""
    return "airbench94" if model == "airbench" else "lesson"


def recipe_for(name: str, model: str) -> Recipe | None:
    """Returns a named recipe for a model; None if it is not for this model.

    Args:
      name: one of ``NAMES``.
      model: name of the model; any other text for a custom model.
    """
    if name == "modern":
        epochs = LESSON[model].epochs if model in LESSON else MODERN.epochs
        return MODERN.stretched(epochs)
    if name in ("lesson", "original"):
        return (LESSON if name == "lesson" else ORIGINAL).get(model)
    return _AIRBENCH[name] if model == "airbench" else None


def models_of(name: str) -> list[str]:
    """Returns the models that a recipe is for."""
    return [*LESSON] if name in ("lesson", "original") else ["airbench"]


def bn_momentum_for(name: str) -> float | None:
    """Returns the momentum of batch norm that a recipe asks for; None: the model's."""
    return _ORIGINAL_BN_MOMENTUM if name == "original" else None
