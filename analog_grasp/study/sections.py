"""Sections of a study's settings: each field with its type, default, range and description.

The command line, config files, run.toml, `compare(**settings)` and the reference page are derived
from these models by `analog_grasp.study.config`. torch and the device cards are imported where they
are used, so that `--help` needs neither.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from analog_grasp.study.fields import (
    GRASP,
    NUMBER,
    Count,
    Names,
    Note,
    Section,
    Times,
    as_counts,
    as_layers,
    as_names,
    unique,
)
from analog_grasp.utils.time import format_time, parse_time
from analog_grasp.utils.types import (
    DEFAULT_GROUPS,
    DEFAULT_MODEL,
    EPOCHS,
    REFIT_STEPS,
    SHIFT_LR_RATIO,
    NoiseLoss,
    RefitMethod,
    Sampling,
    Schedule,
)

if TYPE_CHECKING:
    from analog_grasp.tasks import Task


def _no_task_of(*families: str) -> Callable[[str], bool]:
    """Return whether a task is none of some families; one registered by a user is of none."""
    return lambda task: task.partition("/")[0] not in families


_CSV = (("task", lambda task: task == "csv", "the task csv"),)
_READS_FILES = (("task", lambda task: task != "reviews", "a task other than reviews"),)
_GENERATES = (
    (
        "task",
        _no_task_of("reviews", "glue", "csv", "lm", "lm-eval"),
        "a task that generates text, such as e2e",
    ),
)
_HAS_WINDOWS = (
    (
        "task",
        _no_task_of("reviews", "glue", "csv", "e2e", "lm-eval"),
        "a task that measures perplexity, such as lm",
    ),
)
_STOCHGRASP = Note(adapters=("stochgrasp",))
_TARGETED = Note(adapters=("grasp", "stochgrasp", "lora"))
_UNTIL_CI = ("until_ci", lambda points: points is not None, "until_ci")
_SEVERAL = ("trainings", lambda trainings: trainings > 1, "trainings of 2 or more")
_DIGITAL = ("placement", lambda placement: placement == "digital", "the placement digital")
_RECALIBRATED = (("recalibrate", bool, "recalibrate"),)
_REFITTED = Note(adapters=GRASP.adapters, needs=_RECALIBRATED)
_SCHEDULED = Note(adapters=GRASP.adapters, needs=(("schedule", bool, "schedule"),))
_FINEST = "one per feature of the narrowest layer"

# Settings that change a task's data, its text generation and its windows.
_DATA = ("max_length", "text_column", "label_column")
_GENERATION = ("beams", "length_penalty", "no_repeat_ngram")
_WINDOWS = ("stride",)


class ModelSettings(Section):
    """The pre-trained model and the adapters on it."""

    name: Annotated[str | None, Note(DEFAULT_MODEL)] = Field(
        default=None,
        min_length=1,
        alias="model",
        description="The pre-trained model: a folder, or an id on the Hub.",
    )
    adapters: Names = Field(
        default=("grasp", "stochgrasp"),
        description="The adapters to compare, the first being the baseline: names (see "
        "`analog-grasp adapters`) or folders of saved ones.",
    )
    trust_remote_code: bool = Field(
        default=False,
        exclude=True,
        description="Allow Python code that comes with the model to run; not accepted in files.",
    )


class TaskSettings(Section):
    """The task: its data, and how text is generated."""

    name: str = Field(
        default="reviews",
        alias="task",
        description="The task: reviews, glue/sst2, e2e, csv, lm, lm-eval/arc_easy,hellaswag (zero-"
        "shot tasks of lm-eval) and others.",
    )
    data_dir: Annotated[str | None, Note("the Hub, or built in", needs=_READS_FILES)] = Field(
        default=None,
        description="A folder with the task's files in their official layout, such as "
        "SST-2/train.tsv. Tasks lm and lm-eval: a text file, a folder of .txt files, or a data set "
        "of the Hub such as Salesforce/wikitext:wikitext-2-raw-v1.",
    )
    text_column: Annotated[str | None, Note("text", needs=_CSV)] = Field(
        default=None,
        description="Task csv: the column with the text, or two columns, separated by a comma, "
        "for pairs of texts.",
    )
    label_column: Annotated[str | None, Note("label", needs=_CSV)] = Field(
        default=None,
        description="Task csv: the column with the label: a class name, a number, or (JSON lines) "
        "a list of class names.",
    )
    max_length: Annotated[int | None, Note("the task's: 128, e2e: 256, lm: 512")] = Field(
        default=None,
        ge=2,
        le=1_000_000,
        description="Tokens at which a text is cut; never more than the model has positions.",
    )
    metric: Annotated[str | None, Note("the task's")] = Field(
        default=None,
        exclude=True,
        description="The primary metric: one that the task knows, or one of Hugging Face evaluate, "
        "whose code runs: its name, or the path of its script; NAME:KEY chooses one of several "
        "values. Not accepted in files.",
    )
    beams: Annotated[int | None, Note("the task's; e2e: 10", needs=_GENERATES)] = Field(
        default=None,
        ge=1,
        le=1000,
        description="Text generation: width of the beam search; 1 for greedy search.",
    )
    length_penalty: Annotated[
        float | None,
        Note(
            "the task's; e2e: 0.9",
            needs=(("beams", lambda beams: beams != 1, "two beams or more"), *_GENERATES),
        ),
    ] = Field(
        default=None,
        description="Text generation: the power of a text's length that divides its "
        "log-likelihood.",
    )
    no_repeat_ngram: Annotated[int | None, Note("the task's; e2e: 4", needs=_GENERATES)] = Field(
        default=None,
        ge=0,
        description="Text generation: n-grams of this many tokens occur only once; 0 for no limit.",
    )
    stride: Annotated[int | None, Note("half of max_length", needs=_HAS_WINDOWS)] = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="Task lm: tokens by which the window of max_length tokens moves over a text; "
        "only the tokens that are new in a window are scored.",
    )

    def load(self) -> "Task":
        """Return the task, with its text generation or its windows changed as the settings say.

        Raises:
            ValueError: The task or its metric is unknown, its files are invalid, or a setting has
                no effect on tasks of its kind.
            FileNotFoundError: Its files are missing.
        """
        from analog_grasp.tasks import GenerationTask, LanguageModelingTask, load_task
        from analog_grasp.tasks.harness import HarnessTask

        given = self.model_dump(exclude_none=True)
        task = load_task(self.name, self.data_dir, **{n: given[n] for n in _DATA if n in given})
        for names, kind, lacks, example in (
            (_GENERATION, GenerationTask, "generates no text", "e2e"),
            (_WINDOWS, LanguageModelingTask, "measures no perplexity", "lm"),
        ):
            changes = {name: given[name] for name in names if name in given}
            # A task of lm-eval has a text as well, but for training alone.
            measured = isinstance(task, kind) and not isinstance(task, HarnessTask)
            if changes and not measured:
                name, value = next(iter(changes.items()))
                raise ValueError(
                    f"The setting {name} is {value!r}, but the task '{task.name}' {lacks}: omit "
                    f"{name}, or choose a task that does, such as {example}."
                )
            if changes:
                task = replace(task, **changes)
        if self.metric is not None:
            from analog_grasp.tasks.registry import with_metric

            task = with_metric(task, self.metric)
        return task


class TrainingSettings(Section):
    """The training of the adapters; without effect on saved ones."""

    groups: Annotated[
        int | None, Note(f"{DEFAULT_GROUPS}, or a layer's features", GRASP.adapters)
    ] = Field(default=None, ge=1, description="K, the number of scale-and-shift pairs per layer.")
    # None where not given, so that runs recorded before these settings existed resume.
    grouping: Annotated[
        Literal["contiguous", "strided", "random"] | None, Note("contiguous", GRASP.adapters)
    ] = Field(
        default=None,
        description="How the input features of a layer are divided into groups: contiguous "
        "(blocks of adjacent features), strided (every K-th feature) or random (a permutation).",
    )
    form: Annotated[Literal["affine", "normalize"] | None, Note("affine", GRASP.adapters)] = Field(
        default=None,
        description="The modulated input: affine (s x + b) or normalize ((x - b) / s), which has "
        "no programmed placement.",
    )
    target_modules: Annotated[str | tuple[str, ...], BeforeValidator(as_layers), _TARGETED] = Field(
        default="all-linear",
        description="The linear layers to adapt: endings of their names, or all-linear, with which "
        "LoRA is on query and value projections.",
    )
    noise_weight: Annotated[float, _STOCHGRASP] = Field(
        default=0.01, ge=0, description="Weight of the noise-aware loss; 0 switches it off."
    )
    noise_target: Annotated[Annotated[float, Field(gt=0)] | str, NUMBER, _STOCHGRASP] = Field(
        default=0.1,
        description="The relative standard deviation to learn: a number, or that of a device at a "
        "time, such as pcm-hermes-2@1d; x1.5 after the time multiplies its standard deviations.",
    )
    noise_loss: Annotated[NoiseLoss, _STOCHGRASP] = Field(
        default="kl",
        description="Form of the noise-aware loss: kl (Kullback-Leibler divergence) or l2 (squared "
        "difference).",
    )
    init_sigma: Annotated[float, _STOCHGRASP] = Field(
        default=0.05,
        gt=0,
        le=10,
        description="The relative standard deviation at the start of training.",
    )
    noise_weight_schedule: Annotated[Schedule, _STOCHGRASP] = Field(
        default="constant", description="Course of noise_weight: constant, or linear from 0."
    )
    noise_target_schedule: Annotated[Schedule, _STOCHGRASP] = Field(
        default="constant", description="Course of noise_target: constant, or linear from 1 %."
    )
    sampling: Annotated[Sampling, _STOCHGRASP] = Field(
        default="feature", description="The unit that draws its own sample in training."
    )
    injection: Annotated[Annotated[float, Field(ge=0)] | str, NUMBER] = Field(
        default=0.04,
        description="Standard deviation of the noise on the frozen weights in training, in units "
        "of the column maximum; or the noise of devices at times, such as pcm-hermes-2@1d, or, "
        "drawn for every batch, pcm-hermes-2@1h..1y,rram-wan2022@1d; x1.5 after a time multiplies "
        "its standard deviations.",
    )
    converters: Annotated[str | None, Note("exact")] = Field(
        default=None,
        description="A device whose DACs, ADCs and output noise are simulated in training.",
    )
    learn_ranges: Annotated[bool, Note(needs=(("converters", bool, "converters"),))] = Field(
        default=False,
        description="Learn a fixed input range for the DAC of each layer in training, which the "
        "chips then have unless --calibrate or --input-scaling is given.",
    )
    evaluate_on: Annotated[str | None, Note("the last epoch's")] = Field(
        default=None,
        description="A device at a time, such as pcm-hermes-2@1d, on which the best epoch is "
        "selected, with rows held out from the training rows.",
    )
    then: Names = Field(
        default=("devices",),
        description="A second stage, in which the trained adapter is distilled, without labels, on "
        "simulated chips: none (the default of train and tune); devices, for those of the run, "
        "from 0s to its longest time; or devices at ranges of ages, such as pcm-hermes-2@0s..1y.",
    )
    then_steps: Annotated[
        Count, Note(needs=(("then", lambda then: then != ("none",), "a second stage (then)"),))
    ] = Field(default=300, description="Steps of the distillation on simulated chips.")
    trainings: Count = Field(
        default=1,
        description="Trainings of each adapter, each from its own seed; every chip is measured "
        "with each of them. From two on, intervals cover trainings as well as chips.",
    )
    trainings_limit: Annotated[Count, Note(needs=(_UNTIL_CI, _SEVERAL), changeable=True)] = Field(
        default=10,
        description="Trainings of each adapter at most, with --until-ci and --trainings 2 or more.",
    )
    start_from: Annotated[str | None, Note("untrained", adapters=("grasp", "stochgrasp"))] = Field(
        default=None,
        description="The folder of a saved GRASP adapter on the same model with the same groups, "
        "whose scales, shifts and task head the training starts from.",
    )
    teacher: Annotated[str | None, Note("the labels")] = Field(
        default=None,
        description="The folder of a saved adapter, or the folder or Hub id of a model that was "
        "trained whole, for the same task. In the first stage its outputs without noise replace "
        "the labels.",
    )
    epochs: float = Field(default=EPOCHS, gt=0, le=10_000, description="Number of epochs.")
    learning_rate: Annotated[float | None, Note("the adapter's own")] = Field(
        default=None, gt=0, description="The peak learning rate."
    )
    shift_lr_ratio: Annotated[float, GRASP] = Field(
        default=SHIFT_LR_RATIO,
        gt=0,
        description="Learning rate of the shifts, in units of the learning rate times the root "
        "mean square of the layer's inputs.",
    )
    sigma_lr_ratio: Annotated[float, _STOCHGRASP] = Field(
        default=1.0,
        gt=0,
        description="Learning rate of the standard deviations, in units of the learning rate.",
    )
    batch_size: int = Field(default=32, ge=1, description="Batch size.")
    gradient_accumulation_steps: int = Field(
        default=1, ge=1, description="Batches per optimiser step."
    )
    bf16: bool = Field(default=False, description="Train in mixed precision with bfloat16.")


class RunSettings(Section):
    """Drift times and chip instances to measure, and the processes that do the work."""

    times: Times = Field(
        default=("0s", "1d", "30d", "1y"), description="Drift times since programming."
    )
    repeats: Count = Field(default=4, description="Chip instances per device.")
    until_ci: Annotated[float | None, Note("as many as --repeats", changeable=True)] = Field(
        default=None,
        gt=0,
        description="Add chip instances, and trainings where there are two or more, until the half "
        "width of every 95 % confidence interval, of means and of paired differences, is at most "
        "this value (in per cent for a score that is a fraction). At least five chips are drawn.",
    )
    repeats_limit: Annotated[Count, Note(needs=(_UNTIL_CI,), changeable=True)] = Field(
        default=100, description="Chip instances per device at most, with --until-ci."
    )
    recalibrate: Annotated[
        tuple[Annotated[int, Field(ge=2)], ...],
        BeforeValidator(as_counts),
        AfterValidator(unique),
        Note("off", needs=(_DIGITAL,)),
    ] = Field(
        default=(),
        max_length=10,
        description="Also measure each adapter after recalibration on the chip at each drift time, "
        "once with each of these numbers of unlabelled examples, such as 16,64. With a schedule, "
        "the fit begins with its adapter.",
    )
    recalibrate_method: Annotated[RefitMethod, _REFITTED] = Field(
        default="gradient",
        description="The method of the recalibration: gradient, least-squares (layer by layer, in "
        "closed form) or statistics (mean and standard deviation of each group's inputs).",
    )
    recalibrate_groups: Annotated[Count | None, replace(_REFITTED, default=_FINEST)] = Field(
        default=None,
        description="Groups per layer of the re-fitted adapter, a multiple of those of the "
        "adapter that the fit begins with. The methods without gradients keep these by default.",
    )
    recalibrate_steps: Annotated[Count, Note(needs=_RECALIBRATED)] = Field(
        default=REFIT_STEPS, description="Optimiser steps of a recalibration by gradients."
    )
    schedule: Annotated[Literal["simulated"] | None, Note("off", needs=(_DIGITAL,))] = Field(
        default=None,
        description="Also measure each adapter with parameters of its own for each drift time, "
        "fitted on simulated chips of the device other than those measured.",
    )
    schedule_groups: Annotated[Count | None, replace(_SCHEDULED, default=_FINEST)] = Field(
        default=None,
        description="Groups per layer of the adapters of a schedule, a multiple of the adapter's.",
    )
    costs: Annotated[tuple[str, ...], BeforeValidator(as_names), Note("off", changeable=True)] = (
        Field(
            default=(),
            max_length=100,
            description="Cost models, one for all devices or one per device: names such as "
            "hermes-1phase, or your own TOML files. Energy, latency and programming cost of each "
            "adapter are reported.",
        )
    )
    tiles: Annotated[
        Count | None, Note("as many as needed", needs=(("costs", bool, "costs"),), changeable=True)
    ] = Field(
        default=None,
        description="Tiles that are available, for the costs: layers share them if they are too "
        "few.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seed of the first training and of the first chip instance; the others count "
        "up.",
    )
    engine: Annotated[Literal["local", "ray"], Note(changeable=True)] = Field(
        default="local",
        description="Where the work is done: local (this machine) or ray (a Ray cluster).",
    )
    workers: Annotated[
        Count,
        Note("one per core, at most 4, for large grids without a GPU; else 1", changeable=True),
    ] = Field(
        default=1,
        description="Processes on this machine, which share its cores and divide trainings, fits "
        "and measurements; each has its own copy of the model.",
    )
    ray_address: Annotated[
        str | None,
        Note(
            "one started here",
            needs=(("engine", lambda engine: engine == "ray", "the engine ray"),),
            changeable=True,
        ),
    ] = Field(default=None, description="Address of a running Ray cluster.")

    @field_validator("times")
    @classmethod
    def _canonical_times(cls, times: tuple[str, ...]) -> tuple[str, ...]:
        return unique(tuple(format_time(parse_time(time)) for time in times))

    @property
    def seconds(self) -> list[float]:
        """The drift times, s."""
        return [parse_time(time) for time in self.times]
