"""The types of the files in a run's folder: what each field holds, and its limits."""

import hashlib
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cifar_flax.errors import one_line
from cifar_flax.json_files import short_repr

# Settings that are paths. No result depends on them, and they differ between machines.
PLACES = ("data_dir", "data_archive", "archive_sha256")

# Settings of what a trained network is evaluated on and by.
OF_EVALUATION = ("also_test", "metrics")

# Increased when the meaning of a file changes, so that a reader can tell.
FORMAT = 1

_HUGE = 1e39  # beyond any float32

Name = Annotated[str, Meta(pattern=r"^\w[\w.:/-]*$", max_length=1000)]
Text = Annotated[str, Meta(min_length=1, max_length=10_000)]
Seed = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Size = Annotated[int, Meta(ge=1, le=2**53)]
Int32 = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Length = Annotated[float, Meta(gt=0, le=2**31 - 1)]  # in epochs
Number = Annotated[float, Meta(ge=-_HUGE, le=_HUGE)]
NotNegative = Annotated[float, Meta(ge=0, le=_HUGE)]
Positive = Annotated[float, Meta(ge=1e-39, le=_HUGE)]
Share = Annotated[float, Meta(ge=0, le=1)]
# Lists and dictionaries hold what JSON has.
Setting = None | bool | int | float | str | list[Any] | dict[str, Any]
OneOrMore = Meta(min_length=1)


class Record(msgspec.Struct, kw_only=True):
    """The common fields of all whole files."""

    format: int = FORMAT

    def __post_init__(self):
        if self.format != FORMAT:
            raise ValueError(f"its format is {self.format}; it must be {FORMAT}")


class DatasetInfo(msgspec.Struct, kw_only=True):
    """The data set and its splits.

    Attributes:
      name: see ``data.Dataset``, also for the next three.
      fingerprint: of images, labels and names.
      source: where the data come from.
      class_names: one for each label.
      image_shape: (H, W, C).
      mean: per channel, of pixels / 255.
      std: as ``mean``.
      train_size: number of training images.
      val_size: number of validation images; 0 without validation.
      test_size: number of test images.
      class_sizes: number of images of each class in the training split; older records
        do not have it, nor the following.
      test_class_sizes: as ``class_sizes``, of the test images.
      values: lowest and highest value found; see ``data.values.Reading``.
      white: value of the source that became 255; null if it has bytes.
      notes: how the source was read, and what was left out and why.
    """

    name: str
    fingerprint: str
    source: str
    class_names: Annotated[list[str], OneOrMore]
    image_shape: tuple[Int32, Int32, Int32]
    mean: list[Number]
    std: list[Positive]
    train_size: Size
    val_size: Count
    test_size: Size
    class_sizes: list[Count] = []
    test_class_sizes: list[Count] = []
    values: tuple[Number, Number] | None = None
    white: Positive | None = None
    notes: list[str] = []

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == self.image_shape[2]:
            raise ValueError("mean and std do not have one number per channel")


class Schedule(msgspec.Struct, kw_only=True):
    """Learning rates sampled over the recipe, from its first step to its last.

    Attributes:
      epochs: time of each sample.
      rates: learning rate of each sample.
    """

    epochs: Annotated[list[NotNegative], OneOrMore]
    rates: Annotated[list[NotNegative], OneOrMore]

    def __post_init__(self):
        if len(self.epochs) != len(self.rates):
            raise ValueError("epochs and rates do not have the same length")


class ModelSource(msgspec.Struct, kw_only=True):
    """The source of own code; see ``own_code.Source``. It is never run.

    Attributes:
      path: path of the file; null if there is none.
      sha256: SHA-256 of the file, in hex.
      text: its text; null if it is too large.
      helpers: the modules of its own folder that it imports.
    """

    path: str | None = None
    sha256: str | None = None
    text: str | None = None
    helpers: list["ModelSource"] = []

    @property
    def all_sha256(self) -> str | None:
        """Checksum of the code with its helpers, in any folder; None without a file."""
        if self.sha256 is None or not self.helpers:
            return self.sha256
        every = [one.sha256 or "" for one in (self, *self.helpers)]
        return hashlib.sha256(" ".join(every).encode()).hexdigest()


class Identity(msgspec.Struct, kw_only=True):
    """What decides the numbers of a run besides data and seeds; see ``identity``.

    Attributes:
      model: SHA-256 of what the model computes; see ``models.program``.
      recipe: SHA-256 of the recipe as trained; null until ``--lr=auto`` has found the
        rate, and for a range test.
      start: SHA-256 of the variables of another run from which the run starts; null if
        it starts from new ones.
      unknown: why the checksums do not tell everything, so that no other run can be
        known to be the same; null if they do.
    """

    model: str
    recipe: str | None = None
    start: str | None = None
    unknown: str | None = None


class Config(Record, kw_only=True):
    """``config.json``: settings, recipe, data and versions.

    Attributes:
      format: version of the file's format.
      kind: command that made the folder: ``run``, ``lr_find`` or ``lr_grid``.
      settings: all settings by name; ``model`` and ``seeds`` always exist.
      recipe: the recipe as trained; null until ``--lr=auto`` has found the rate, and
        for the range test of a model without a recipe.
      schedule: samples of the learning rate; null if the recipe is null.
      dataset: see ``DatasetInfo``.
      num_params: number of parameters of the model.
      flops_per_image: floating-point operations for one image of this size; a
        multiplication and an addition count as 2.
      model_source: the code of a custom model that the settings name.
      sources: other own code by what it is, such as ``loss``.
      versions: versions of the packages that affect the results, and the
        implementation of the convolutions.
      python: version of Python.
      device: the device of the run.
      git_revision: revision of this code, if it is in a repository.
      identity: what decides the numbers; null in older records.
      command: the command that repeats the run; empty if model, recipe or data came
        from a program, so that no command can.
    """

    kind: str
    settings: dict[str, Setting]
    recipe: dict[str, Setting] | None
    schedule: Schedule | None = None
    dataset: DatasetInfo
    num_params: Count = 0
    flops_per_image: NotNegative = 0
    model_source: ModelSource | None = None
    sources: dict[str, ModelSource] = {}
    versions: dict[str, str]
    python: str | None = None
    device: str | None = None
    git_revision: str | None = None
    identity: Identity | None = None
    command: list[str]

    def __post_init__(self):
        super().__post_init__()
        seeds, phases = list[Seed], list[dict[str, Setting]]
        _check_item(self.settings, "settings", "model", Text)
        _check_item(self.settings, "settings", "seeds", Annotated[seeds, OneOrMore])
        if self.recipe is not None:
            _check_item(self.recipe, "recipe", "phases", Annotated[phases, OneOrMore])

    @property
    def model(self) -> str:
        """Name of the model, without the path of its code."""
        return str(self.settings["model"]).rpartition(":")[2]

    @property
    def codes(self) -> dict[str, str]:
        """Checksums of the own code whose source is known, by what it is."""
        model = {} if self.model_source is None else {"model": self.model_source}
        every = {**model, **self.sources}
        return {n: one.all_sha256 for n, one in every.items() if one.all_sha256}

    @property
    def deciding_settings(self) -> dict[str, Setting]:
        """The settings that affect the results of a seed."""
        without = (*PLACES, *OF_EVALUATION, "seeds")
        return {n: value for n, value in self.settings.items() if n not in without}


def _check_item(parent: dict[str, Any], where: str, name: str, kind: Any) -> None:
    """Raises a ValueError if an item of a dictionary does not have a type."""
    if name not in parent:
        raise ValueError(f"{where} has no {name!r}; it is not a run of this version")
    try:
        msgspec.convert(parent[name], kind)
    except msgspec.ValidationError as error:
        value = one_line(short_repr.repr(parent[name]))
        raise ValueError(f"{where}.{name} is {value}: {error}") from error


class LogPoint(msgspec.Struct, kw_only=True):
    """A line of ``metrics.jsonl``: the metrics at the end of an epoch.

    The learning rate is that of the epoch's last step; ``steps.npz`` has all.
    Losses, accuracies and other metrics, by their name, are lists with a number for
    each seed, which is NaN if the seed has diverged. The training accuracy is that of
    the augmented images; an image that mixup or cutmix has mixed counts by its own
    label. Without validation, what begins with ``val_`` is None. In the file, a list of
    one number is that number, and NaN is null.

    Attributes:
      step: number of steps at the end of the epoch.
      epoch: its number, from 1.
      learning_rate: of its last step.
      train_loss: mean loss of its training images.
      train_accuracy: share of them that was classified correctly.
      val_loss: mean cross-entropy on the validation images.
      val_accuracy: share of them that is classified correctly.
      val_metrics: other metrics of them; None if there are none.
      images_per_second: speed of training in the epoch, over all replicas.
      seconds: training time of all epochs so far.
    """

    step: Count
    epoch: Int32
    learning_rate: NotNegative
    train_loss: list[float]
    train_accuracy: list[float]
    val_loss: list[float] | None
    val_accuracy: list[float] | None
    val_metrics: dict[str, list[float]] | None = None
    images_per_second: NotNegative
    seconds: NotNegative


class Layer(msgspec.Struct, kw_only=True):
    """A layer of a model; see ``models.summary.LayerRow``.

    Attributes:
      path: its path in the model.
      kind: name of its class.
      output_shape: shape of what it returns for one image.
      num_params: number of its parameters.
      flops: floating-point operations for one image.
    """

    path: str
    kind: str
    output_shape: list[Count]
    num_params: Count
    flops: NotNegative


class AlsoTested(msgspec.Struct, kw_only=True):
    """The result on further labelled images; ``predictions-NAME.npz`` has the logits.

    Attributes:
      source: where the images come from.
      fingerprint: SHA-256 of images and labels, in hex.
      size: number of images.
      largest_class: see ``Result``.
      accuracy: as ``Result.test_accuracy``.
      loss: as ``Result.test_loss``.
      metrics: as ``Result.test_metrics``.
      notes: how the images were read.
    """

    source: str
    fingerprint: str
    size: Size
    largest_class: Share | None = None
    accuracy: list[Share | None]
    loss: list[Number | None]
    metrics: dict[str, list[Number | None]] = {}
    notes: list[str] = []


class Result(Record, kw_only=True):
    """``result.json``: the result of a run.

    Attributes:
      format: version of the file's format.
      model: name of the model.
      dataset: name of the data set.
      num_params: number of parameters of the model.
      flops_per_image: see ``Config``.
      train_flops: floating-point operations of the training of one replica, see
        ``Trainer``; null in older records.
      layers: layers of the model.
      seeds: one per replica, like the next two and ``diverged_at``.
      test_accuracy: share of the test images classified correctly; null if the replica
        has diverged. (Older records have a number there.)
      test_loss: mean cross-entropy; null or NaN if the replica has diverged.
      test_accuracy_mean: mean over the finished seeds; null if there is none.
      test_accuracy_ci95: half the width of the 95 % interval of that mean; null for
        fewer than two seeds.
      test_size: number of test images.
      largest_class: share of the test images that are of the largest class; null if the
        classes are equal, and in older records.
      epochs: length of the recipe.
      steps: number of steps of the replica that took the most.
      train_seconds: training time of all replicas together, without compilation.
      compile_seconds: compilation time of the training program.
      images_per_second: speed of training, over all replicas.
      device: the device of the run.
      diverged_at: the step at which a replica's loss became NaN or infinite; null for a
        finished replica.
      status: ``diverged`` if all replicas diverged, otherwise ``finished``.
      test_metrics: the value of each seed by the name of the metric; null if the seed
        has diverged or has none.
      also_test: the results on further labelled images, by their name.
    """

    model: Name
    dataset: str
    num_params: Size
    flops_per_image: NotNegative
    train_flops: NotNegative | None = None
    layers: list[Layer] | None = None
    seeds: Annotated[list[Seed], OneOrMore]
    test_accuracy: list[Share | None]
    test_loss: list[Number | None]
    test_accuracy_mean: Share | None
    test_accuracy_ci95: NotNegative | None
    test_size: Size
    largest_class: Share | None = None
    epochs: Length
    steps: Count
    train_seconds: Positive
    compile_seconds: NotNegative
    images_per_second: Positive
    device: str
    diverged_at: list[Count | None]
    status: Literal["finished", "diverged"]
    test_metrics: dict[str, list[Number | None]] = {}
    also_test: dict[str, AlsoTested] = {}

    def __post_init__(self):
        super().__post_init__()
        count = len(self.seeds)
        lists = (self.test_accuracy, self.test_loss, self.diverged_at)
        if any(len(one) != count for one in lists):
            raise ValueError(
                "test_accuracy, test_loss and diverged_at do not have "
                f"{count} seeds each"
            )
        known = [*self.test_metrics.values()]
        for also in self.also_test.values():
            known += [also.accuracy, also.loss, *also.metrics.values()]
        if any(len(one) != count for one in known):
            raise ValueError(f"test_metrics and also_test do not have {count} seeds")
        if len(set(self.seeds)) < count:
            raise ValueError("a seed appears twice")
        for name in ("test_accuracy", "test_loss"):
            pairs = zip(getattr(self, name), self.diverged_at, strict=True)
            if any(value is None and at is None for value, at in pairs):
                raise ValueError(f"a seed that has not diverged has no {name}")
        if len(self.finished) > 1 and self.test_accuracy_ci95 is None:
            raise ValueError("test_accuracy_ci95 is null for more than one seed")
        if (self.status == "diverged") != (None not in self.diverged_at):
            raise ValueError("status does not agree with diverged_at")

    @property
    def finished(self) -> list[float]:
        """The test accuracies of the finished seeds."""
        every = [self.test_accuracy[index] for index in self.alive()]
        return [one for one in every if one is not None]

    def alive(self, step: int | None = None) -> list[int]:
        """Returns the indices of the seeds that count: those that have not diverged.

        Args:
          step: those that have not diverged by this step; None: by the end.
        """
        return [
            index
            for index, at in enumerate(self.diverged_at)
            if at is None or (step is not None and at > step)
        ]
