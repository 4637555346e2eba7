"""The settings of a run: a dataclass whose fields say which values are valid."""

import copy
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn

from cifar_flax import records
from cifar_flax.data import Dataset, load_dataset
from cifar_flax.data.archive import check_sha256
from cifar_flax.data.augment import Augmentation
from cifar_flax.data.load import check_name
from cifar_flax.data.own import whole_name as whole_dataset
from cifar_flax.data.splits import VAL_SIZE
from cifar_flax.definitions import (
    MAX_FLOAT,
    MAX_SIDE,
    MIN_FLOAT,
    SHARE,
    Hyper,
    Hyperparameter,
    Valid,
    hyperparameters,
)
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user
from cifar_flax.models import MODELS, make_model, norm_fields
from cifar_flax.models.own import is_own, label_of, make_own, whole_name
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.recipe_choice import (
    AUTO,
    OF_AUGMENTATION,
    OF_CYCLES,
    choose_recipe,
    flags_of,
    settings_of,
)
from cifar_flax.runs.setting_values import check_value
from cifar_flax.training import processes
from cifar_flax.training.named_recipes import NAMES, bn_momentum_for, own_name
from cifar_flax.training.phases import Sgdr
from cifar_flax.training.recipe_files import from_plain, read_recipe, to_plain
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import check_seeds

# Settings that are paths.
PATHS = ("data_dir", "data_archive")

# Settings that have only one value in a sweep, because the value may contain a comma.
SINGLE = (*PATHS, "model_args", "optimizer_args", "freeze", "seeds_vary")

# The seeds of a range test; five show whether they agree.
RANGE_SEEDS = (0, 1, 2, 3, 4)

# The settings of model and data, which a program may replace by its own.
_OF_OUR_MODELS = ("dtype", "bn_momentum", "bn_epsilon", "bn_freeze")
OF_MODEL = ("model", "model_args", *_OF_OUR_MODELS)
OF_DATA = ("dataset", *PATHS, "archive_sha256", "image_size", "val_size", "train_size")

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
class _Schedule:
    recipe: Annotated[
        str | None,
        Hyper(
            "lesson: the lesson's recipe for the model; original: the same with all "
            "details of the lesson's library; modern: a better one, for any model; "
            "airbench94: the published one of airbench; fast85, fast87, fast89, "
            "fast90: shorter ones of airbench, named by their accuracy; or a TOML "
            "file (default: lesson, and airbench94 for airbench). --print_recipe "
            "prints the recipe as such a file."
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
class Settings(_Recipe, _Cycles, _Schedule, _Augmentation, _ModelAndData):
    """All settings of a run; the help texts describe each.

    They are checked on construction, whether they come from Python, flags, the lists of
    a sweep, or a record. Those that replace a hyperparameter of the recipe follow from
    its definition; see ``recipe_choice.settings_of``.

    Raises:
      UserError: a setting has another type, is out of range, or contradicts another.
    """

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

    # The recipe of a record, whose file or earlier run may not exist any more.
    recorded_recipe: dataclasses.InitVar[Recipe | None] = None
    trained_recipe: ClassVar[Recipe | None] = None
    _recipe: ClassVar[Recipe]
    _file: ClassVar[Recipe | None]

    def __post_init__(self, recorded_recipe: Recipe | None):
        object.__setattr__(self, "trained_recipe", recorded_recipe)
        for name, one in SETTINGS.items():
            value = getattr(self, name)
            if value is not one.default:  # saves time: a sweep makes thousands of these
                object.__setattr__(self, name, check_value(one, value))
        check_seeds(self.seeds)
        self._check_seeds_vary()
        self._check_model()
        check_name(self.dataset)
        object.__setattr__(self, "dataset", whole_dataset(self.dataset))
        if self.init_from is not None and self.continue_from is not None:
            raise UserError(
                f"--init_from={self.init_from} and --continue_from="
                f"{self.continue_from}: give one of them"
            )
        self._make_paths_absolute()
        if self.archive_sha256 is not None:
            check_sha256(self.archive_sha256)
        # Making the recipe now reports wrong values before any data are loaded. It is
        # kept because making it takes longer than everything else here, and the recipe
        # of a file because the file may change.
        named = self.recipe is None or self.recipe in NAMES
        is_read = not named and self.trained_recipe is None
        file = read_recipe(str(self.recipe)) if is_read else None
        object.__setattr__(self, "_file", file)
        recipe = self.trained_recipe or choose_recipe(self.given(), self.model, file)
        object.__setattr__(self, "_recipe", recipe)

    def _make_paths_absolute(self) -> None:
        """Makes paths absolute, so that a run can be resumed from another folder."""
        for name in (*PATHS, "recipe", "init_from", "continue_from"):
            path = getattr(self, name)
            if path is None or (name == "recipe" and path in NAMES):
                continue
            try:
                path = str(expand_user(path).absolute())
            except UserError as error:
                raise UserError(f"--{name}={path}: {error}") from error
            object.__setattr__(self, name, path)

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
        return choose_recipe(self.given(), self.model, self._file, found_lr, of_ours)

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

    def given(self) -> dict[str, Any]:
        """Returns the settings that have a value."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {name: value for name, value in values.items() if value is not None}

    def changed(self) -> dict[str, Any]:
        """Returns the settings that differ from their defaults."""
        values = {name: getattr(self, name) for name in SETTINGS}
        return {n: v for n, v in values.items() if v != SETTINGS[n].default}

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
        values = {name: getattr(self, name) for name in SETTINGS}
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
        found = {
            n: config.settings.get(n, SETTINGS[n].default) for n in names or SETTINGS
        }
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
        values = {name: getattr(before, name) for name in SETTINGS}
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


# Every setting by its name, in the order of the flags.
SETTINGS: dict[str, Hyperparameter] = hyperparameters(Settings)
