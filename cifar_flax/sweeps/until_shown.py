"""Adds seeds to a sweep until it is shown which entry is the best.

A study looks at its entries at fixed numbers of seeds. The entries that may still be
the best get more seeds, until one is left or the largest number is reached. All that a
study decides follows from the accuracies of its first seeds, so the same command goes
on after any end, with the same looks.
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import msgspec
from scipy.special import stdtr

from cifar_flax import records
from cifar_flax.analysis.sequential import Plan, planned_looks, same_within
from cifar_flax.analysis.statistics import LEVEL, Difference, compare, holm
from cifar_flax.errors import UserError
from cifar_flax.json_files import write_json
from cifar_flax.reports.looks import PLAN, StudyPlan, key_of, read_plan, remember
from cifar_flax.reports.verdicts import points, verdict
from cifar_flax.sweeps.cells import Cell
from cifar_flax.sweeps.earlier import with_earlier_seeds

# An entry is behind if it would end ahead with a smaller probability than this, even if
# there was no true difference.
FUTILE = 0.01

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a study knows after its latest look.

    Attributes:
      count: number of seeds at that look; 0 before the first.
      front: the entries that may be the best, the leading one first.
      left: why the other entries get no more seeds, by entry.
      pairs: the difference of each compared pair, the first minus the second, judged
        over all its looks, with p-values adjusted for all pairs.
      same: adjusted p-value that a pair is within the margin; empty without one.
      needed: number of seeds of the front at the next look; None if the study is over.
    """

    count: int
    front: list[int]
    left: dict[int, str]
    pairs: dict[Pair, Difference]
    same: dict[Pair, float]
    needed: int | None


def decide(
    values: Sequence[Mapping[int, float]],
    looks: tuple[int, ...],
    seeds: Sequence[int],
    images: int = 0,
    margin: float | None = None,
) -> Standing:
    """Follows a study look by look, as far as there are results.

    An entry leaves the front if it is shown to be worse than another one, if a seed of
    it diverges, or if it is behind (see ``_is_behind``) while two others remain. The
    p-value of each pair is over all its looks, and Holm's method takes all pairs into
    account, whoever gets seeds. So a wrong verdict has a probability of at most 5 %,
    however entries leave.

    Args:
      values: the accuracy of each entry by the seed; NaN if the seed has diverged.
      looks: rising numbers of seeds.
      seeds: the seeds in the order in which they are added.
      images: number of test images.
      margin: largest difference that counts as the same, as a share.
    """
    plan, front = Plan(looks, looks[-1]), list(range(len(values)))
    left: dict[int, str] = {}
    histories: dict[Pair, list[Difference]] = {}
    standing = Standing(0, front, left, {}, {}, looks[0])
    for count in looks:
        chosen = seeds[:count]
        if any(seed not in values[one] for one in front for seed in chosen):
            return dataclasses.replace(standing, needed=count)
        for one in front:
            if any(math.isnan(values[one][seed]) for seed in chosen):
                left[one] = "a seed diverged; train it at a lower rate"
        able = sorted(one for one in front if one not in left)
        parts = {one: {seed: values[one][seed] for seed in chosen} for one in able}
        for i, j in itertools.combinations(able, 2):
            found = compare(parts[i], parts[j], images=images)
            assert found is not None  # a look has five seeds or more
            histories.setdefault((i, j), []).append(found)
        kept = {
            pair: history
            for pair, history in histories.items()
            if not any(left.get(one, "").startswith("a seed") for one in pair)
        }
        pairs, same = _judged(plan, kept, margin)
        means = {one: sum(parts[one].values()) for one in able}
        front = _front(plan, kept, pairs, means, left)
        is_over = len(front) < 2 or count == looks[-1] or _all_same(front, same)
        needed = None if is_over else looks[looks.index(count) + 1]
        standing = Standing(count, front, left, pairs, same, needed)
        if is_over:
            break
    return standing


def _judged(
    plan: Plan, histories: dict[Pair, list[Difference]], margin: float | None
) -> tuple[dict[Pair, Difference], dict[Pair, float]]:
    """Judges all pairs together, by their differences at each look."""
    pairs = dict(
        zip(histories, holm([plan.judge(h) for h in histories.values()]), strict=True)
    )
    if margin is None:
        return pairs, {}
    within = [
        dataclasses.replace(h[-1], p=plan.p([same_within(one, margin) for one in h]))
        for h in histories.values()
    ]
    same = [one.adjusted_p for one in holm(within)]
    return pairs, dict(zip(histories, same, strict=True))


def _front(
    plan: Plan,
    histories: dict[Pair, list[Difference]],
    pairs: dict[Pair, Difference],
    means: dict[int, float],
    left: dict[int, str],
) -> list[int]:
    """Returns the entries that may be the best, and adds to the reasons of others."""
    ranked = sorted(means, key=lambda one: -means[one])
    for i, j in itertools.combinations(ranked, 2):
        if pairs[min(i, j), max(i, j)].shown:
            left.setdefault(j, "it is shown to be worse than another one")
    front = [one for one in ranked if one not in left]
    for one in reversed(front[1:]):
        pair = min(front[0], one), max(front[0], one)
        if len(front) > 2 and _is_behind(plan, histories[pair], len(pairs)):
            left[one] = (
                f"it is {points(abs(pairs[pair].mean))} points behind the best, and "
                f"would be ahead with {plan.most} seeds in less than one of "
                f"{1 / FUTILE:.0f} studies, even if both were equally good"
            )
            front.remove(one)
    return front


def _is_behind(plan: Plan, history: list[Difference], comparisons: int) -> bool:
    """Returns whether the worse entry of a pair can hardly be ahead at the last look.

    If the seeds to come have no true difference, their sum is normal around 0. An entry
    stays in the study as long as there was one look only, or if the last look will show
    that it is worse unless the difference changes.
    """
    last, done = history[-1], len(history)
    count = last.counts[0]
    if done < 2 or count == plan.most or last.spread == 0:
        return False
    size = abs(last.mean) / last.spread
    ahead = stdtr(last.freedom, -count * size / math.sqrt(plan.most - count))
    end = 2 * float(stdtr(plan.most - 1, -size * math.sqrt(plan.most)))
    between = [1.0] * (len(plan.looks) - done - 1)
    p = plan.p([*(found.p for found in history), *between, end])
    return bool(ahead < FUTILE and p * comparisons >= LEVEL)


def _all_same(front: list[int], same: dict[Pair, float]) -> bool:
    """Returns whether all pairs of the front are shown to be the same."""
    pairs = itertools.combinations(sorted(front), 2)
    return bool(same) and all(same[pair] < LEVEL for pair in pairs)


def conclusion(
    standing: Standing, names: Sequence[str], margin: float | None = None
) -> list[str]:
    """Returns what a study has found, as sentences."""
    texts = []
    for (i, j), found in standing.pairs.items():
        if standing.front[:1] != [i] and standing.front[:1] != [j]:
            continue
        p = standing.same.get((i, j))
        within = None if p is None or margin is None else (margin, p)
        if found.shown or (p is not None and p < LEVEL):
            text = verdict(names[i], names[j], found, len(standing.pairs), within)
        else:
            most = points(min(1.0, abs(found.mean) + found.half_width))
            text = (
                f"{names[i]} and {names[j]}: not shown with {found.counts[0]} seeds; "
                f"the difference is below {most} points with 95 %."
            )
        texts.append(text)
    for one, why in standing.left.items():
        losses = [pair for pair in standing.pairs if _loses(standing, pair, one)]
        if not losses:
            texts.append(f"{names[one]} got no more seeds: {why}.")
        elif not any(standing.front[0] in pair for pair in losses):
            (i, j), count = losses[0], len(standing.pairs)
            texts.append(verdict(names[i], names[j], standing.pairs[i, j], count))
    return texts


def _loses(standing: Standing, pair: Pair, one: int) -> bool:
    """Returns whether an entry is shown to be the worse one of a pair."""
    found = standing.pairs[pair]
    return found.shown and one == pair[int(found.mean > 0)]


def begin(folder: pathlib.Path, plan: StudyPlan) -> StudyPlan:
    """Returns the plan of the study in a folder, or the given one if there is none.

    Raises:
      UserError: the folder has another study, whose results may have been seen.
    """
    before = read_plan(folder)
    cells = [] if before is None else before.cells
    if before is None or not any((folder / c / records.RESULT).exists() for c in cells):
        return plan
    for name in ("entries", "looks", "first_seed", "margin"):
        old, new = getattr(before, name), getattr(plan, name)
        if old != new:
            raise UserError(
                f"{folder / PLAN}: the {name} of this study are {old}, not {new}; a "
                "plan holds only if it is made before its results, so repeat the "
                "study's own command, or give another --workdir"
            )
    return before


class Study:
    """The cells of a study, and what they have shown so far."""

    def __init__(
        self,
        folder: pathlib.Path,
        plan: StudyPlan,
        make: Callable[[tuple[int, ...]], list[Cell]],
    ):
        """Begins a study, or continues the one in the folder.

        Args:
          folder: of the sweep.
          plan: of the study.
          make: returns the cells of all entries, one after the other, with some seeds.

        Raises:
          UserError: there are fewer than two entries, or another study is there.
        """
        if len(plan.entries) < 2:
            raise UserError(
                "--until_shown compares two or more combinations; give more"
            )
        self.plan = begin(folder, plan)
        self._folder, self._make = folder, make
        self._counts = [plan.looks[0]] * len(plan.entries)
        self._groups: list[list[Cell]] = []

    @property
    def cells(self) -> list[Cell]:
        """The cells of all seeds so far."""
        return [cell for group in self._groups for cell in group]

    def plan_cells(self) -> list[Cell]:
        """Returns the cells of all seeds until the next look, with their results."""
        self._groups = []
        for number, count in enumerate(self._counts):
            every = self._make(tuple(self.plan.seeds(count)))
            share = len(every) // len(self._counts)  # more than one if seeds vary more
            mine = every[number * share : (number + 1) * share]
            self._groups.append(with_earlier_seeds(mine, self._folder))
        for cell in self.cells:
            with contextlib.suppress(UserError):  # the launcher says what is wrong
                cell.read_result()
        return self.cells

    def write_plan(self) -> None:
        """Writes the plan, with all cells so far, before these are trained."""
        names = {*self.plan.cells, *(cell.folder.name for cell in self.cells)}
        self.plan = msgspec.structs.replace(self.plan, cells=sorted(names))
        write_json(self._folder / PLAN, self.plan)

    def look(self) -> Standing:
        """Decides by all results, of which none may be missing."""
        done = [
            [cell.result for cell in group if cell.result] for group in self._groups
        ]
        values = [
            {
                seed: math.nan if value is None or at is not None else value
                for one in group
                for seed, value, at in zip(
                    one.seeds, one.test_accuracy, one.diverged_at, strict=True
                )
            }
            for group in done
        ]
        plan, images = self.plan, done[0][0].test_size
        kept = [
            {seed: one[seed] for seed in plan.seeds(count)}
            for one, count in zip(values, self._counts, strict=True)
        ]
        seeds, looks = plan.seeds(plan.looks[-1]), tuple(plan.looks)
        standing = decide(kept, looks, seeds, images, plan.margin)
        for one in standing.front if standing.needed else ():
            self._counts[one] = standing.needed or 0
        return standing

    def state(self, standing: Standing) -> str:
        """Returns where a study stands, and how much it may still take, in a line."""
        names = self.plan.entries
        text = f"look at {standing.count} seeds: "
        if standing.needed is None:
            return f"{text}the study is over"
        left = self.plan.looks[-1] - standing.count
        seconds = 0.0
        for one in standing.front:
            results = [cell.result for cell in self._groups[one] if cell.result]
            trained = sum(len(result.seeds) for result in results)
            seconds += left * sum(result.train_seconds for result in results) / trained
        return (
            f"{text}open between {', '.join(names[one] for one in standing.front)}; "
            f"at most {left * len(standing.front)} more seeds, "
            f"{seconds / 3600:.2g} hours of training"
        )


def plan_of_study(
    names: Sequence[str], most: int, first_seed: int, margin: float | None
) -> StudyPlan:
    """Returns the plan of a study that begins.

    Args:
      names: of the entries.
      most: largest number of seeds.
      first_seed: the seeds count up from it.
      margin: largest difference that counts as the same, as a share.
    """
    return StudyPlan(
        looks=list(planned_looks(most)),
        first_seed=first_seed,
        margin=margin,
        entries=list(names),
        cells=[],
    )


def remember_look(folder: pathlib.Path, cells: list[Cell]) -> None:
    """Notes which seeds the user has seen, for later reports, once all are trained."""
    if not cells or any(cell.result is None for cell in cells):
        return
    seeds: dict[str, list[int]] = {}
    for cell in cells:
        key = key_of(records.read_config(cell.folder), cell.folder)
        seeds.setdefault(key, []).extend(cell.settings.seeds)
    remember(folder, seeds)
