"""The flags of a search; see ``cifar_flax.sweeps.search``."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from cifar_flax.commands import cli
from cifar_flax.errors import UserError
from cifar_flax.search_records import Search
from cifar_flax.sweeps.budget import FlopsBudget
from cifar_flax.sweeps.search import Searching
from cifar_flax.sweeps.space import MAX_TRIALS, read_space
from cifar_flax.sweeps.tpe import check_optuna
from cifar_flax.training.arguments import SEED_RANGE

FLAGS = flags.FLAGS

# Flags that only a search has.
OF_SEARCH = ("space", "trials", "search_seed", "prune")

# Flags that set the schedule, and the settings that they replace.
BUDGETS = ("budget_epochs", "budget_flops")
OF_BUDGET = {"epochs", "cycles", "cycle_len", "cycle_mult", "phases"}

# Fresh seeds of the best trial if --fresh_seeds is not given.
FRESH_SEEDS = 5

cli.GROUPS |= {"Search": ("search", *OF_SEARCH, "fresh_seeds")}


def define_search() -> None:
    """Defines the flags."""
    flags.DEFINE_enum(
        "search",
        None,
        ["random", "tpe"],
        "Give each model the same number of trials over --space, choose its best trial "
        "by validation accuracy, and train that with fresh seeds. random: independent "
        "draws; tpe: each trial is proposed from the results before it, by Optuna.",
    )
    cli.define_path(
        "space",
        None,
        "File of the space (TOML), a line for each setting, such as "
        "lr = {log_uniform = [0.003, 0.3]}; also uniform, integers, log_integers and "
        "choices. --dry_run shows the trials.",
    )
    flags.DEFINE_integer(
        "trials", None, "Number of trials of each model.", 1, MAX_TRIALS
    )
    flags.DEFINE_integer(
        "search_seed",
        0,
        "Seed of the draws; the same seed gives the same trials.",
        SEED_RANGE[0],
        SEED_RANGE[-1],
    )
    flags.DEFINE_bool(
        "prune",
        False,
        "End a trial whose best validation accuracy so far is below the median of the "
        "finished trials of its model at the same epoch, after a quarter of its epochs "
        "(with Optuna).",
    )
    flags.DEFINE_integer(
        "fresh_seeds",
        None,
        "When all combinations or trials are done, train the one of each model that is "
        "best on the validation split with this many further seeds, which did not "
        f"choose it (default: {FRESH_SEEDS} with --search, otherwise none).",
        0,
        1_000,
    )


def search_from_flags(
    lists: Mapping[str, Sequence[Any]],
    folder: pathlib.Path,
    budget: FlopsBudget | None = None,
) -> Searching | None:
    """Makes the search that the flags describe; None if they describe none.

    Args:
      lists: one or more values of each setting.
      folder: of the sweep.
      budget: of each trial; None if the settings give the schedule.

    Raises:
      flags.ValidationError: flags are missing or contradict each other.
      UserError: the space is not valid, or the folder holds another search.
    """
    if FLAGS.search is None:
        for name in OF_SEARCH:
            if FLAGS[name].present:
                raise flags.ValidationError(f"--{name} needs --search=random or tpe")
        return None
    for name in ("space", "trials"):
        if FLAGS[name].value is None:
            raise flags.ValidationError(f"--search needs --{name}")
    if FLAGS.shard is not None:
        raise flags.ValidationError(
            "--shard is not for --search; start the same command several times, and "
            "they share the trials"
        )
    if FLAGS.search == "tpe" or FLAGS.prune:
        check_optuna("--search=tpe" if FLAGS.search == "tpe" else "--prune")
    space, lists = read_space(FLAGS.space), dict(lists)
    budgets = [n for n in BUDGETS if FLAGS[n].value is not None]
    if budgets:
        if clash := OF_BUDGET & space.settings:
            raise UserError(
                f"--{budgets[0]} sets the schedule; drop {min(clash)} from "
                f"--space={FLAGS.space}"
            )
        if "lr" in space.settings and not FLAGS["lr"].present:
            del lists["lr"]  # which would be auto
    wanted = Search(
        kind=FLAGS.search,
        seed=FLAGS.search_seed,
        space=space.plain,
        seeds=list(FLAGS.seeds),
        count=FLAGS.trials,
        prunes=FLAGS.prune,
        budget_flops=FLAGS.budget_flops,
        subjects=[],
    )
    fresh = FRESH_SEEDS if FLAGS.fresh_seeds is None else FLAGS.fresh_seeds
    settle = {} if budget is None else {"settle": budget}
    return Searching(wanted, space, lists, folder, fresh, **settle)
