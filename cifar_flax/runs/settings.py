"""The settings of a run: a dataclass whose fields say which values are valid."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn

from cifar_flax import records
from cifar_flax.data import Dataset, load_dataset
from cifar_flax.data.archive import check_sha256
from cifar_flax.data.load import check_name
from cifar_flax.data.own import whole_name as whole_dataset
from cifar_flax.definitions import with_fields
from cifar_flax.errors import UserError
from cifar_flax.files import expand_user
from cifar_flax.models import make_model
from cifar_flax.models.own import make_own
from cifar_flax.own_code import is_own, label_of, whole_name
from cifar_flax.runs.flag_text import as_text
from cifar_flax.runs.own_metrics import check_metric_names
from cifar_flax.runs.recipe_choice import AUTO, OF_RECIPE, choose_recipe
from cifar_flax.runs.recorded_settings import SETTINGS, RecordedSettings
from cifar_flax.runs.setting_values import check_value
from cifar_flax.training import processes
from cifar_flax.training.named_recipes import NAMES, bn_momentum_for
from cifar_flax.training.recipe_files import read_recipe, to_plain
from cifar_flax.training.recipes import Recipe
from cifar_flax.training.trainer import check_seeds

# Settings that are paths.
PATHS = ("data_dir", "data_archive")

# Settings that have only one value in a sweep, because the value may contain a comma.
SINGLE = (
    *(*PATHS, "model_args", "optimizer_args", "loss_args", "class_weights"),
    *("freeze", "seeds_vary", "also_test", "metrics"),
)

# The seeds of a range test; five show whether they agree.
RANGE_SEEDS = (0, 1, 2, 3, 4)

# The settings of model and data, which a program may replace by its own.
_OF_OUR_MODELS = ("dtype", "bn_momentum", "bn_epsilon", "bn_freeze")
OF_MODEL = ("model", "model_args", *_OF_OUR_MODELS)
OF_EVALUATION = ("also_test", "metrics")
OF_DATA = ("dataset", *PATHS, "archive_sha256", "image_size", "val_size", "train_size")


def check_test_name(name: str) -> None:
    """Raises a UserError unless a name can be that of further test images.

    It becomes part of the name of a file and of the columns of a report.
    """
    taken = name in ("train", "val", "test")
    if taken or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,39}", name):
        raise UserError(
            f"--also_test: {name!r} cannot name test images; give letters, digits, _ "
            "and -, and not train, val or test"
        )


@dataclasses.dataclass(frozen=True)
class Settings(RecordedSettings):
    """All settings of a run; the help texts describe each.

    They are checked on construction, whether they come from Python, flags, the lists of
    a sweep, or a record. Those that replace a hyperparameter of the recipe follow from
    its definition; see ``recipe_choice.settings_of``.

    Raises:
      UserError: a setting has another type, is out of range, or contradicts another.
    """

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
        self._check_also_test()
        whole = check_metric_names(self.metrics or ())
        object.__setattr__(self, "metrics", whole or None)
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

    def with_given(self, given: Mapping[str, Any]) -> "Settings":
        """Returns the settings of a record with others in their place.

        The recipe is the recorded one, unless a given setting decides it.

        Args:
          given: values of settings by their names.

        Raises:
          UserError: the settings contradict each other.
        """
        values = {name: getattr(self, name) for name in SETTINGS} | dict(given)
        decided = given.keys() & {*OF_RECIPE, "continue_from"}
        recipe = None if decided else self.trained_recipe
        return Settings(**values, recorded_recipe=recipe)

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

    def _check_also_test(self) -> None:
        """Checks names and data sets, and makes the paths absolute."""
        if self.also_test is None:
            return
        for name, dataset in self.also_test.items():
            check_test_name(name)
            check_name(dataset)
        whole = {name: whole_dataset(value) for name, value in self.also_test.items()}
        object.__setattr__(self, "also_test", whole or None)

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


_ABOUT = {name: one.about for name, one in SETTINGS.items()}
_KINDS = {name: one.kind for name, one in SETTINGS.items()}
Settings.__doc__ = with_fields(Settings.__doc__, _ABOUT, _KINDS)
