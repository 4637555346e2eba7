"""The fields of ``Recipe``: name, type, valid values, help and default of each."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cifar_flax.data.augment import Augmentation, Tta
from cifar_flax.definitions import (
    MAX_STEPS,
    SHARE,
    Definition,
    Hyper,
    Valid,
    between,
    float32,
    whole,
)
from cifar_flax.training.losses import LOSSES, Loss
from cifar_flax.training.optimizers import Average, Factory, Group, Options, names
from cifar_flax.training.phases import Phase


def _is_several(phases: Any) -> bool:
    return isinstance(phases, tuple | list) and len(phases) > 0


def _is_sequence(groups: Any) -> bool:
    return isinstance(groups, tuple | list)


def _are_weights(weights: Any) -> bool:
    if isinstance(weights, str):
        return weights == "balanced"
    numbers = isinstance(weights, tuple | list) and all(map(float32().test, weights))
    return numbers and any(weights)


def _is_mapping(options: Any) -> bool:
    return isinstance(options, Mapping)


@dataclasses.dataclass(frozen=True)
class RecipeFields(Definition):
    """The hyperparameters of a recipe."""

    phases: Annotated[
        tuple[Phase, ...],
        Hyper(
            "One or more phases.",
            Valid(_is_several, "a tuple of one or more phases", tuple),
            flag=False,
        ),
    ]
    batch_size: Annotated[int, Hyper("Images in a step of each seed.", whole())] = 256
    optimizer: Annotated[
        str | Factory,
        Hyper(
            "Name of an optimizer of optax, or your own as FILE.py:NAME or "
            "MODULE:NAME, a function that makes it from the schedule.",
            choices=names,
            own=True,
        ),
    ] = "sgd"
    options: Annotated[
        Options,
        Hyper(
            """Options of the optimizer as JSON, such as '{"b1": 0.95}'.""",
            Valid(_is_mapping, "a dictionary"),
            flag="optimizer_args",
            more="Its rate and weight decay are not among them.",
        ),
    ] = dataclasses.field(default_factory=dict, hash=False)
    momentum: Annotated[float, Hyper("Momentum of SGD; 0: none.", SHARE)] = 0.9
    nesterov: Annotated[bool, Hyper("Use Nesterov's momentum in SGD.")] = False
    restart_momentum: Annotated[
        bool,
        Hyper("Each phase starts SGD with a momentum buffer of zeros.", flag=False),
    ] = False
    weight_decay: Annotated[
        float,
        Hyper(
            "Weight decay: decoupled if the optimizer supports it, else an L2 penalty.",
            float32(),
            more="See ``optimizers.make_optimizer``.",
        ),
    ] = 0.0
    decay: Annotated[
        Literal["all", "kernels"],
        Hyper(
            "Parameters that decay: all, or only kernels, without norms and biases.",
            more="Kernels are the parameters with two or more axes.",
        ),
    ] = "all"
    groups: Annotated[
        tuple[Group, ...],
        Hyper(
            "Groups of parameters with their own rate and decay.",
            Valid(_is_sequence, "a tuple of Groups", tuple),
            flag=False,
            more="A parameter belongs to the first group that matches.",
        ),
    ] = ()
    freeze_norms: Annotated[
        bool,
        Hyper(
            "Batch norms with frozen parameters normalise with their running "
            "statistics and do not update them.",
            flag=False,
        ),
    ] = True
    clip_norm: Annotated[
        float | None,
        Hyper("Scale gradients with a larger norm to this.", float32(1e-30)),
    ] = None
    accumulate: Annotated[
        int,
        Hyper(
            "Number of steps whose mean gradient makes one optimizer step.",
            whole(),
            more="The rates are those of a batch that is larger by this factor.",
        ),
    ] = 1
    ema: Annotated[
        float,
        Hyper(
            "Evaluate a moving average of the variables that keeps this share per "
            "step; 0: no average.",
            SHARE,
        ),
    ] = 0.0
    lookahead: Annotated[
        int,
        Hyper(
            "Continue from the moving average every so many steps; 0: never.",
            whole(0),
            more="Zhang et al. 2019, https://arxiv.org/abs/1907.08610; see "
            "``steps.lookahead_share``.",
        ),
    ] = 0
    lookahead_start: Annotated[
        float | None,
        Hyper(
            "Epoch from which the average of Lookahead is formed.",
            between(0, MAX_STEPS),
            flag=False,
            more="Until then the average is a copy of the variables, and afterwards "
            "training also continues from it at the end of every epoch (Jordan 2024). "
            "None: from the first step, and not at the ends of epochs.",
        ),
    ] = None
    average: Annotated[
        str | Average | None,
        Hyper(
            "Your own function, as FILE.py:NAME or MODULE:NAME, that gives the "
            "variables to evaluate after each step.",
            own=True,
            more="It takes the variables that it gave before (at first the initial "
            "ones), those that were trained, the state of the optimizer, and the "
            "number of steps done. None: with an optimizer such as "
            "``schedule_free_adamw``, the variables that it asks for.",
        ),
    ] = None
    loss: Annotated[
        str | Loss,
        Hyper(
            "Loss: cross_entropy, focal, or your own as FILE.py:NAME or MODULE:NAME.",
            choices=lambda: tuple(LOSSES),
            own=True,
            more="A function of the logits [B, K] and a ``Batch`` gives one value for "
            "each image, [B]; see ``losses``.",
        ),
    ] = "cross_entropy"
    loss_args: Annotated[
        Options,
        Hyper(
            """Arguments of the loss as JSON, such as '{"gamma": 3}'.""",
            Valid(_is_mapping, "a dictionary"),
        ),
    ] = dataclasses.field(default_factory=dict, hash=False)
    class_weights: Annotated[
        tuple[float, ...] | Literal["balanced"] | None,
        Hyper(
            "Factor of the loss for each class, such as 1,2,0.5; balanced: inverse to "
            "the number of its training images.",
            Valid(
                _are_weights,
                "balanced, or a number for each class, 0 or more and not all 0",
                lambda value: (
                    value if value == "balanced" else tuple(map(float, value))
                ),
            ),
            more="Balanced weights are N / (K n_k), with a mean of 1 over the images.",
        ),
    ] = None
    label_smoothing: Annotated[
        float, Hyper("Share of the target that is spread over all classes.", SHARE)
    ] = 0.0
    augmentation: Annotated[
        Augmentation,
        Hyper(
            "Of the training images.",
            Valid(lambda value: isinstance(value, Augmentation), "an Augmentation"),
            flag=False,
        ),
    ] = Augmentation()  # noqa: RUF009 (frozen)
    tta: Annotated[
        Tta,
        Hyper(
            "Test-time augmentation: evaluate the mean logits of several views. flip: "
            "the image and its mirror image; multicrop: these, also moved by a pixel "
            "in two directions.",
            more="See ``augment.views``.",
        ),
    ] = "none"
