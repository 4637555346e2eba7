"""The public names, each from the module that defines it: one on each line.

``__init__.py`` loads them when they are first used, and type checkers read them here.
"""

__version__: str

from .analysis.arrays import compare as compare
from .analysis.arrays import holm as holm
from .analysis.arrays import seeds_needed as seeds_needed
from .analysis.statistics import interval_of_accuracy as interval_of_accuracy
from .analysis.statistics import mcnemar as mcnemar
from .data import Dataset as Dataset
from .data import Split as Split
from .data import Splits as Splits
from .data import load_dataset as load_dataset
from .data import make_dataset as make_dataset
from .data import split_dataset as split_dataset
from .data.augment import Augmentation as Augmentation
from .errors import UserError as UserError
from .layers.batch_norm import BatchNorm as BatchNorm
from .layers.rule import fast_convolutions as fast_convolutions
from .models import create_model as create_model
from .models.nnx_model import NnxModel as NnxModel
from .reports.page import report as report
from .reports.tables import load_results as load_results
from .runs.checkpoint import open_checkpoints as open_checkpoints
from .runs.export import export_safetensors as export_safetensors
from .runs.export import export_stablehlo as export_stablehlo
from .runs.inference import Run as Run
from .runs.observers import Observer as Observer
from .runs.observers import RangeTestResult as RangeTestResult
from .runs.observers import RunResult as RunResult
from .runs.range_tests import range_test as range_test
from .runs.session import run as run
from .runs.settings import Settings as Settings
from .runs.tables import Summary as Summary
from .show.console import ConsoleDisplay as ConsoleDisplay
from .show.figures import plot_images as plot_images
from .show.figures import plot_loss as plot_loss
from .show.figures import plot_lr as plot_lr
from .show.tensorboard import TensorBoard as TensorBoard
from .training.lr_range import RangeSettings as RangeSettings
from .training.optimizers import Group as Group
from .training.phases import Constant as Constant
from .training.phases import Cosine as Cosine
from .training.phases import Linear as Linear
from .training.phases import OneCycle as OneCycle
from .training.phases import Sgdr as Sgdr
from .training.phases import Trapezoid as Trapezoid
from .training.pieces import batches as batches
from .training.pieces import range_curves as range_curves
from .training.recipe_files import read_recipe as read_recipe
from .training.recipes import Recipe as Recipe
from .training.trainer import Trainer as Trainer
