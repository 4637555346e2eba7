"""The fields of ``Settings``: name, type, valid values, help and default of each."""

import dataclasses
from typing import Annotated, Any, Literal

from cifar_flax.analysis.metrics import METRICS
from cifar_flax.data.augment import Augmentation
from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.definitions import MAX_FLOAT, MAX_SIDE, MIN_FLOAT, SHARE, Hyper, Valid
from cifar_flax.models import MODELS
from cifar_flax.own_code import is_own
from cifar_flax.runs.recipe_choice import (
    OF_AUGMENTATION,
    OF_CYCLES,
    flags_of,
    settings_of,
)
from cifar_flax.training.phases import Sgdr
from cifar_flax.training.recipes import Recipe

_MODEL = Valid(
    lambda name: name in MODELS or is_own(name),
    f"one of {', '.join(MODELS)}, or FILE.py:NAME or MODULE:NAME",
)
_SIDE = Valid(lambda value: 1 <= value <= MAX_SIDE, f"from 1 to {MAX_SIDE}")
_EPSILON = Valid(
    lambda value: MIN_FLOAT <= value <= MAX_FLOAT,
    f"above 0, from {MIN_FLOAT:g} to {MAX_FLOAT:g}",
)


@dataclasses.dataclass(frozen=True)
class _ModelAndData:
    model: Annotated[
        str,
        Hyper(
            f"Architecture: {', '.join(MODELS)}; or your own as FILE.py:NAME or "
            "MODULE:NAME, where NAME is a linen module or a function that returns one.",
            _MODEL,
        ),
    ] = "convbn"
    model_args: Annotated[
        dict[str, Any] | None,
        Hyper("""Arguments of your own model, as JSON: '{"features": [16, 32]}'."""),
    ] = None
    seeds: Annotated[
        tuple[int, ...], Hyper("Seeds, such as 0,1,2; each one trains a replica.")
    ] = (0,)
    seeds_vary: Annotated[
        tuple[Literal["split", "rate"], ...] | None,
        Hyper(
            "What differs between seeds besides their random numbers, so that an "
            "interval over seeds covers it. split: each seed has its own validation "
            "images; rate: each seed has its own range test of --lr=auto. Each seed "
            "is then a run of its own; experiments.sweep makes these runs."
        ),
    ] = None
    dataset: Annotated[
        str,
        Hyper(
            "auto: --data_archive if given, else CIFAR-10 if it is on disk or can be "
            "downloaded, else the built-in shapes; cifar10 or cifar100: only this "
            "data set; shapes: drawn figures; the name of another image data set that "
            "tensorflow-datasets has prepared; folder:PATH: pictures in train/CLASS "
            "and test/CLASS, or in CLASS; npz:PATH: a file of images and labels."
        ),
    ] = "auto"
    data_dir: Annotated[
        str | None,
        Hyper(
            "Folder of the data sets (default: TFDS_DATA_DIR, else "
            "~/tensorflow_datasets)."
        ),
    ] = None
    data_archive: Annotated[
        str | None,
        Hyper(
            "Official archive of CIFAR-10 or CIFAR-100, binary or python version, or "
            "its extracted folder."
        ),
    ] = None
    archive_sha256: Annotated[
        str | None,
        Hyper("Expected checksum of --data_archive if it is not an official archive."),
    ] = None
    image_size: Annotated[
        int | None, Hyper("Resize all images once to this height and width.", _SIDE)
    ] = None
    val_size: Annotated[
        int | None,
        Hyper(
            "Number of training images held out for validation; 0: no validation "
            "(default: the data set's own validation images if it has some, else "
            f"{VAL_SIZE:,}).",
            Valid(lambda value: value >= 0, "0 or more"),
        ),
    ] = None
    train_size: Annotated[
        int | None,
        Hyper(
            "Train on only this many images (default: all remaining ones).",
            Valid(lambda value: value >= 1, "1 or more"),
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    also_test: Annotated[
        dict[str, str] | None,
        Hyper(
            "Further labelled images to evaluate the trained network on, each with a "
            "name: corrupt=npz:PATH,new=folder:PATH. They are given as --dataset is; a "
            "file or a folder may hold only these images. They have the classes of "
            "the training images, or some of them."
        ),
    ] = None
    metrics: Annotated[
        tuple[str, ...] | None,
        Hyper(
            f"Metrics besides loss and accuracy: {', '.join(METRICS)}; or your own "
            "as FILE.py:NAME or MODULE:NAME, a function of logits [N, K] and labels "
            "[N]. They are computed on the validation images after each epoch, and "
            "once on the test images.",
        ),
    ] = None


@dataclasses.dataclass(frozen=True)
class _Schedule:
    recipe: Annotated[
        str | None,
        Hyper(
            "lesson: the lesson's recipe for the model; original: the same with all "
            "details of the lesson's library; modern: a better one, for any model; "
            "airbench94: the published one of airbench; fast85, fast87, fast89, "
            "fast90: shorter ones of airbench, named by their accuracy; or a TOML "
            "file (default: lesson, and airbench94 for airbench; the families have "
            "none). --print_recipe prints the recipe as such a file."
        ),
    ] = None
    phases: Annotated[
        int | None, Hyper("Train only this many of the recipe's first phases.")
    ] = None
    lr: Annotated[
        float | Literal["auto"] | None,
        Hyper(
            "Highest learning rate: constant with --epochs, of SGDR with --cycles. "
            "Alone it scales the rates of the recipe. auto: the rate that a range "
            "test suggests (see experiments.lr_find) and that a check by training "
            "confirms."
        ),
    ] = None
    lr_check: Annotated[
        bool | None,
        Hyper(
            "With --lr=auto: begin training with the suggested rate and with half of "
            "it, and halve the rate if it is too high (default: true)."
        ),
    ] = None
    epochs: Annotated[
        int | float | None,
        Hyper(
            "Number of epochs, whole or not. Alone it stretches the recipe; with --lr "
            "the rate is constant."
        ),
    ] = None


# Each of these may replace a hyperparameter of the recipe.
_RECIPE = "the recipe's"
_Augmentation: Any = settings_of(Augmentation, OF_AUGMENTATION, _RECIPE)
_Cycles: Any = settings_of(Sgdr, OF_CYCLES, "")
_Recipe: Any = settings_of(Recipe, flags_of(Recipe), _RECIPE)


@dataclasses.dataclass(frozen=True)
class AllFields(_Recipe, _Cycles, _Schedule, _Augmentation, _Evaluation, _ModelAndData):
    """All fields, in the order of the flags."""

    init_from: Annotated[
        str | None,
        Hyper(
            "Start from the variables of the finished run in this folder, with a new "
            "last layer if the classes differ."
        ),
    ] = None
    continue_from: Annotated[
        str | None,
        Hyper(
            "Continue from the last state of the finished run in this folder, as one "
            "longer training. Flags that are not given are taken from that run, and "
            "the phases follow its phases."
        ),
    ] = None
    freeze: Annotated[
        str | None,
        Hyper(
            "Do not train parameters whose path matches this regular expression, such "
            "as ^(?!head)."
        ),
    ] = None
    bn_momentum: Annotated[
        float | None,
        Hyper(
            "Share per step that batch norm keeps of its running statistics (default: "
            "the model's, 0.9; airbench 0.6; 0 with --recipe=original).",
            SHARE,
        ),
    ] = None
    bn_epsilon: Annotated[
        float | None,
        Hyper(
            "Added to batch norm's variance (default: the model's, 1e-5; airbench "
            "1e-12).",
            _EPSILON,
        ),
    ] = None
    bn_freeze: Annotated[
        bool | None,
        Hyper(
            "Normalise with the running statistics and never update them (default: "
            "only in layers that --freeze freezes)."
        ),
    ] = None
    dtype: Annotated[Literal["float32", "bfloat16"], Hyper("Computation dtype.")] = (
        "float32"
    )
    lowering: Annotated[
        Literal["auto", "native", "product", "xla"],
        Hyper(
            "Implementation of convolutions. native: own kernels for a CPU, built "
            "with the system's C compiler; product: matrix products; xla: XLA's "
            "convolution; auto: native on a CPU with a compiler, product on a CPU "
            "without, xla elsewhere."
        ),
    ] = "auto"
