"""The settings of a run: one dataclass, from which the flags are made."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from cifar_flax import records
from cifar_flax.data.archive import check_sha256
from cifar_flax.data.augment import PADDING_MODES, Augmentation
from cifar_flax.data.load import check_name
from cifar_flax.errors import UserError
from cifar_flax.fields import FLAG, INTEGER, NULL, NUMBER, TEXT, check, either, one_of
from cifar_flax.models import MODELS
from cifar_flax.recipes import (
    LESSON,
    MAX_FLOAT,
    MAX_SHARE,
    MIN_FLOAT,
    Constant,
    Phase,
    Recipe,
    Sgdr,
)
from experiments import cli
from experiments.text_flag import PRINTABLE, Text, define_text

DTYPES = ("float32", "bfloat16")

# In place of a rate: the one that the range test suggests.
AUTO = "auto"

# What jax.random.key takes as int32.
SEED_RANGE = range(-(2**31), 2**31)


def _setting(default: Any, help_text: str, choices=None) -> Any:
    return dataclasses.field(
        default=default, metadata={"help": help_text, "choices": choices}
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run; the help texts say what each is."""

    model: str = _setting("convbn", "Architecture.", tuple(MODELS))
    seeds: tuple[int, ...] = _setting((0,), "Seeds, one replica each, as 0,1,2.")

    dataset: str = _setting(
        "auto",
        "auto: CIFAR-10 where it is on disk or can be fetched, else the built-in "
        "shapes; cifar10: never anything else; shapes; or the name of another set "
        "of 32x32x3 images that tensorflow-datasets has prepared.",
    )
    data_dir: str | None = _setting(
        None,
        "Where data sets lie (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).",
    )
    data_archive: str | None = _setting(
        None, "The official CIFAR-10 archive, binary or python version, or its folder."
    )
    archive_sha256: str | None = _setting(
        None, "Checksum to expect of --data_archive where it is not the official one."
    )
    val_size: int = _setting(
        5_000, "Training images held out for validation; 0: train on all of them."
    )
    train_size: int | None = _setting(
        None, "Train on this many images only (default: all that are left)."
    )
    padding: int = _setting(4, "Pixels of border before the random crop; 0: no crop.")
    padding_mode: str = _setting("symmetric", "What the border holds.", PADDING_MODES)
    flip: bool = _setting(True, "Mirror half of the training images.")

    recipe: str = _setting("lesson", "Where the fits come from.", ("lesson",))
    phases: int | None = _setting(
        None, "Train only the recipe's first phases, as many as this."
    )
    lr: float | str | None = _setting(
        None,
        "Peak rate. With --epochs a constant rate, with --cycles SGDR; alone it "
        "scales the recipe's rates so that this is the highest. auto: what "
        "experiments.lr_find suggests, run first.",
    )
    epochs: int | None = _setting(None, "Epochs at the constant rate --lr.")
    cycles: int | None = _setting(None, "SGDR cycles from --lr to 0.")
    cycle_len: int | None = _setting(
        None, "Epochs in the first SGDR cycle (default: 1)."
    )
    cycle_mult: int | None = _setting(
        None, "Each SGDR cycle is this many times as long (default: 1)."
    )
    batch_size: int | None = _setting(None, "Images a step (default: the recipe's).")
    momentum: float | None = _setting(None, "Of SGD (default: the recipe's).")
    nesterov: bool | None = _setting(None, "Nesterov momentum (default: the recipe's).")
    weight_decay: float | None = _setting(
        None, "L2 penalty on every parameter (default: the recipe's)."
    )
    label_smoothing: float | None = _setting(
        None, "Share of the target spread over all classes (default: the recipe's)."
    )

    bn_momentum: float = _setting(
        0.9, "Share of its running statistics that batch norm keeps a step."
    )
    bn_epsilon: float = _setting(1e-5, "Added to batch norm's variance.")
    bn_freeze: bool = _setting(
        False, "Normalise with the running statistics, and never update them."
    )
    dtype: str = _setting("float32", "Of the computation.", DTYPES)

    workdir: str | None = _setting(
        None, "The run's folder (default: a new one under runs/)."
    )
    tensorboard: bool = _setting(
        False, "Write event files for TensorBoard into the folder, too."
    )
    resume: bool = _setting(False, "Go on with the unfinished run in --workdir.")

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError(
                f"--seeds={','.join(map(str, self.seeds))}: give one or more different "
                "numbers, as 0,1,2"
            )
        if wrong := [seed for seed in self.seeds if seed not in SEED_RANGE]:
            raise UserError(
                f"--seeds={wrong[0]}: a seed is from {SEED_RANGE[0]} to "
                f"{SEED_RANGE[-1]}"
            )
        if self.val_size < 0:
            raise UserError(f"--val_size={self.val_size}: it must be 0 or more")
        if self.train_size is not None and self.train_size < 1:
            raise UserError(f"--train_size={self.train_size}: it must be 1 or more")
        if not 0 <= self.bn_momentum <= MAX_SHARE:
            raise UserError(f"--bn_momentum={self.bn_momentum}: it must be in [0, 1)")
        if not MIN_FLOAT <= self.bn_epsilon <= MAX_FLOAT:
            raise UserError(
                f"--bn_epsilon={self.bn_epsilon}: it must be above 0, from "
                f"{MIN_FLOAT:g} to {MAX_FLOAT:g}"
            )
        check_name(self.dataset)
        if self.archive_sha256 is not None:
            check_sha256(self.archive_sha256)
        if self.resume and self.workdir is None:
            raise UserError("--resume needs --workdir, the folder of the run to go on")
        # Wrong values are reported before any data are loaded.
        self.make_recipe()
        _ = self.augmentation

    @property
    def augmentation(self) -> Augmentation:
        """How training images are varied."""
        return Augmentation(self.padding, self.padding_mode, self.flip)

    def make_recipe(self, found_lr: float | None = None) -> Recipe:
        """The model's own recipe, with what the flags replace of it.

        Args:
          found_lr: the rate that stands for ``--lr=auto``. While it is not known the
            recipe has its own rates; batch size, momentum and regularisation, which
            the range test goes by, are right.
        """
        recipe = LESSON[self.model]
        if self.phases is not None and not 1 <= self.phases <= len(recipe.phases):
            raise UserError(
                f"--phases={self.phases}: the recipe of {self.model} has "
                f"{len(recipe.phases)}"
            )
        names = (
            "batch_size",
            "momentum",
            "nesterov",
            "weight_decay",
            "label_smoothing",
        )
        given = {name: getattr(self, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        phases = self._make_phases(recipe.phases[: self.phases], found_lr)
        return dataclasses.replace(recipe, phases=phases, **given)

    def _make_phases(
        self, phases: tuple[Phase, ...], found_lr: float | None
    ) -> tuple[Phase, ...]:
        shape = ("epochs", "cycles", "cycle_len", "cycle_mult")
        given = [name for name in shape if getattr(self, name) is not None]
        if given and self.lr is None:
            raise UserError(f"--{given[0]} needs --lr, the rate to train with")
        if self.epochs is not None and len(given) > 1:
            raise UserError(
                f"--epochs is for a constant rate and --{given[1]} for SGDR cycles; "
                "give one of them"
            )
        if given and self.epochs is None and self.cycles is None:
            raise UserError(f"--{given[0]} needs --cycles, the number of SGDR cycles")
        if self.lr is None:
            return phases
        if self.lr not in (0, AUTO) and not MIN_FLOAT <= self.lr <= MAX_FLOAT:
            raise UserError(
                f"--lr={self.lr}: it must be {AUTO}, 0, or from {MIN_FLOAT:g} to "
                f"{MAX_FLOAT:g}"
            )
        highest = max(phase.learning_rate for phase in phases)
        lr = found_lr or highest if self.lr == AUTO else self.lr
        if self.epochs is not None:
            return (Constant(lr, self.epochs),)
        if self.cycles is not None:
            length, mult = (
                1 if value is None else value
                for value in (self.cycle_len, self.cycle_mult)
            )
            return (Sgdr(lr, self.cycles, length, mult),)
        scale = lr / highest
        return tuple(
            dataclasses.replace(phase, learning_rate=phase.learning_rate * scale)
            for phase in phases
        )

    def changes(self, *names: str) -> bool:
        """Whether any of these settings is not at its default."""
        default = type(self)()
        return any(getattr(self, name) != getattr(default, name) for name in names)

    def deciding(self) -> dict[str, Any]:
        """The settings that decide a run's numbers, as ``config.json`` has them.

        Where the data and the run lie does not count; the data set itself is told by
        its fingerprint.
        """
        own = json.loads(json.dumps(dataclasses.asdict(self)))
        return {n: value for n, value in own.items() if n not in records.PLACES}

    def differences(self, recorded: dict[str, Any]) -> list[str]:
        """Deciding settings that are recorded otherwise.

        Args:
          recorded: the ``settings`` of a ``config.json``.
        """
        return [
            f"--{name} was {recorded.get(name)} and is {value}"
            for name, value in self.deciding().items()
            if recorded.get(name) != value
        ]


def define_flags(*names: str, without: Sequence[str] = (), lists: bool = False) -> None:
    """Defines a flag for each field of ``Config``, or for those named.

    Args:
      *names: fields; all of them where none is named.
      without: fields to leave at their defaults.
      lists: each flag takes a comma list; see ``parse_setting``.
    """
    for field in dataclasses.fields(Config):
        if (names and field.name not in names) or field.name in without:
            continue
        help_text, choices = field.metadata["help"], field.metadata["choices"]
        if lists:
            flags.DEFINE_list(field.name, None, help_text)
            continue
        kind = str(field.type)
        if choices is not None:
            flags.DEFINE_enum(field.name, field.default, choices, help_text)
        elif field.name == "seeds":
            flags.DEFINE_list(field.name, list(map(str, field.default)), help_text)
        elif "bool" in kind:
            flags.DEFINE_bool(field.name, field.default, help_text)
        elif "int" in kind:
            flags.DEFINE_integer(field.name, field.default, help_text)
        elif "float" in kind and "str" not in kind:
            flags.DEFINE_float(field.name, field.default, help_text)
        else:
            define_text(field.name, field.default, help_text)


def check_models(names: list[str]) -> list[str]:
    """The models that ``--models`` names, all of them for ``all``.

    Raises:
      flags.ValidationError: none, no such model, or one twice.
    """
    if names == ["all"]:
        return list(MODELS)
    if not names or len(set(names)) < len(names):
        raise flags.ValidationError(
            f"--models={','.join(names)}: give one or more different models, or all"
        )
    wrong = [name for name in names if name not in MODELS]
    if wrong:
        raise flags.ValidationError(
            f"--models={','.join(wrong)}: give all, or some of {', '.join(MODELS)}"
        )
    return names


def parse_seeds(texts: list[str]) -> tuple[int, ...]:
    """The seeds that ``--seeds`` names; flags.ValidationError for what is no number."""
    try:
        return tuple(int(text) for text in texts)
    except ValueError as error:
        raise flags.ValidationError(
            f"--seeds={','.join(texts)}: give whole numbers, as 0,1,2"
        ) from error


_TRUTH = {"true": True, "false": False}

# By a word in the type of a field: what to give, and how it is read.
_READERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "bool": (
        "true or false",
        lambda text: _TRUTH[text.lower()],
    ),
    "int": ("a number", int),
    "float": ("a number", float),
    "": (PRINTABLE, Text().parse),
}


def parse_setting(name: str, text: str) -> Any:
    """The value of a field of ``Config`` that a text stands for.

    Raises:
      flags.ValidationError: it stands for none.
    """
    (field,) = (f for f in dataclasses.fields(Config) if f.name == name)
    choices, kind = field.metadata["choices"], str(field.type)
    if choices is not None and text not in choices:
        raise flags.ValidationError(
            f"--{name}={text}: give one of {', '.join(choices)}"
        )
    what, parse = _READERS[next((key for key in _READERS if key in kind), "")]
    if name == "lr":
        if text == AUTO:
            return text
        what += f", or {AUTO}"
    try:
        return parse(text)
    except (ValueError, KeyError) as error:
        raise flags.ValidationError(f"--{name}={text}: give {what}") from error


_KINDS = {"str": TEXT, "int": INTEGER, "float": NUMBER, "bool": FLAG, "None": NULL}


def read_settings(folder: pathlib.Path) -> dict[str, Any]:
    """The settings in a run's ``config.json``, as ``Config`` takes them.

    Raises:
      UserError: there are none, or a run cannot have them.
    """
    where = str(folder / records.CONFIG)
    config = records.read_config(folder)
    check(config, {"settings": {"seeds": [INTEGER]}}, where)
    settings = {}
    for field in dataclasses.fields(Config):
        if field.name not in config["settings"]:
            continue
        value, choices = config["settings"][field.name], field.metadata["choices"]
        words = re.findall(r"\w+", str(field.type))  # as "int | None"
        kinds = [_KINDS[word] for word in words if word in _KINDS]
        if field.name == "lr":
            kinds = [NUMBER, NULL, one_of(AUTO)]
        if field.name == "seeds":
            value = tuple(value)
        else:
            shape = either(*kinds) if choices is None else one_of(*choices)
            check({field.name: value}, {field.name: shape}, f"{where}, settings")
        settings[field.name] = value
    try:
        Config(**{**settings, "resume": False})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return settings


def config_from_flags() -> Config:
    """The settings that the flags give.

    With ``--resume`` a flag that is not given keeps the value in the run's record.

    Raises:
      UserError: no run to resume.
      flags.ValidationError: flags that contradict each other or are out of range.
    """
    names = [f.name for f in dataclasses.fields(Config) if f.name in flags.FLAGS]
    values = {name: getattr(flags.FLAGS, name) for name in names}
    values["seeds"] = parse_seeds(values["seeds"])
    if values.get("lr") is not None:
        values["lr"] = parse_setting("lr", values["lr"])
    if values.get("resume") and values["workdir"] is not None:
        recorded = read_settings(pathlib.Path(values["workdir"]))
        for name in names:
            if not flags.FLAGS[name].present and name in recorded:
                values[name] = recorded[name]
    with cli.usage_errors():
        return Config(**values)
