"""Every setting of a study: name, type, default, range, description, and where it has an effect.

The command line, config files, run.toml, `compare(**settings)` and the reference page are derived
from the models below. torch and the device cards are imported where they are used, so that `--help`
needs neither.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from analog_grasp.utils.errors import shown, unknown_name
from analog_grasp.utils.io import read_toml
from analog_grasp.utils.time import format_time, parse_time
from analog_grasp.utils.types import (
    DEFAULT_MODEL,
    SHIFT_LR_RATIO,
    DriftCompensation,
    Placement,
    ProgrammingError,
    Sampling,
)

if TYPE_CHECKING:
    from analog_grasp.crossbar import Deployment
    from analog_grasp.devices.card import DeviceCard
    from analog_grasp.tasks import Task

# Tables that a run adds to its run.toml; they record what happened and are not settings.
RECORDS = ("versions", "chips")
# How the work is done; no measured value depends on it.
WORK = ("engine", "workers", "ray_address")
# Training rows on which input ranges are calibrated.
_CALIBRATION_ROWS = 128


@dataclass(frozen=True)
class Note:
    """What a field's description does not say.

    Attributes:
        default: The text shown for a default of None.
        adapters: The adapters on which the setting has an effect; all where empty.
        needs: Another setting, a test of its value, and the phrase for a value that passes: without
            it the setting has no effect.
        changeable: May change when a run is resumed, as no measured value depends on it.
    """

    default: str | None = None
    adapters: tuple[str, ...] = ()
    needs: tuple[str, Callable[[Any], bool], str] | None = None
    changeable: bool = False


def split_names(text: str) -> tuple[str, ...]:
    """Split a text at its commas, but not within the path of a file that exists.

    Example:
        >>> split_names("grasp, lora")
        ('grasp', 'lora')
    """
    parts, names = text.split(","), []
    while parts:
        ends = range(len(parts), 1, -1)
        end = next((end for end in ends if _is_file(",".join(parts[:end]).strip())), 1)
        names.append(",".join(parts[:end]).strip())
        parts = parts[end:]
    return tuple(name for name in names if name)


def _is_file(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _number_or_text(value: Any) -> Any:
    """Return the number that a text states, or the value as it is."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _names(value: Any) -> Any:
    return split_names(value) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_names), Field(min_length=1, max_length=1000)]
Count = Annotated[int, Field(ge=1, le=10_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[int, Field(ge=0, le=16)]
NumberOrDevice = Annotated[float | str, BeforeValidator(_number_or_text)]

_GRASP = Note(adapters=("grasp", "stochgrasp"))
_STOCHGRASP = Note(adapters=("stochgrasp",))
_CARD = Note("the card's")
_PROGRAMMED = Note(needs=("placement", lambda p: p == "programmed", "the placement programmed"))


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )


class ModelSettings(_Section):
    """The pre-trained model and the adapters on it."""

    name: Annotated[str | None, Note(DEFAULT_MODEL)] = Field(
        None, alias="model", description="The pre-trained model: a folder, or an id on the Hub."
    )
    adapters: Names = Field(
        ("grasp", "stochgrasp"),
        description="The adapters to compare, the first being the baseline: names (see "
        "`analog-grasp adapters`) or folders of saved ones.",
    )
    trust_remote_code: bool = Field(
        False,
        exclude=True,
        description="Allow Python code that comes with the model to run; not accepted in files.",
    )

    @field_validator("adapters")
    @classmethod
    def _adapters_once(cls, adapters: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once("adapters", adapters)


class TaskSettings(_Section):
    """The task: its data, and how text is generated."""

    name: str = Field(
        "reviews", alias="task", description="The task: reviews, glue/sst2, e2e and others."
    )
    data_dir: Annotated[str | None, Note("the Hub, or built in")] = Field(
        None,
        description="A folder with the task's files in their official layout, such as "
        "SST-2/train.tsv.",
    )
    beams: Annotated[int | None, Note("the task's; e2e: 10")] = Field(
        None,
        ge=1,
        le=1000,
        description="Text generation: width of the beam search; 1 for greedy search.",
    )
    length_penalty: Annotated[
        float | None,
        Note(
            "the task's; e2e: 0.9", needs=("beams", lambda beams: beams != 1, "two beams or more")
        ),
    ] = Field(
        None,
        description="Text generation: the power of a text's length that divides its "
        "log-likelihood.",
    )
    no_repeat_ngram: Annotated[int | None, Note("the task's; e2e: 4")] = Field(
        None,
        ge=0,
        description="Text generation: n-grams of this many tokens occur only once; 0 for no limit.",
    )

    def load(self) -> "Task":
        """Return the task, with its text generation changed as the settings say.

        Raises:
            ValueError: The task is unknown, its files are invalid, or it generates no text and a
                setting of text generation is given.
            FileNotFoundError: Its files are missing.
        """
        from analog_grasp.tasks import GenerationTask, load_task

        task = load_task(self.name, self.data_dir)
        names = ("beams", "length_penalty", "no_repeat_ngram")
        changes = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if not changes:
            return task
        if not isinstance(task, GenerationTask):
            name = next(iter(changes))
            raise ValueError(
                f"The setting {name} is {changes[name]!r}, but the task '{task.name}' generates no "
                f"text: omit {name}, or choose a task that does, such as e2e."
            )
        return replace(task, **changes)


class HardwareSettings(_Section):
    """The devices, and what is changed about their cards; None keeps the card's value.

    Example:
        >>> HardwareSettings(adc_bits=6).card("pcm-hermes-2").converters.adc_bits
        6
    """

    devices: Names = Field(
        ("pcm-nandakumar2019", "pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone"),
        description="The devices: names (see `analog-grasp devices`) or your own TOML files.",
    )
    placement: Placement = Field(
        "digital",
        description="Placement of the adapter: digital (exact, beside the chip), folded "
        "(programmed with the weights) or programmed (on analog devices of its own).",
    )
    weights: Annotated[Literal["analog", "digital"], _PROGRAMMED] = Field(
        "analog",
        description="The frozen weights: analog (on tiles) or digital (exact), to study the noise "
        "of a programmed adapter alone.",
    )
    programming_error: Annotated[ProgrammingError, _PROGRAMMED] = Field(
        "device",
        description="The programming error of a programmed adapter: device (the card's) or "
        "learned (the standard deviations that StochGRASP has learned).",
    )
    dac_bits: Annotated[Bits | None, _CARD] = Field(
        None, description="DAC resolution in bits; 0 for exact inputs."
    )
    adc_bits: Annotated[Bits | None, _CARD] = Field(
        None, description="ADC resolution in bits; 0 for exact outputs."
    )
    output_noise: Annotated[float | None, _CARD] = Field(
        None,
        ge=0,
        description="Standard deviation of the output noise of a bit line, in units of full input "
        "times largest weight.",
    )
    tile_size: Annotated[int | None, _CARD] = Field(
        None, ge=1, description="Rows and columns of a tile, in weights."
    )
    g_max: Annotated[float | None, _CARD] = Field(
        None, gt=0, description="Largest conductance, µS."
    )
    die_to_die: Annotated[Share | None, _CARD] = Field(
        None,
        description="Relative die-to-die spread of the card's means and standard deviations.",
    )
    stuck_off: Annotated[Share | None, _CARD] = Field(
        None, description="Share of devices stuck at the smallest conductance."
    )
    stuck_on: Annotated[Share | None, _CARD] = Field(
        None, description="Share of devices stuck at the largest conductance."
    )
    drift_compensation: DriftCompensation = Field(
        "global",
        description="Drift compensation of the tiles: global, per-column, exact or none.",
    )
    calibrate: Annotated[float | None, Note("off")] = Field(
        None,
        gt=0,
        le=100,
        description="Fix the input range of each layer at this percentile of its inputs on "
        "training rows; 100 is the largest input.",
    )
    precision: Literal["exact", "fast"] = Field(
        "exact",
        description="Arithmetic of the tiles: exact (float32, as aihwkit) or fast (bfloat16 or "
        "int8, whichever the processor multiplies faster; see docs/fidelity.md).",
    )
    programming_noise: bool = Field(True, description="Simulate programming noise.")
    drift: bool = Field(True, description="Simulate conductance drift.")
    read_noise: bool = Field(True, description="Simulate read noise.")

    def card(self, device: str) -> "DeviceCard":
        """Return the card of a device, changed as the settings say.

        Raises:
            CardError: The device is unknown, or a change does not fit its card.
        """
        from analog_grasp.devices.card import DeviceCard

        names = ("dac_bits", "adc_bits", "output_noise", "tile_size", "g_max")
        faults = ("die_to_die", "stuck_off", "stuck_on")
        values = {name: getattr(self, name) for name in (*names, *faults)}
        changes = {name: value for name, value in values.items() if value is not None}
        card = DeviceCard.load(device)
        return card.with_(**changes) if changes else card

    def cards(self) -> "dict[str, DeviceCard]":
        """Return the cards of all devices by name, changed as the settings say.

        Raises:
            ValueError: A device is unknown, a change does not fit its card, or two cards have the
                same name.
        """
        cards = [self.card(device) for device in self.devices]
        named = {card.name: card for card in cards}
        if len(named) < len(cards):
            raise ValueError(
                f"Two of the devices {', '.join(self.devices)} have the same name: a device is "
                "called by the name in its card, which must differ."
            )
        return named

    def deploy_arguments(self) -> dict[str, Any]:
        """Return the arguments of `analog_grasp.deploy` beside the model and the card."""
        import torch

        names = (
            *("placement", "programming_error", "programming_noise", "drift", "read_noise"),
            "drift_compensation",
        )
        dtype = torch.float32 if self.precision == "exact" else torch.bfloat16
        layers = {"layers": ()} if self.weights == "digital" else {}
        return {name: getattr(self, name) for name in names} | layers | {"dtype": dtype}

    def changes(self) -> dict[str, Any]:
        """Return the settings, by name, that differ from a plain deployment on the cards."""
        fields = type(self).model_fields
        columns = ("devices", "placement", "programming_error")
        values = {name: getattr(self, name) for name in fields if name not in columns}
        return {name: v for name, v in values.items() if v != fields[name].default}

    def calibrate_inputs(self, deployment: "Deployment", task: "Task", model: Any = None) -> None:
        """Calibrate a deployed model's input ranges on training rows, if `calibrate` is set."""
        if self.calibrate is not None:
            few = task.subset(train=min(_CALIBRATION_ROWS, len(task.train)))
            deployment.calibrate(lambda each: few.scores(each, "train"), self.calibrate, model)

    @field_validator("devices")
    @classmethod
    def _devices_once(cls, devices: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once("devices", devices)


class TrainingSettings(_Section):
    """The training of the adapters; without effect on saved ones."""

    groups: Annotated[int, _GRASP] = Field(
        16, ge=1, description="K, the number of scale-and-shift pairs per layer."
    )
    target_modules: Annotated[str | tuple[str, ...], _GRASP] = Field(
        "all-linear",
        description="The linear layers to adapt: endings of their names, or all-linear.",
    )
    noise_weight: Annotated[float, _STOCHGRASP] = Field(
        1.0, ge=0, description="Weight of the noise-aware loss; 0 switches it off."
    )
    noise_target: Annotated[NumberOrDevice, _STOCHGRASP] = Field(
        0.1,
        description="The relative standard deviation to learn: a number, or that of a device at a "
        "time, such as pcm-hermes-2@1d.",
    )
    sampling: Annotated[Sampling, _STOCHGRASP] = Field(
        "feature",
        description="The unit that draws one sample in training: feature, group or weight.",
    )
    injection: Annotated[float, Field(ge=0)] | str = Field(
        0.04,
        description="Standard deviation of the noise on the frozen weights in training, in units "
        "of the column maximum; or that of a device at a time, such as pcm-hermes-2@1d.",
    )
    converters: Annotated[str | None, Note("exact")] = Field(
        None, description="A device whose DACs, ADCs and output noise are simulated in training."
    )
    evaluate_on: Annotated[str | None, Note("the last epoch's")] = Field(
        None,
        description="A device at a time, such as pcm-hermes-2@1d, on which the best epoch is "
        "selected, with rows held out from the training rows.",
    )
    epochs: float = Field(3.0, gt=0, le=10_000, description="Number of epochs.")
    learning_rate: Annotated[float | None, Note("the adapter's own")] = Field(
        None, gt=0, description="The peak learning rate."
    )
    shift_lr_ratio: Annotated[float, _GRASP] = Field(
        SHIFT_LR_RATIO,
        gt=0,
        description="Learning rate of the shifts, in units of the learning rate.",
    )
    batch_size: int = Field(32, ge=1, description="Batch size.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    bf16: bool = Field(False, description="Train in mixed precision.")

    @field_validator("injection", mode="before")
    @classmethod
    def _number_from_text(cls, value: Any) -> Any:
        return _number_or_text(value)


class RunSettings(_Section):
    """What is measured, how often, and where the work is done."""

    times: Names = Field(
        ("0s", "1h", "1d", "30d", "1y"), description="Drift times since programming."
    )
    repeats: Count = Field(3, description="Chip instances per device.")
    until_ci: Annotated[float | None, Note("as many as --repeats", changeable=True)] = Field(
        None,
        gt=0,
        description="Add chip instances until the half width of every 95 % confidence interval is "
        "at most this many points (per cent, for a score that is a fraction).",
    )
    repeats_limit: Annotated[
        Count,
        Note(needs=("until_ci", lambda points: points is not None, "until_ci"), changeable=True),
    ] = Field(100, description="Chip instances per device at most, with --until-ci.")
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Seed of the training and of the first chip instance; the others count up.",
    )
    engine: Annotated[Literal["local", "ray"], Note(changeable=True)] = Field(
        "local", description="Where the work is done: local (this machine) or ray (a Ray cluster)."
    )
    workers: Annotated[
        Count,
        Note("one per core, at most 4, for large grids without a GPU; else 1", changeable=True),
    ] = Field(
        1,
        description="Processes on this machine, which share its cores; each has its own copy of "
        "the model.",
    )
    ray_address: Annotated[
        str | None,
        Note(
            "one started here",
            needs=("engine", lambda engine: engine == "ray", "the engine ray"),
            changeable=True,
        ),
    ] = Field(None, description="Address of a running Ray cluster.")

    @field_validator("times")
    @classmethod
    def _canonical_times(cls, times: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once("times", tuple(format_time(parse_time(time)) for time in times))


class StudyConfig(_Section):
    """The settings of a study, by section; `resolve` makes one from flat names.

    Raises:
        ValueError: A value is out of its range, or has no effect beside the others.

    Example:
        >>> resolve({"times": ["3600"]}).run.times
        ('1h',)
    """

    model: ModelSettings = Field(default_factory=ModelSettings)
    task: TaskSettings = Field(default_factory=TaskSettings)
    hardware: HardwareSettings = Field(default_factory=HardwareSettings)
    training: TrainingSettings = Field(default_factory=TrainingSettings)
    run: RunSettings = Field(default_factory=RunSettings)

    def value(self, name: str) -> Any:
        """Return the value of a setting by its flat name.

        Example:
            >>> StudyConfig().value("groups")
            16
        """
        setting = SETTINGS[name]
        return getattr(getattr(self, setting.section), setting.attribute)

    def given(self) -> set[str]:
        """Return the flat names of the settings that were given, and not left at their defaults."""
        return {
            name
            for name, setting in SETTINGS.items()
            if setting.attribute in getattr(self, setting.section).model_fields_set
        }

    def replace(self, **changes: Any) -> "StudyConfig":
        """Return the settings with other values of some, by flat name.

        Raises:
            ValueError: As `resolve`.

        Example:
            >>> StudyConfig().replace(groups=4).training.groups
            4
        """
        return _configured({name: self.value(name) for name in self.given()} | changes)

    @model_validator(mode="after")
    def _every_setting_has_an_effect(self) -> Self:
        check_effects(self, self.model.adapters)
        return self


class Setting(NamedTuple):
    """Where a setting is defined.

    Attributes:
        section: The section's name in `StudyConfig`.
        attribute: The field's name within the section.
        info: The field: type, default, description.
        note: What the description does not say.
    """

    section: str
    attribute: str
    info: FieldInfo
    note: Note


def _settings() -> dict[str, Setting]:
    found = {}
    for section, info in StudyConfig.model_fields.items():
        model = info.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for attribute, field in model.model_fields.items():
            note = next((data for data in field.metadata if isinstance(data, Note)), Note())
            found[field.alias or attribute] = Setting(section, attribute, field, note)
    return found


SETTINGS: dict[str, Setting] = _settings()
"""Every setting by its flat name, which options, files and `compare` use, in order of sections."""

CHANGEABLE = frozenset(name for name, setting in SETTINGS.items() if setting.note.changeable)
"""Settings that may change when a run is resumed."""


def check_effects(config: StudyConfig, adapters: Iterable[str]) -> None:
    """Raise ValueError if a setting has no effect beside the others.

    Args:
        config: The settings; those at their defaults are not checked.
        adapters: The adapters that are trained or measured: names, or folders of saved ones.
    """
    kinds = set(adapters)
    for name, setting in SETTINGS.items():
        value = config.value(name)
        if value == setting.info.get_default(call_default_factory=True):
            continue
        note = setting.note
        if note.needs is not None and not note.needs[1](config.value(note.needs[0])):
            raise ValueError(
                f"The setting {name} is {value!r}, which has no effect without {note.needs[2]}: "
                f"give that too, or omit {name}."
            )
        if note.adapters and not kinds & set(note.adapters) and not any(map(is_folder, kinds)):
            raise ValueError(
                f"The setting {name} is {value!r}, which has no effect on "
                f"{' or '.join(sorted(kinds))}: it applies to {' and '.join(note.adapters)}."
            )


def is_folder(adapter: str) -> bool:
    """Return whether an entry of `adapters` is the folder of a saved adapter, and not a name."""
    return "/" in adapter or Path(adapter).is_dir()


def resolve(given: Mapping[str, Any], config: Path | None = None) -> StudyConfig:
    """Return the settings of a config file, overruled by those given.

    Args:
        given: Settings by flat name; those that are None count as not given.
        config: A TOML file with the same names. The run.toml of a run is one: the tables that
            record its versions and chips are ignored.

    Raises:
        ValueError: A setting is unknown, out of its range or without effect; or the file is invalid
            TOML, too large, or allows remote code.
        OSError: The file is missing or unreadable.

    Example:
        >>> resolve({"repeats": 5, "model": None}).run.repeats
        5
    """
    values = _from_file(config) if config else {}
    return _configured(values | {n: value for n, value in given.items() if value is not None})


def flat(config: StudyConfig, exclude: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings by flat name, as run.toml holds them; those that are None are omitted.

    Args:
        config: The settings.
        exclude: Names to omit. `trust_remote_code` is always omitted: no file may grant it.

    Example:
        >>> flat(resolve({"groups": 4}))["groups"]
        4
    """
    values: dict[str, Any] = {}
    for section in StudyConfig.model_fields:
        part = getattr(config, section)
        values |= part.model_dump(mode="json", exclude_none=True, by_alias=True)
    return {name: value for name, value in values.items() if name not in set(exclude)}


def first_change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return the first setting in which two requests differ; None where they are equal.

    Example:
        >>> first_change({"seed": 0, "repeats": 3}, {"seed": 0})
        'repeats'
    """
    return next((name for name in {**now, **before} if now.get(name) != before.get(name)), None)


def _configured(values: Mapping[str, Any]) -> StudyConfig:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in SETTINGS:
            raise ValueError(unknown_name("setting", name, SETTINGS))
        sections.setdefault(SETTINGS[name].section, {})[name] = value
    try:
        return StudyConfig.model_validate(sections)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def _from_file(path: Path) -> dict[str, Any]:
    values = read_toml(path, f"The config file {path}")
    if "trust_remote_code" in values:
        raise ValueError(
            f"The config file {path} sets trust_remote_code, which no file may: remove it, and use "
            "--trust-remote-code if you trust the model."
        )
    return {name: value for name, value in values.items() if name not in RECORDS}


def _sentence(error: ValidationError) -> str:
    """Return the first problem as one sentence with the name of the setting."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if len(first["loc"]) < 2:
        return message
    name = str(first["loc"][1])
    if first["type"] == "too_short":
        return f"The setting {name} is empty: it should have at least 1 item."
    message = message.replace("Input should", "it should")
    value = shown(first["input"], longest=100)
    return f"The setting {name} is {value}: {message[0].lower()}{message[1:].rstrip('.')}."


def _each_once(name: str, values: tuple[str, ...]) -> tuple[str, ...]:
    twice = [value for value in values if values.count(value) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is listed in {name} more than once.")
    return values
