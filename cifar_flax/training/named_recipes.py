"""The recipes that have a name: the lesson's, a modern one, and the fastest ones."""

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

# For any net: the shape of one cycle, Muon, whose steps have a size that suits every
# net, and little augmentation, since a short training sees each image a few times only.
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


def _fast(epochs: float) -> Recipe:
    return Recipe((Linear(0.1, epochs),))


FAST = {
    "fast90": _fast(3),
    "fast92": _fast(4),
    "fast94": _fast(8),
    "fast95": _fast(16),
}

NAMES = ("lesson", "modern", *FAST)


def own_name(model: str) -> str:
    """The recipe of a model that is given none; ``lesson`` for models that are new."""
    return "fast94" if model == "airbench" else "lesson"


def recipe_for(name: str, model: str) -> Recipe | None:
    """A recipe by its name, as it is for a model; None where it has none for it.

    Args:
      name: one of ``NAMES``.
      model: its name; any other for a model of one's own.
    """
    if name == "modern":
        epochs = LESSON[model].epochs if model in LESSON else MODERN.epochs
        return MODERN.stretched(epochs)
    if name == "lesson":
        return LESSON.get(model)
    return FAST[name] if model == "airbench" else None


def models_of(name: str) -> list[str]:
    """The models that a recipe is for."""
    return [*LESSON] if name == "lesson" else ["airbench"]
