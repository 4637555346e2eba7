"""A laboratory for comparing small image-classification architectures.

    import cifar_flax as cf

    settings = cf.Settings(model="convbn", seeds=(0, 1, 2))
    result = cf.run(settings, "runs/mine", observers=[cf.ConsoleDisplay()])

The names below are loaded when they are first used. Importing the package is quick and
does not import JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Each public name, and the module that defines it.
_HOME = {
    "Augmentation": "data.augment",
    "ConsoleDisplay": "show.console",
    "Constant": "training.phases",
    "Cosine": "training.phases",
    "Group": "training.optimizers",
    "Linear": "training.phases",
    "OneCycle": "training.phases",
    "Dataset": "data",
    "Observer": "runs.observers",
    "RangeSettings": "training.lr_range",
    "RangeTestResult": "runs.observers",
    "Recipe": "training.recipes",
    "Run": "runs.inference",
    "RunResult": "runs.observers",
    "Settings": "runs.settings",
    "Sgdr": "training.phases",
    "Split": "data",
    "Splits": "data",
    "Summary": "runs.tables",
    "TensorBoard": "show.tensorboard",
    "Trainer": "training.trainer",
    "Trapezoid": "training.phases",
    "UserError": "errors",
    "create_model": "models",
    "export_safetensors": "runs.export",
    "export_stablehlo": "runs.export",
    "load_dataset": "data",
    "load_results": "reports.tables",
    "make_dataset": "data",
    "open_checkpoints": "runs.checkpoint",
    "plot_images": "show.figures",
    "plot_loss": "show.figures",
    "plot_lr": "show.figures",
    "range_test": "runs.range_tests",
    "read_recipe": "training.recipe_files",
    "report": "reports.page",
    "run": "runs.session",
    "split_dataset": "data",
}

__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from cifar_flax.data import (
        Dataset,
        Split,
        Splits,
        load_dataset,
        make_dataset,
        split_dataset,
    )
    from cifar_flax.data.augment import Augmentation
    from cifar_flax.errors import UserError
    from cifar_flax.models import create_model
    from cifar_flax.reports.page import report
    from cifar_flax.reports.tables import load_results
    from cifar_flax.runs.checkpoint import open_checkpoints
    from cifar_flax.runs.export import export_safetensors, export_stablehlo
    from cifar_flax.runs.inference import Run
    from cifar_flax.runs.observers import Observer, RangeTestResult, RunResult
    from cifar_flax.runs.range_tests import range_test
    from cifar_flax.runs.session import run
    from cifar_flax.runs.settings import Settings
    from cifar_flax.runs.tables import Summary
    from cifar_flax.show.console import ConsoleDisplay
    from cifar_flax.show.figures import plot_images, plot_loss, plot_lr
    from cifar_flax.show.tensorboard import TensorBoard
    from cifar_flax.training.lr_range import RangeSettings
    from cifar_flax.training.optimizers import Group
    from cifar_flax.training.phases import (
        Constant,
        Cosine,
        Linear,
        OneCycle,
        Sgdr,
        Trapezoid,
    )
    from cifar_flax.training.recipe_files import read_recipe
    from cifar_flax.training.recipes import Recipe
    from cifar_flax.training.trainer import Trainer


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cifar_flax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"cifar_flax.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
