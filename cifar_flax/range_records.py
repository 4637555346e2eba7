"""The types of ``lr_find.json``, the record of a range test."""

from typing import Annotated

import msgspec
import numpy as np

from cifar_flax.record_types import (
    Int32,
    Name,
    NotNegative,
    Number,
    OneOrMore,
    Positive,
    Record,
    Seed,
    Setting,
)


class Suggestion(msgspec.Struct, kw_only=True):
    """The suggestion of a method of the range test; see ``range_curve.Consensus``."""

    method: str
    rates: list[Positive | None]
    rate: Positive | None
    spread: Positive | None
    problem: str | None


class RateTrial(msgspec.Struct, kw_only=True):
    """The beginning of training with a rate; see ``rate_check.Trial``.

    Attributes:
      rate: the highest rate of the schedule.
      losses: mean loss of the last steps for each seed, which are the first seeds of
        the range test.
      breaks: whether each seed diverged.
    """

    rate: Positive
    losses: list[Number | None]
    breaks: list[bool]


class RangeTest(Record, kw_only=True):
    """``lr_find.json``: the curves of a range test, and their suggestions.

    Attributes:
      model: name of the model.
      settings: of the test.
      seeds: one per replica, R.
      num_steps: planned number of steps.
      rates: rising rates of the S steps that were done.
      losses: [R, S]; null after the replica has stopped.
      smoothed: moving average of the losses, [R, S].
      seconds: duration of the steps.
      compile_seconds: duration of the compilation.
      suggestions: the suggestion of each method.
      checked: the checks by training, with the suggested rate, with half of it, and so
        on; empty in older records, and without a training that follows.
      suggested_lr: the resulting rate; null if the test is inconclusive.
    """

    model: Name | None = None
    settings: dict[str, Setting] = msgspec.field(default_factory=dict)
    seeds: Annotated[list[Seed], OneOrMore]
    num_steps: Int32
    rates: Annotated[list[Positive], OneOrMore]
    losses: list[list[Number | None]]
    smoothed: list[list[Number | None]]
    seconds: NotNegative
    compile_seconds: NotNegative
    suggestions: list[Suggestion] = msgspec.field(default_factory=list)
    checked: list[RateTrial] = msgspec.field(default_factory=list)
    suggested_lr: Positive | None = None

    def __post_init__(self):
        super().__post_init__()
        count, steps = len(self.seeds), len(self.rates)
        curves = (self.losses, self.smoothed)
        if (
            any(len(curve) != steps for one in curves for curve in one)
            or any(len(one) != count for one in curves)
            or (np.diff(self.rates) <= 0).any()
            or steps > self.num_steps
        ):
            raise ValueError("its rates and curves do not belong together")
        # A curve may end early but has no gaps; the longest has all of the steps.
        losses, smoothed = (~np.isnan(np.array(one, np.float64)) for one in curves)
        if (
            (losses != smoothed).any()
            or (losses[:, 1:] > losses[:, :-1]).any()
            or not losses[:, -1].any()
        ):
            raise ValueError("a curve has gaps")
