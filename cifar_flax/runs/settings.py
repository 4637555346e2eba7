"""The settings of a run: a dataclass whose types say which values are valid."""

import copy
import dataclasses
import functools
import pathlib
import re
import types
import typing
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import flax.linen as nn
import msgspec
import numpy as np

from cifar_flax import records
from cifar_flax.data import Dataset, load_dataset
from cifar_flax.data.archive import check_sha256
from cifar_flax.data.augment import Tta
from cifar_flax.data.load import check_name
from cifar_flax.data.own import whole_name as whole_dataset
from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.errors import UserError, one_line
from cifar_flax.files import PRINTABLE, check_text, expand_user
from cifar_flax.models import MODELS, make_model, norm_fields
from cifar_flax.models.own import is_own, label_of, make_own, whole_name
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.recipe_choice import (
    AUTO,
    OF_CYCLES,
    choose_recipe,
)
from cifar_flax.training import optimizers, processes
from cifar_flax.training.checks import MAX_FLOAT, MAX_SHARE, MIN_FLOAT
from cifar_flax.training.named_recipes import NAMES, bn_momentum_for, own_name
from cifar_flax.training.recipe_files import from_plain, to_plain
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import check_seeds

# Settings that are paths.
PATHS = ("data_dir", "data_archive")

# Settings that have only one value in a sweep, because the value may contain a comma.
SINGLE = (*PATHS, "model_args", "optimizer_args", "freeze", "seeds_vary")

# The seeds of a range test; five show whether they agree.
RANGE_SEEDS = (0, 1, 2, 3, 4)

MAX_SIDE = 4096  # of an image

# The settings of model and data, which a program may replace by its own.
_OF_OUR_MODELS = ("dtype", "bn_momentum", "bn_epsilon", "bn_freeze")
OF_MODEL = ("model", "model_args", *_OF_OUR_MODELS)
OF_DATA = ("dataset", *PATHS, "archive_sha256", "image_size", "val_size", "train_size")


def _setting(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run; the help texts describe each.

    They are checked on construction, whether they come from Python, flags, the lists of
    a sweep, or a record.

    Raises:
      UserError: a setting has another type, is out of range, or contradicts another.
    """

    model: str = _setting(
        "convbn",
        f"Architecture: {', '.join(MODELS)}; or your own as FILE.py:NAME or "
        "MODULE:NAME, where NAME is a linen module or a function that returns one.",
    )
    model_args: dict[str, Any] | None = _setting(  # noqa: RUF009
        None, """Arguments of your own model, as JSON: '{"features": [16, 32]}'."""
    )
    seeds: tuple[int, ...] = _setting(
        (0,), "Seeds, such as 0,1,2; each one trains a replica."
    )
    seeds_vary: tuple[Literal["split", "rate"], ...] | None = _setting(
        None,
        "What differs between seeds besides their random numbers, so that an interval "
        "over seeds covers it. split: each seed has its own validation images; rate: "
        "each seed has its own range test of --lr=auto. Each seed is then a run of its "
        "own; experiments.sweep makes these runs.",
    )

    dataset: str = _setting(
        "auto",
        "auto: --data_archive if given, else CIFAR-10 if it is on disk or can be "
        "downloaded, else the built-in shapes; cifar10 or cifar100: only this data "
        "set; shapes: drawn figures; the name of another image data set that "
        "tensorflow-datasets has prepared; folder:PATH: pictures in train/CLASS and "
        "test/CLASS, or in CLASS; npz:PATH: a file of images and labels.",
    )
    data_dir: str | None = _setting(
        None,
        "Folder of the data sets (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).",
    )
    data_archive: str | None = _setting(
        None,
        "Official archive of CIFAR-10 or CIFAR-100, binary or python version, or its "
        "extracted folder.",
    )
    archive_sha256: str | None = _setting(
        None, "Expected checksum of --data_archive if it is not an official archive."
    )
    image_size: int | None = _setting(
        None, "Resize all images once to this height and width."
    )
    val_size: int | None = _setting(
        None,
        "Number of training images held out for validation; 0: no validation (default: "
        f"the data set's own validation images if it has some, else {VAL_SIZE:,}).",
    )
    train_size: int | None = _setting(
        None, "Train on only this many images (default: all remaining ones)."
    )
    padding: int | None = _setting(
        None,
        "Pixels of border before the random crop; 0: no crop (default: the recipe's, 4 "
        "in the lesson).",
    )
    padding_mode: Literal["symmetric", "constant", "reflect"] | None = _setting(
        None, "Content of the border (default: the recipe's, symmetric in the lesson)."
    )
    flip: bool | None = _setting(
        None, "Mirror half of the training images (default: the recipe's, true)."
    )
    alternate: bool | None = _setting(
        None, "Mirror each image in every second epoch instead of by chance."
    )
    cutout: int | None = _setting(
        None, "Cover a square of this side, in pixels, with the mean colour; 0: none."
    )
    brightness: float | None = _setting(
        None, "Make images brighter or darker by up to this share of white."
    )
    contrast: float | None = _setting(
        None, "Change the contrast of images by up to this share."
    )
    mixup: float | None = _setting(
        None, "Alpha of mixup, which mixes two images and their targets; 0: none."
    )
    cutmix: float | None = _setting(
        None, "Alpha of cutmix, which inserts a rectangle of another image; 0: none."
    )

    recipe: str | None = _setting(
        None,
        "lesson: the lesson's recipe for the model; original: the same with all "
        "details of the lesson's library; modern: a better one, for any model; "
        "airbench94: the published one of airbench; fast85, fast87, fast89, fast90: "
        "shorter ones of airbench, named by their accuracy; or a TOML file (default: "
        "lesson, and airbench94 for airbench). --print_recipe prints the recipe as "
        "such a file.",
    )
    phases: int | None = _setting(
        None, "Train only this many of the recipe's first phases."
    )
    lr: float | Literal["auto"] | None = _setting(
        None,
        "Highest learning rate: constant with --epochs, of SGDR with --cycles. Alone "
        "it scales the rates of the recipe. auto: the rate that a range test suggests "
        "(see experiments.lr_find) and that a check by training confirms.",
    )
    lr_check: bool | None = _setting(
        None,
        "With --lr=auto: begin training with the suggested rate and with half of it, "
        "and halve the rate if it is too high (default: true).",
    )
    epochs: int | float | None = _setting(
        None,
        "Number of epochs, whole or not. Alone it stretches the recipe; with --lr the "
        "rate is constant.",
    )
    cycles: int | None = _setting(None, "Number of SGDR cycles from --lr to 0.")
    cycle_len: int | float | None = _setting(
        None, "Epochs in the first SGDR cycle (default: 1)."
    )
    cycle_mult: int | None = _setting(
        None, "Factor between the lengths of consecutive SGDR cycles (default: 1)."
    )
    batch_size: int | None = _setting(
        None, "Images in a step of each seed (default: the recipe's)."
    )
    optimizer: str | None = _setting(
        None, "Name of an optimizer of optax (default: the recipe's, sgd)."
    )
    optimizer_args: dict[str, bool | int | float | str] | None = _setting(  # noqa: RUF009
        None, """Options of the optimizer as JSON, such as '{"b1": 0.95}'."""
    )
    momentum: float | None = _setting(None, "Momentum of SGD (default: the recipe's).")
    nesterov: bool | None = _setting(
        None, "Use Nesterov's momentum in SGD (default: the recipe's)."
    )
    weight_decay: float | None = _setting(
        None,
        "Weight decay: decoupled if the optimizer supports it, else an L2 penalty "
        "(default: the recipe's).",
    )
    decay: Literal["all", "kernels"] | None = _setting(
        None,
        "Parameters that decay: all, or only kernels, without norms and biases "
        "(default: the recipe's).",
    )
    clip_norm: float | None = _setting(
        None, "Scale gradients with a larger norm to this (default: the recipe's, no)."
    )
    accumulate: int | None = _setting(
        None,
        "Number of steps whose mean gradient makes one optimizer step (default: the "
        "recipe's, 1).",
    )
    ema: float | None = _setting(
        None,
        "Evaluate a moving average of the variables that keeps this share per step; 0: "
        "no average (default: the recipe's).",
    )
    lookahead: int | None = _setting(
        None,
        "Continue from the moving average every so many steps; 0: never (default: the "
        "recipe's).",
    )
    label_smoothing: float | None = _setting(
        None,
        "Share of the target that is spread over all classes (default: the recipe's).",
    )

    init_from: str | None = _setting(
        None,
        "Start from the variables of the finished run in this folder, with a new last "
        "layer if the classes differ.",
    )
    continue_from: str | None = _setting(
        None,
        "Continue from the last state of the finished run in this folder, as one "
        "longer training. Flags that are not given are taken from that run, and the "
        "phases follow its phases.",
    )
    freeze: str | None = _setting(
        None,
        "Do not train parameters whose path matches this regular expression, such as "
        "^(?!head).",
    )

    bn_momentum: float | None = _setting(
        None,
        "Share per step that batch norm keeps of its running statistics (default: the "
        "model's, 0.9; airbench 0.6; 0 with --recipe=original).",
    )
    bn_epsilon: float | None = _setting(
        None,
        "Added to batch norm's variance (default: the model's, 1e-5; airbench 1e-12).",
    )
    bn_freeze: bool | None = _setting(
        None,
        "Normalise with the running statistics and never update them (default: only in "
        "layers that --freeze freezes).",
    )
    dtype: Literal["float32", "bfloat16"] = _setting("float32", "Computation dtype.")
    tta: Tta | None = _setting(  # noqa: RUF009
        None,
        "Test-time augmentation: evaluate the mean logits of several views. flip: the "
        "image and its mirror image; multicrop: these, also moved by a pixel in two "
        "directions (default: the recipe's, none in the lesson).",
    )
    lowering: Literal["auto", "native", "product", "xla"] = _setting(
        "auto",
        "Implementation of convolutions. native: own kernels for a CPU, built with the "
        "system's C compiler; product: matrix products; xla: XLA's convolution; auto: "
        "native on a CPU with a compiler, product on a CPU without, xla elsewhere.",
    )

    # The recipe of a record, whose file or earlier run may not exist any more.
    recorded_recipe: dataclasses.InitVar[Recipe | None] = None
    trained_recipe: ClassVar[Recipe | None] = None
    _recipe: ClassVar[Recipe]

    def __post_init__(self, recorded_recipe: Recipe | None):
        object.__setattr__(self, "trained_recipe", recorded_recipe)
        for name, default in DEFAULTS.items():
            value = getattr(self, name)
            if value is not default:  # saves time: a sweep makes thousands of these
                object.__setattr__(self, name, check_setting(name, value))
        check_seeds(self.seeds)
        self._check_seeds_vary()
        self._check_model()
        if self.val_size is not None and self.val_size < 0:
            raise UserError(f"--val_size={self.val_size}: it must be 0 or more")
        if self.train_size is not None and self.train_size < 1:
            raise UserError(f"--train_size={self.train_size}: it must be 1 or more")
        momentum, epsilon = self.bn_momentum, self.bn_epsilon
        if momentum is not None and not 0 <= momentum <= MAX_SHARE:
            raise UserError(f"--bn_momentum={self.bn_momentum}: it must be in [0, 1)")
        if epsilon is not None and not MIN_FLOAT <= epsilon <= MAX_FLOAT:
            raise UserError(
                f"--bn_epsilon={self.bn_epsilon}: it must be above 0, from "
                f"{MIN_FLOAT:g} to {MAX_FLOAT:g}"
            )
        check_name(self.dataset)
        object.__setattr__(self, "dataset", whole_dataset(self.dataset))
        if self.image_size is not None and not 1 <= self.image_size <= MAX_SIDE:
            raise UserError(
                f"--image_size={self.image_size}: it must be from 1 to {MAX_SIDE}"
            )
        if self.init_from is not None and self.continue_from is not None:
            raise UserError(
                f"--init_from={self.init_from} and --continue_from="
                f"{self.continue_from}: give one of them"
            )
        # Absolute paths, so that a run can be resumed from another folder.
        for name in (*PATHS, "recipe", "init_from", "continue_from"):
            path = getattr(self, name)
            if path is not None and not (name == "recipe" and path in NAMES):
                object.__setattr__(self, name, str(expand_user(path).absolute()))
        if self.archive_sha256 is not None:
            check_sha256(self.archive_sha256)
        # Making the recipe now reports wrong values before any data are loaded. It is
        # kept because making it takes longer than everything else here.
        object.__setattr__(self, "_recipe", self.trained_recipe or choose_recipe(self))

    def _check_model(self) -> None:
        """Checks the model's name, without loading custom code that it may name."""
        object.__setattr__(self, "model", whole_name(self.model))
        if is_own(self.model):
            if changed := self.changed().keys() & set(_OF_OUR_MODELS):
                raise UserError(
                    f"--{min(changed)} is only for the models of cifar_flax; use "
                    "--model_args for your own model"
                )
        elif self.model_args is not None:
            raise UserError(
                f"--model_args is only for your own model, and --model={self.model} is "
                "a model of cifar_flax"
            )

    def _check_seeds_vary(self) -> None:
        what = f"--seeds_vary={as_text(self.seeds_vary)}"
        if self.seeds_vary is not None and len(self.seeds) > 1:
            raise UserError(
                f"{what} needs a run for each seed and --seeds="
                f"{as_text(self.seeds)} names {len(self.seeds)} seeds; "
                "experiments.sweep makes these runs"
            )
        if self.varies("split") and self.val_size == 0:
            raise UserError(f"{what} and --val_size=0: there is no split to vary")
        if self.varies("rate") and self.lr != AUTO:
            raise UserError(f"{what} needs --lr={AUTO}, which finds the rate")
        if self.lr_check is not None and self.lr != AUTO:
            raise UserError(
                f"--lr_check={as_text(self.lr_check)} needs --lr={AUTO}; add it, or "
                "drop --lr_check"
            )

    def varies(self, what: str) -> bool:
        """Returns whether each seed has its own ``split`` or ``rate``."""
        return what in (self.seeds_vary or ())

    @property
    def split_seed(self) -> int | None:
        """Seed of the choice of validation images; None for the default choice."""
        return self.seeds[0] if self.varies("split") else None

    @property
    def range_seeds(self) -> tuple[int, ...]:
        """The seeds of the range test of ``--lr=auto``."""
        if not self.varies("rate"):
            return RANGE_SEEDS
        count, first = len(RANGE_SEEDS), self.seeds[0] % 2**24
        return tuple(count * first + seed for seed in RANGE_SEEDS)

    @property
    def model_label(self) -> str:
        """Name of the model for display."""
        return label_of(self.model)

    def load_data(self, fetch: bool = True) -> Dataset:
        """Loads the data set; the first process prepares it for the others.

        Args:
          fetch: whether the data set may be downloaded.
        """
        return processes.in_turn(
            lambda: load_dataset(
                self.dataset,
                data_dir=self.data_dir,
                archive=self.data_archive,
                archive_sha256=self.archive_sha256,
                image_size=self.image_size,
                fetch=fetch,
            )
        )

    def make_model(self, num_classes: int) -> nn.Module:
        """Makes the model; this runs the code of a custom model."""
        if is_own(self.model):
            return make_own(self.model, self.model_args, num_classes)
        momentum = self.bn_momentum
        if momentum is None and self.recipe is not None:
            momentum = bn_momentum_for(self.recipe)
        return make_model(
            self.model,
            num_classes,
            dtype=self.dtype,
            bn_momentum=momentum,
            bn_epsilon=self.bn_epsilon,
            bn_freeze=bool(self.bn_freeze),
        )

    def make_recipe(
        self, found_lr: float | None = None, of_ours: bool = True
    ) -> Recipe:
        """Makes the recipe; see ``recipe_choice.choose_recipe``."""
        is_usual = found_lr is None and of_ours
        if is_usual or self.trained_recipe is not None:
            return self._recipe
        return choose_recipe(self, found_lr, of_ours)

    def recipe_of(self, test: records.RangeTest | None) -> dict[str, Any] | None:
        """Returns the recipe of a run with these settings as its record.

        Args:
          test: the range test of the run, for ``--lr=auto``.

        Returns:
          The recipe as plain values; None while the rate is not known.
        """
        found = test.suggested_lr if test else None
        if self.lr == AUTO and found is None:
            return None
        return to_plain(self.make_recipe(found))

    def changed(self) -> dict[str, Any]:
        """Returns the settings that differ from their defaults."""
        values = {name: getattr(self, name) for name in TYPES}
        return {n: value for n, value in values.items() if value != DEFAULTS[n]}

    def as_flags(self) -> list[str]:
        """Returns the flags of ``experiments.run`` for these settings."""
        given = {"model": self.model, "seeds": self.seeds, **self.changed()}
        return [f"--{name}={as_text(value)}" for name, value in given.items()]

    def record(self, has_validation: bool = False) -> dict[str, records.Setting]:
        """Returns the settings for ``config.json``.

        A setting that is not given is recorded with its actual value if model, recipe
        or data determine it, since both ways describe the same run.

        Args:
          has_validation: whether the data set has its own validation images.
        """
        values = {name: getattr(self, name) for name in TYPES}
        own = {n: copy.deepcopy(v) for n, v in values.items() if isinstance(v, dict)}
        record = {**values, **own, "seeds": list(self.seeds)}
        if self.seeds_vary is not None:
            record["seeds_vary"] = list(self.seeds_vary)
        if self.val_size is None and not has_validation:
            record["val_size"] = VAL_SIZE
        own_values = _own(self.model, self.recipe)
        for name, value in {**own_values, "tta": self._recipe.tta}.items():
            record[name] = value if record[name] is None else record[name]
        return record

    @classmethod
    def from_record(
        cls, config: records.Config, where: str, names: Sequence[str] = ()
    ) -> "Settings":
        """Makes settings from a record.

        Args:
          config: the record.
          where: its file, for error messages.
          names: the settings to take, the others have their defaults; empty: all.

        Raises:
          UserError: a setting is missing or not valid.
        """
        recipe = None
        if not names and config.recipe is not None and _is_elsewhere(config.settings):
            recipe = from_plain(config.recipe, where)
        found = {n: config.settings.get(n, DEFAULTS[n]) for n in names or TYPES}
        model, recipe_name = (config.settings.get(n) for n in ("model", "recipe"))
        for name, value in _own(str(model), recipe_name).items():
            if name in found and found[name] == value:
                found[name] = None
        # An older record lacks settings of later versions, which then have no value.
        missing = [
            n for n in found if n not in config.settings and found[n] is not None
        ]
        if missing:
            raise UserError(
                f"{where}: the settings have no {missing[0]!r}; this is not the record "
                "of a run"
            )
        try:
            return cls(**found, recorded_recipe=recipe)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    @classmethod
    def of_run(cls, folder: pathlib.Path, *, names_model: bool) -> "Settings":
        """Returns the settings of the run in a folder.

        Args:
          folder: of the run.
          names_model: whether the user also names the model, which allows its code to
            run.

        Raises:
          UserError: there is no such run, or the user must name its model.
        """
        config = records.read_config(folder)
        settings = cls.from_record(config, str(folder / records.CONFIG))
        if is_own(settings.model) and not names_model:
            raise UserError(
                f"the run in {folder} trains {settings.model}, and its code runs only "
                f"if you name it: add --model={settings.model} (in Python model=)"
            )
        return settings

    @classmethod
    def continuing(cls, folder: str | pathlib.Path, **changes: Any) -> "Settings":
        """Returns the settings of a run that continues another from its last state.

        Args:
          folder: of the finished run.
          **changes: settings that differ from that run, such as ``epochs=10``;
            ``epochs`` and ``cycles`` replace each other.

        Raises:
          UserError: there is no such run, or the settings contradict each other.
        """
        folder = expand_user(folder)
        before = cls.of_run(folder, names_model="model" in changes)
        values = {name: getattr(before, name) for name in TYPES}
        if changes.get("epochs") is not None:
            values |= dict.fromkeys(OF_CYCLES)
        elif changes.get("cycles") is not None:
            values |= {"epochs": None}
        origin = {"init_from": None, "continue_from": str(folder)}
        return cls(**{**values, **origin, **changes})


def _own(model: str, recipe: Any) -> dict[str, Any]:
    """Returns the settings for which None stands, with a model and a recipe."""
    norm, asked = norm_fields(model), bn_momentum_for(str(recipe))
    return {
        "recipe": own_name(model),
        "bn_momentum": norm["momentum"] if asked is None else asked,
        "bn_epsilon": norm["epsilon"],
    }


def _is_elsewhere(settings: dict[str, records.Setting]) -> bool:
    """Returns whether recorded settings take their recipe from a file or a run."""
    recipe, origin = settings.get("recipe"), settings.get("continue_from")
    is_file = isinstance(recipe, str) and pathlib.Path(recipe).is_absolute()
    return is_file or origin is not None


def differences(now: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Describes the settings that differ from a record, except paths.

    Args:
      now: settings from ``Settings.record``.
      recorded: the ``settings`` of a ``config.json``.
    """
    return [
        f"--{name} was {recorded.get(name)} and is {value}"
        for name, value in now.items()
        if name not in records.PLACES and recorded.get(name) != value
    ]


DEFAULTS: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(Settings)}
HELP = {f.name: f.metadata["help"] for f in dataclasses.fields(Settings)}
TYPES: dict[str, Any] = {
    name: kind
    for name, kind in typing.get_type_hints(Settings).items()
    if name in DEFAULTS
}

_LOOSE_NUMBER = re.compile(r"[+-]?(\.[0-9]+|[0-9]+\.[0-9]*)(e[+-]?[0-9]+)?", re.I)

# What to give for each type of setting.
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    typing.Union[int, float]: "a number",  # noqa: UP007 (as type_of gives it)
}


@functools.cache
def type_of(name: str) -> Any:
    """Returns the type of a setting without None."""
    kind = TYPES[name]
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    kinds = [one for one in typing.get_args(kind) if one is not types.NoneType]
    return typing.Union[tuple(kinds)]  # noqa: UP007 (of a list)


@functools.cache
def choices_of(name: str) -> tuple[str, ...]:
    """Returns the possible values of a setting; empty if they cannot be listed."""
    if name == "optimizer":
        return optimizers.names()
    kind = type_of(name)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def parse_setting(name: str, text: str) -> Any:
    """Reads the value of a setting from the text of a flag or of a list.

    Raises:
      ValueError: the text is not valid; the message says what to give.
    """
    try:
        if name == "seeds":
            return tuple(int(word) for word in text.split(","))
        if name == "seeds_vary":
            return msgspec.convert(text.split(","), type_of(name))
        kind = type_of(name)
        if typing.get_origin(kind) is dict:
            return msgspec.json.decode(text, type=kind)
        # JSON does not allow numbers such as .1 and +1.
        if float in (kind, *typing.get_args(kind)) and _LOOSE_NUMBER.fullmatch(text):
            text = msgspec.json.encode(float(text)).decode()  # null if it is infinite
        # msgspec also takes 3.0 as a whole number.
        if kind is int and not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError(text)
        return _check_choice(name, msgspec.convert(text, kind, strict=False))
    except ValueError as error:
        raise ValueError(f"give {what_to_give(name)}") from error


def check_setting(name: str, value: Any) -> Any:
    """Converts the value of a setting, from Python or JSON, to its type.

    Raises:
      UserError: the value has another type.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, range | list):
        value = tuple(value)
    try:
        return _check_choice(name, msgspec.convert(value, TYPES[name]))
    except (ValueError, TypeError) as error:
        given = one_line(repr(value), 60)
        raise UserError(f"--{name}={given}: give {what_to_give(name)}") from error


def _check_choice(name: str, value: Any) -> Any:
    """Raises a ValueError unless a value is a valid choice and printable text."""
    choices = choices_of(name)
    if value is not None and choices and value not in choices:
        raise ValueError(value)
    if name == "model" and value not in MODELS and not is_own(value):
        raise ValueError(value)
    return check_text(value) if isinstance(value, str) else value


def what_to_give(name: str) -> str:
    """Returns a description of the valid values of a setting."""
    if name == "seeds":
        return "whole numbers, such as 0,1,2"
    if name == "seeds_vary":
        return "split, rate, or split,rate"
    if name == "model":
        return f"one of {', '.join(MODELS)}, or FILE.py:NAME or MODULE:NAME"
    if choices := choices_of(name):
        return f"one of {', '.join(choices)}"
    kind = type_of(name)
    if typing.get_origin(kind) is dict:
        return """names and values as JSON, such as {"name": 0.95}"""
    words = _WORDS.get(kind, PRINTABLE)
    return f"a number, or {AUTO}" if name == "lr" else words
