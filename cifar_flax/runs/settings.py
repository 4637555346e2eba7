"""The settings of a run: one dataclass; what each may be is told by its type."""

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

# Settings of which a sweep takes one value: a comma in it separates nothing.
SINGLE = (*PATHS, "model_args", "optimizer_args", "freeze", "seeds_vary")

# Of a range test: enough to see whether they agree.
RANGE_SEEDS = (0, 1, 2, 3, 4)

MAX_SIDE = 4096  # of an image

# Settings by what they are of; a program may give the thing itself instead.
_OF_OUR_MODELS = ("dtype", "bn_momentum", "bn_epsilon", "bn_freeze")
OF_MODEL = ("model", "model_args", *_OF_OUR_MODELS)
OF_DATA = ("dataset", *PATHS, "archive_sha256", "image_size", "val_size", "train_size")


def _setting(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Every setting of a run; the help texts say what each is.

    They are checked when they are made, wherever they come from: Python, flags, the
    lists of a sweep, or a record.

    Raises:
      UserError: a setting is of another type, out of range, or contradicts another.
    """

    model: str = _setting(
        "convbn",
        f"Architecture: {', '.join(MODELS)}; or one of your own as FILE.py:NAME or "
        "MODULE:NAME, a linen module or a function that makes one.",
    )
    model_args: dict[str, Any] | None = _setting(  # noqa: RUF009
        None, """Arguments of a model of your own, as JSON: '{"features": [16, 32]}'."""
    )
    seeds: tuple[int, ...] = _setting((0,), "Seeds, one replica each, as 0,1,2.")
    seeds_vary: tuple[Literal["split", "rate"], ...] | None = _setting(
        None,
        "What each seed has of its own beside its random numbers, so that an interval "
        "over seeds covers it: split, its images for validation; rate, the one that "
        "its range test finds with --lr=auto. Takes a run for each seed, as "
        "experiments.sweep makes them.",
    )

    dataset: str = _setting(
        "auto",
        "auto: what --data_archive holds, else CIFAR-10 where it is on disk or can be "
        "fetched, else the built-in shapes; cifar10 or cifar100: never anything else; "
        "shapes; the name of another set of images that tensorflow-datasets has "
        "prepared; folder:PATH, of pictures in "
        "train/CLASS and test/CLASS or in CLASS; npz:PATH, of images and labels.",
    )
    data_dir: str | None = _setting(
        None,
        "Where data sets lie (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).",
    )
    data_archive: str | None = _setting(
        None,
        "An official archive of CIFAR-10 or CIFAR-100, binary or python version, or "
        "its folder.",
    )
    archive_sha256: str | None = _setting(
        None, "Checksum to expect of --data_archive where it is not an official one."
    )
    image_size: int | None = _setting(
        None, "Resize the images to this height and width, once."
    )
    val_size: int | None = _setting(
        None,
        "Training images held out for validation; 0: no validation (default: the data "
        f"set's own validation images where it has some, else {VAL_SIZE:,}).",
    )
    train_size: int | None = _setting(
        None, "Train on this many images only (default: all that are left)."
    )
    padding: int | None = _setting(
        None,
        "Pixels of border before the random crop; 0: no crop (default: the recipe's, "
        "4 in the lesson).",
    )
    padding_mode: Literal["symmetric", "constant", "reflect"] | None = _setting(
        None, "What the border holds (default: the recipe's, symmetric in the lesson)."
    )
    flip: bool | None = _setting(
        None, "Mirror half of the training images (default: the recipe's, true)."
    )

    alternate: bool | None = _setting(
        None, "Mirror each image on every other epoch, and not by chance."
    )
    cutout: int | None = _setting(
        None, "Side of a square, in pixels, that shows the mean colour; 0: none."
    )
    brightness: float | None = _setting(
        None, "Make images brighter or darker by up to this share of white."
    )
    contrast: float | None = _setting(
        None, "Change the contrast of images by up to this share."
    )
    mixup: float | None = _setting(
        None, "Alpha of mixup, the mean of two images and their targets; 0: none."
    )
    cutmix: float | None = _setting(
        None, "Alpha of cutmix, a rectangle of another image; 0: none."
    )

    recipe: str | None = _setting(
        None,
        "lesson: the lesson's own for the model; modern: a better one, for any model; "
        "airbench94: the published one of airbench; or a TOML file (default: lesson, "
        "and airbench94 for airbench). --print_recipe shows the one in force as such a "
        "file.",
    )
    phases: int | None = _setting(
        None, "Train only the recipe's first phases, as many as this."
    )
    lr: float | Literal["auto"] | None = _setting(
        None,
        "Peak rate. With --epochs a constant rate, with --cycles SGDR; alone it "
        "scales the recipe's rates so that this is the highest. auto: what a range "
        "test suggests, as by experiments.lr_find, and what then begins to train well.",
    )
    lr_check: bool | None = _setting(
        None,
        "With --lr=auto: begin to train with the suggested rate and with half of it, "
        "and take the half where the rate is too high (default: true).",
    )
    epochs: int | float | None = _setting(
        None,
        "Epochs, whole or not: alone of the recipe, whose shape is stretched to them; "
        "with --lr at that constant rate.",
    )
    cycles: int | None = _setting(None, "SGDR cycles from --lr to 0.")
    cycle_len: int | float | None = _setting(
        None, "Epochs in the first SGDR cycle (default: 1)."
    )
    cycle_mult: int | None = _setting(
        None, "Each SGDR cycle is this many times as long (default: 1)."
    )
    batch_size: int | None = _setting(None, "Images a step (default: the recipe's).")
    optimizer: str | None = _setting(
        None, "An optimizer of optax by its name (default: the recipe's, sgd)."
    )
    optimizer_args: dict[str, bool | int | float | str] | None = _setting(  # noqa: RUF009
        None, """Options of the optimizer as JSON, such as '{"b1": 0.95}'."""
    )
    momentum: float | None = _setting(None, "Of SGD (default: the recipe's).")
    nesterov: bool | None = _setting(
        None, "Nesterov momentum of SGD (default: the recipe's)."
    )
    weight_decay: float | None = _setting(
        None,
        "Decoupled where the optimizer has weight decay of its own, else an L2 penalty "
        "(default: the recipe's).",
    )
    decay: Literal["all", "kernels"] | None = _setting(
        None,
        "Weights that decay: all, or kernels alone, without norms and biases (default: "
        "the recipe's).",
    )
    clip_norm: float | None = _setting(
        None, "Scale gradients of a larger norm to this (default: the recipe's, no)."
    )
    accumulate: int | None = _setting(
        None,
        "Steps whose mean gradient makes one step of the optimizer (default: the "
        "recipe's, 1).",
    )
    ema: float | None = _setting(
        None,
        "Evaluate a moving average of the variables, which keeps this share a step; 0 "
        "for none (default: the recipe's).",
    )
    lookahead: int | None = _setting(
        None,
        "Go on from the moving average every so many steps; 0: never (default: the "
        "recipe's).",
    )
    label_smoothing: float | None = _setting(
        None, "Share of the target spread over all classes (default: the recipe's)."
    )

    init_from: str | None = _setting(
        None,
        "Start from the variables of the finished run in this folder; where there are "
        "other classes, with a new last layer.",
    )
    continue_from: str | None = _setting(
        None,
        "Go on from the last state of the finished run in this folder, as one longer "
        "training: flags that are not given are that run's, and the phases come after "
        "its own.",
    )
    freeze: str | None = _setting(
        None,
        "Keep the parameters whose path has this pattern, a regular expression, such "
        "as ^(?!head).",
    )

    bn_momentum: float | None = _setting(
        None,
        "Share of its running statistics that batch norm keeps a step (default: the "
        "model's, 0.9; airbench 0.6).",
    )
    bn_epsilon: float | None = _setting(
        None,
        "Added to batch norm's variance (default: the model's, 1e-5; airbench 1e-12).",
    )
    bn_freeze: bool | None = _setting(
        None,
        "Normalise with the running statistics, and never update them (default: in "
        "what --freeze keeps as it is, and nowhere else).",
    )
    dtype: Literal["float32", "bfloat16"] = _setting("float32", "Of the computation.")
    tta: Tta | None = _setting(  # noqa: RUF009
        None,
        "Evaluate by the mean logits of several views of an image. flip: it and its "
        "mirror image; multicrop: these, and moved by a pixel in two directions "
        "(default: the recipe's, none in the lesson).",
    )
    lowering: Literal["auto", "native", "product", "xla"] = _setting(
        "auto",
        "How convolutions are computed. native: by kernels for a CPU, which the "
        "system's C compiler builds; product: as matrix products; xla: by XLA; auto: "
        "native on a CPU with a compiler, product on one without, xla elsewhere.",
    )

    # Of a record, whose recipe may have come from a file or a run that is gone.
    recorded_recipe: dataclasses.InitVar[Recipe | None] = None
    trained_recipe: ClassVar[Recipe | None] = None
    _recipe: ClassVar[Recipe]

    def __post_init__(self, recorded_recipe: Recipe | None):
        object.__setattr__(self, "trained_recipe", recorded_recipe)
        for name, default in DEFAULTS.items():
            value = getattr(self, name)
            if value is not default:  # most are, and a sweep makes thousands of these
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
        # Whole, so that a run can go on from another folder.
        for name in (*PATHS, "recipe", "init_from", "continue_from"):
            path = getattr(self, name)
            if path is not None and not (name == "recipe" and path in NAMES):
                object.__setattr__(self, name, str(expand_user(path).absolute()))
        if self.archive_sha256 is not None:
            check_sha256(self.archive_sha256)
        # Wrong values are reported before any data are loaded. The recipe is kept: it
        # takes longer to make than everything else here.
        object.__setattr__(self, "_recipe", self.trained_recipe or choose_recipe(self))

    def _check_model(self) -> None:
        """Nothing of a model of one's own is loaded here: records hold them, too."""
        object.__setattr__(self, "model", whole_name(self.model))
        if is_own(self.model):
            if changed := self.changed().keys() & set(_OF_OUR_MODELS):
                raise UserError(
                    f"--{min(changed)} is of the models that come with cifar_flax; a "
                    "model of your own takes --model_args"
                )
        elif self.model_args is not None:
            raise UserError(
                f"--model_args is of a model of your own, and --model={self.model} is "
                "none"
            )

    def _check_seeds_vary(self) -> None:
        what = f"--seeds_vary={as_text(self.seeds_vary)}"
        if self.seeds_vary is not None and len(self.seeds) > 1:
            raise UserError(
                f"{what} takes a run for each seed and --seeds="
                f"{as_text(self.seeds)} names {len(self.seeds)}; experiments.sweep "
                "makes such runs"
            )
        if self.varies("split") and self.val_size == 0:
            raise UserError(f"{what} and --val_size=0: there is no split to vary")
        if self.varies("rate") and self.lr != AUTO:
            raise UserError(f"{what} needs --lr={AUTO}, which finds the rate")
        if self.lr_check is not None and self.lr != AUTO:
            raise UserError(
                f"--lr_check={as_text(self.lr_check)} is of --lr={AUTO}; give both, or "
                "drop it"
            )

    def varies(self, what: str) -> bool:
        """Whether each seed has a ``split`` or a ``rate`` of its own."""
        return what in (self.seeds_vary or ())

    @property
    def split_seed(self) -> int | None:
        """Of the images for validation; None for the usual ones."""
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
        """The model's name, to show."""
        return label_of(self.model)

    def load_data(self, fetch: bool = True) -> Dataset:
        """The data set that they name; one process may prepare it for the others.

        Args:
          fetch: whether it may be downloaded.
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
        """The model that they describe; code of one's own runs."""
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
        """The recipe that they describe; see ``recipe_choice.choose_recipe``."""
        is_usual = found_lr is None and of_ours
        if is_usual or self.trained_recipe is not None:
            return self._recipe
        return choose_recipe(self, found_lr, of_ours)

    def recipe_of(self, test: records.RangeTest | None) -> dict[str, Any] | None:
        """The record of the recipe that a run with these settings has.

        Args:
          test: of the run, for ``--lr=auto``.

        Returns:
          None while the rate is not known.
        """
        found = test.suggested_lr if test else None
        if self.lr == AUTO and found is None:
            return None
        return to_plain(self.make_recipe(found))

    def changed(self) -> dict[str, Any]:
        """The settings that are not at their defaults."""
        values = {name: getattr(self, name) for name in TYPES}
        return {n: value for n, value in values.items() if value != DEFAULTS[n]}

    def as_flags(self) -> list[str]:
        """The flags of ``experiments.run`` that give these settings."""
        given = {"model": self.model, "seeds": self.seeds, **self.changed()}
        return [f"--{name}={as_text(value)}" for name, value in given.items()]

    def record(self, has_validation: bool = False) -> dict[str, records.Setting]:
        """The settings as ``config.json`` has them.

        What is not given is recorded as the value that it stands for, where the model
        or the data tell it; the two are one run.

        Args:
          has_validation: whether the data set has validation images of its own.
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
        """The settings that a record holds.

        Args:
          config: the record.
          where: its file, for the message.
          names: of those to take, with the others at their defaults; none: all.

        Raises:
          UserError: one is missing, or a run cannot have it.
        """
        recipe = None
        if not names and config.recipe is not None and _is_elsewhere(config.settings):
            recipe = from_plain(config.recipe, where)
        found = {n: config.settings.get(n, DEFAULTS[n]) for n in names or TYPES}
        model, recipe_name = (config.settings.get(n) for n in ("model", "recipe"))
        for name, value in _own(str(model), recipe_name).items():
            if name in found and found[name] == value:
                found[name] = None
        # An older record lacks settings that came later; it is a run without them.
        missing = [
            n for n in found if n not in config.settings and found[n] is not None
        ]
        if missing:
            raise UserError(
                f"{where}: settings lacks {missing[0]!r}; no run of this version"
            )
        try:
            return cls(**found, recorded_recipe=recipe)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    @classmethod
    def of_run(cls, folder: pathlib.Path, *, names_model: bool) -> "Settings":
        """The settings of the run in a folder.

        Args:
          folder: of the run.
          names_model: whether the user names the model anew, whose code is to run.

        Raises:
          UserError: there is no such run, or its model has to be named.
        """
        config = records.read_config(folder)
        settings = cls.from_record(config, str(folder / records.CONFIG))
        if is_own(settings.model) and not names_model:
            raise UserError(
                f"the run in {folder} trains {settings.model}, whose code runs only "
                f"where you name it: add --model={settings.model} (in Python model=)"
            )
        return settings

    @classmethod
    def continuing(cls, folder: str | pathlib.Path, **changes: Any) -> "Settings":
        """The settings of a run, for another one that goes on from its last state.

        Args:
          folder: of the run.
          **changes: settings that are to be others, such as ``epochs=10``; ``epochs``
            and ``cycles`` replace each other.

        Raises:
          UserError: there is no such run, or they do not fit together.
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
    """Whether recorded settings name a file or a run for their recipe."""
    recipe, origin = settings.get("recipe"), settings.get("continue_from")
    is_file = isinstance(recipe, str) and pathlib.Path(recipe).is_absolute()
    return is_file or origin is not None


def differences(now: dict[str, Any], recorded: dict[str, Any]) -> list[str]:
    """Settings that are recorded otherwise; those of places do not count.

    Args:
      now: as ``Settings.record`` gives them.
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

# By the type of a setting: what to give.
_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    typing.Union[int, float]: "a number",  # noqa: UP007 (as type_of gives it)
}


@functools.cache
def type_of(name: str) -> Any:
    """The type of a setting that is given, so without None."""
    kind = TYPES[name]
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    kinds = [one for one in typing.get_args(kind) if one is not types.NoneType]
    return typing.Union[tuple(kinds)]  # noqa: UP007 (of a list)


@functools.cache
def choices_of(name: str) -> tuple[str, ...]:
    """The values that a setting is one of; none where it may be others."""
    if name == "optimizer":
        return optimizers.names()
    kind = type_of(name)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def parse_setting(name: str, text: str) -> Any:
    """The value of a setting that a text stands for, as a flag or a list gives it.

    Raises:
      ValueError: it stands for none; the message says what to give.
    """
    try:
        if name == "seeds":
            return tuple(int(word) for word in text.split(","))
        if name == "seeds_vary":
            return msgspec.convert(text.split(","), type_of(name))
        kind = type_of(name)
        if typing.get_origin(kind) is dict:
            return msgspec.json.decode(text, type=kind)
        # Numbers as people write them, such as .1 and +1., are not all of JSON.
        if float in (kind, *typing.get_args(kind)) and _LOOSE_NUMBER.fullmatch(text):
            text = msgspec.json.encode(float(text)).decode()  # null if it is infinite
        # For msgspec 3.0 is a whole number, too.
        if kind is int and not re.fullmatch(r"[+-]?\d+", text):
            raise ValueError(text)
        return _check_choice(name, msgspec.convert(text, kind, strict=False))
    except ValueError as error:
        raise ValueError(f"give {what_to_give(name)}") from error


def check_setting(name: str, value: Any) -> Any:
    """The value of a setting, from Python or JSON, as its type has it.

    Raises:
      UserError: it is of another type.
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
    """ValueError for a text that is none of the choices, or can name nothing."""
    choices = choices_of(name)
    if value is not None and choices and value not in choices:
        raise ValueError(value)
    if name == "model" and value not in MODELS and not is_own(value):
        raise ValueError(value)
    return check_text(value) if isinstance(value, str) else value


def what_to_give(name: str) -> str:
    """What a setting takes, for a person to read."""
    if name == "seeds":
        return "whole numbers, as 0,1,2"
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
