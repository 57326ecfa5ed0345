"""What a study is asked: its settings, checked before anything runs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from analog_grasp.study.hardware import Hardware
from analog_grasp.utils.errors import shown
from analog_grasp.utils.io import read_toml
from analog_grasp.utils.time import format_time, parse_time
from analog_grasp.utils.types import SHIFT_LR_RATIO, Placement, ProgrammingError, Sampling

if TYPE_CHECKING:
    from analog_grasp.devices.card import DeviceCard
    from analog_grasp.tasks import Task

DEVICES = ("pcm-nandakumar2019", "pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone")
TIMES = ("0s", "1h", "1d", "30d", "1y")
# The tables that a run adds to its own run.toml: what happened, not what was asked.
RECORDS = ("versions", "chips")
# How the work is done, which no figure depends on; this and how far it goes may change while a run
# goes on.
WORK = ("engine", "workers", "ray_address")
CHANGEABLE = (*WORK, "until_ci", "repeats_limit")
REPEATS_LIMIT = 100
# What concerns adapters that are trained in the run, and not those that were saved before.
TRAINING = (
    "groups", "target_modules", "noise_weight", "noise_target", "sampling", "injection",
    "converters", "evaluate_on", "epochs", "learning_rate", "shift_lr_ratio",
    "batch_size", "gradient_accumulation_steps", "bf16",
)  # fmt: skip
# How a task that writes text searches for it.
SEARCH = ("beams", "length_penalty", "no_repeat_ngram")

Names = Annotated[tuple[str, ...], Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, le=10_000)]


class Settings(Hardware):
    """The settings of a study, as the command line, a config file and run.toml name them.

    Raises:
        ValueError: A setting is unknown or out of its range; see `resolve`.

    Example:
        >>> Settings(times=("3600",)).times
        ('1h',)
    """

    model: str | None = None
    """Hub id or folder; the built-in default where None."""
    task: str = "reviews"
    data_dir: str | None = None
    """A folder with the task's files in their official layout."""
    beams: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Width of the beam search by which a task that writes text is measured; 1 for greedy search;
    the task's own where None, as for the two that follow."""
    length_penalty: float | None = None
    """The power of its length by which a text's log-likelihood is divided."""
    no_repeat_ngram: Annotated[int, Field(ge=0)] | None = None
    """N-grams of tokens of this length occur once in a text; 0 for no such rule."""
    trust_remote_code: Annotated[bool, Field(exclude=True)] = False
    """Whether Python code that comes with the model may run. No file can say so, a run's own
    run.toml neither: each request says it anew."""
    adapters: Names = ("grasp", "stochgrasp")
    devices: Names = DEVICES
    times: Names = TIMES
    """Drift times since programming."""
    repeats: Count = 3
    """Chip instances a device."""
    until_ci: Annotated[float, Field(gt=0)] | None = None
    """More chip instances are drawn until the 95 % interval of every cell is narrower: half its
    width, in points (per cent of a score that is a fraction)."""
    repeats_limit: Count = REPEATS_LIMIT
    """Chip instances a device at most, where they are drawn until the intervals are narrow."""
    placement: Placement = "digital"
    weights: Literal["analog", "digital"] = "analog"
    """Where the frozen weights live: on tiles, or exact beside the chip, so that the noise of a
    programmed adapter can be studied alone."""
    error: ProgrammingError = "device"
    """What a programmed adapter misses its values by: as the device does, or by as much as its
    learned spreads allow."""
    groups: Annotated[int, Field(ge=1)] = 16
    """K, the scale-and-shift pairs a layer."""
    target_modules: str | tuple[str, ...] = "all-linear"
    noise_weight: Annotated[float, Field(ge=0)] = 1.0
    noise_target: float | str = 0.1
    sampling: Sampling = "feature"
    injection: Annotated[float, Field(ge=0)] | str = 0.04
    """Spread of the weight noise in training, in units of the column maximum; or a device at a
    time, such as pcm-hermes-2@1d."""
    converters: str | None = None
    """A device whose DACs, ADCs and output noise are in the loop of training; exact where None."""
    evaluate_on: str | None = None
    """A device at a time, such as pcm-hermes-2@1d: after every epoch the adapter is scored on it,
    with rows held out from the training rows, and the best is kept."""
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 3.0
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """The adapter's own where None."""
    shift_lr_ratio: Annotated[float, Field(gt=0)] = SHIFT_LR_RATIO
    """The learning rate of GRASP's shifts, in units of `learning_rate`."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    """Batches a step."""
    bf16: bool = False
    """Whether training computes in mixed precision."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    engine: Literal["local", "ray"] = "local"
    workers: Count = 1
    """Processes on this machine."""
    ray_address: str | None = None
    """A Ray cluster that runs already; one is started here where None."""

    @field_validator("noise_target", "injection", mode="before")
    @classmethod
    def _number_from_text(cls, target: Any) -> Any:
        """A number that the command line gives as text, which could also name a device."""
        try:
            return float(target)
        except (TypeError, ValueError):
            return target

    @field_validator("times")
    @classmethod
    def _canonical_times(cls, times: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once("times", tuple(format_time(parse_time(time)) for time in times))

    @field_validator("adapters", "devices")
    @classmethod
    def _no_name_twice(cls, names: tuple[str, ...], info: Any) -> tuple[str, ...]:
        return _each_once(info.field_name, names)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        """Refuse what would have no effect beside the other settings."""
        learned, limited = self.error != "device", self.repeats_limit != REPEATS_LIMIT
        exact = self.weights == "digital"
        for name, needed, idle in (
            ("ray_address", "the engine ray", self.ray_address and self.engine != "ray"),
            ("error", "the placement programmed", learned and self.placement != "programmed"),
            ("weights", "the placement programmed", exact and self.placement != "programmed"),
            ("repeats_limit", "until_ci", limited and self.until_ci is None),
            ("length_penalty", "two beams", self.length_penalty is not None and self.beams == 1),
        ):
            if idle:
                raise ValueError(
                    f"The setting {name} is {getattr(self, name)!r}, which has no effect without "
                    f"{needed}: give that too, or leave {name} out."
                )
        return self

    def cards(self) -> "dict[str, DeviceCard]":
        """The devices by their cards' names, changed as the settings say.

        Raises:
            ValueError: There is no such card, a change does not fit it, or two have the same name.
        """
        cards = [self.card(device) for device in self.devices]
        named = {card.name: card for card in cards}
        if len(named) < len(cards):
            raise ValueError(
                f"Two of the devices {', '.join(self.devices)} have the same name: a device is "
                "called by the name in its card, which must differ."
            )
        return named

    def load_task(self) -> "Task":
        """The task, whose search for a text is changed as the settings say.

        Raises:
            ValueError: There is no such task, its files are not right, or it writes no text and a
                search is asked for.
            FileNotFoundError: Its files are not there.
        """
        from analog_grasp.tasks import GenerationTask, load_task

        task = load_task(self.task, self.data_dir)
        search = {name: getattr(self, name) for name in SEARCH}
        asked = {name: value for name, value in search.items() if value is not None}
        if not asked:
            return task
        if not isinstance(task, GenerationTask):
            name = next(iter(asked))
            raise ValueError(
                f"The setting {name} is {asked[name]!r}, but the task '{task.name}' writes no "
                f"text: leave {name} out, or name a task that does, such as e2e."
            )
        return replace(task, **asked)

    def deployment(self) -> dict[str, Any]:
        """The arguments of `analog_grasp.deploy` beside the model and the card."""
        layers = {"layers": ()} if self.weights == "digital" else {}
        return {"placement": self.placement, "error": self.error} | layers | self.switches()

    def hardware(self) -> dict[str, Any]:
        """What is changed about the hardware, by the names of the settings."""
        exact = {"weights": self.weights} if self.weights == "digital" else {}
        return exact | super().hardware()


def resolve(given: Mapping[str, Any], config: Path | None = None) -> Settings:
    """Return the settings of a config file, overruled by those given.

    Args:
        given: Settings by name; those that are None count as not given.
        config: A TOML file with the same names. A run's own run.toml serves: the tables that
            record what happened in it (versions, chips) are no settings and are passed over.

    Raises:
        ValueError: A setting is unknown or out of its range, or the file is no valid TOML, too
            large, or allows remote code.
        OSError: There is no such file, or it cannot be read.

    Example:
        >>> resolve({"repeats": 5, "model": None}).repeats
        5
    """
    asked = _from_file(config) if config else {}
    asked.update({name: value for name, value in given.items() if value is not None})
    try:
        return Settings(**asked)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting in which two requests differ; None where they are the same.

    Example:
        >>> first_change({"seed": 0, "repeats": 3}, {"seed": 0})
        'repeats'
    """
    return next((name for name in {**now, **before} if now.get(name) != before.get(name)), None)


def _from_file(path: Path) -> dict[str, Any]:
    asked = read_toml(path, f"The config file {path}")
    if "trust_remote_code" in asked:
        raise ValueError(
            f"The config file {path} says whether remote code may run (trust_remote_code), which "
            "no file can: leave it out, and give --trust-remote-code if you trust the model."
        )
    return {name: value for name, value in asked.items() if name not in RECORDS}


def _sentence(error: ValidationError) -> str:
    """The first thing that is wrong, as one sentence with the name of the setting."""
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        settings = ", ".join(Settings.model_fields)
        return f"There is no setting {shown(name, 80)}: the settings are {settings}."
    if first["type"] == "too_short":
        return f"The setting {name} is empty: it should have at least 1 item."
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    value = shown(first["input"], longest=100)
    return f"The setting {name} is {value}: {message[0].lower()}{message[1:].rstrip('.')}."


def _each_once(name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]} stands in {name} more than once; name each once.")
    return values
