"""Configuration of a study: settings by section, from options, keywords and files; their checks.

Every setting has a flat name, unique over the sections, which the command line, config files,
run.toml and `compare(**settings)` use. Checks need neither torch nor the task's data nor the
model's weights, so that a wrong name is reported at once.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Union

from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from analog_grasp.adapters.registry import ADAPTERS
from analog_grasp.study.fields import GRASP, Note, Section, joined, plain_types
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.study.sections import (
    ModelSettings,
    RunSettings,
    TaskSettings,
    TrainingSettings,
)
from analog_grasp.utils.errors import describe_problem, first_problem, shown, unknown_name
from analog_grasp.utils.io import read_toml

if TYPE_CHECKING:
    from analog_grasp.devices.ages import AgeRange

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a saved adapter, as PEFT writes them."""
MODEL_FILES = ("config.json", "model.safetensors")
"""The files of a model that was trained whole, as transformers writes them."""
ONE_STAGE: dict[str, Any] = {"then": ("none",)}
"""Defaults of train and tune, where a training has a second stage only if one is asked for."""
# Tables that a run adds to its run.toml; they record what happened and are not settings.
RECORDS = ("versions", "metrics", "seeds", "hashes", "second_stage")
# How the work is done; no measured value depends on it.
WORK = ("engine", "workers", "ray_address")
TREATMENTS = (
    *("recalibrate", "recalibrate_method", "recalibrate_groups", "recalibrate_steps"),
    *("schedule", "schedule_groups"),
)
"""Settings of what is done to an adapter on an aged chip."""


class StudyConfig(Section):
    """The settings of a study, by section; `resolve` makes one from flat names.

    Raises:
        ValueError: A value is out of its range, or has no effect with the others.

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
        """Return the value of a setting by its flat name."""
        setting = SETTINGS[name]
        return getattr(getattr(self, setting.section), setting.attribute)

    def second_stage(self) -> "tuple[AgeRange, ...]":
        """Return the devices, as the run has them, and the ages that the setting `then` names.

        Empty where it has no effect, as all adapters are saved ones.

        Raises:
            ValueError: A device or a time is unknown, or a range is reversed.

        Example:
            >>> config = StudyConfig().replace(then="devices", devices="pcm-hermes-2", adc_bits=6)
            >>> [(str(each), each.card.converters.adc_bits) for each in config.second_stage()]
            [('pcm-hermes-2@0s..1y', 6)]
        """
        from analog_grasp.devices.ages import AgeRange, parse_ages

        if self.training.then == ("none",) or all(map(is_saved, self.model.adapters)):
            return ()
        if self.training.then == ("devices",):
            longest = max(self.run.seconds)
            return tuple(AgeRange(card, 0.0, longest) for card in self.hardware.cards().values())
        named = parse_ages(self.training.then)
        return tuple(each._replace(card=self.hardware.changed(each.card)) for each in named)

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
    def _needed_settings_are_there(self) -> Self:
        if (self.hardware.calibrate, self.hardware.placement) == ("learned", "folded"):
            raise ValueError(
                "The input ranges are learned, but the placement is 'folded': the ranges are those "
                "of inputs that a digital adapter has scaled, so give another placement, or "
                "calibrate a percentile."
            )
        for name, setting in SETTINGS.items():
            for other, accepted, phrase in setting.note.needs:
                if self.is_changed(name) and not accepted(self.value(other)):
                    raise ValueError(
                        f"The setting {name} is {self.value(name)!r}, which has no effect without "
                        f"{phrase}: give that too, or omit {name}."
                    )
        return self

    def is_changed(self, name: str) -> bool:
        """Return whether a setting differs from its default."""
        return self.value(name) != SETTINGS[name].info.default


class Setting(NamedTuple):
    """Definition of a setting: its section in `StudyConfig`, and the name and data of its field."""

    section: str
    attribute: str
    info: FieldInfo
    note: Note


def _settings() -> dict[str, Setting]:
    found = {}
    for section, info in StudyConfig.model_fields.items():
        for attribute, field in info.annotation.model_fields.items():  # type: ignore[union-attr]  # each is a Section
            note = next((data for data in field.metadata if isinstance(data, Note)), Note())
            found[field.alias or attribute] = Setting(section, attribute, field, note)
    return found


SETTINGS: dict[str, Setting] = _settings()
"""Every setting by its flat name, which options, files and `compare` use, in order of sections."""

CHANGEABLE = frozenset(name for name, setting in SETTINGS.items() if setting.note.changeable)
"""Settings that may change when a run is resumed."""


def check_effects(config: StudyConfig, adapters: Iterable[str], names: Iterable[str]) -> None:
    """Raise ValueError if one of some settings is changed and affects none of the adapters.

    Adapters are those trained or measured: names, or folders of saved ones.
    """
    kinds, names = list(adapters), set(names)
    trained = [adapter for adapter in kinds if not is_saved(adapter)]
    saved = len(trained) < len(kinds)
    for name, setting in SETTINGS.items():
        affected = setting.note.adapters
        if name not in names or not config.is_changed(name):
            continue
        stated = f"The setting {name} is {shown(config.value(name))}, which has no effect on"
        in_training = setting.section == "training"
        if in_training and not trained:
            raise ValueError(f"{stated} saved adapters, as these are trained already: omit {name}.")
        # A saved adapter may be of any kind, but is not trained.
        if affected and (in_training or not saved) and not set(trained) & set(affected):
            raise ValueError(f"{stated} {' or '.join(trained)}: it applies to {joined(affected)}.")
        # Other adapters are re-fitted by gradients whatever the method.
        if name == "recalibrate_steps" and not saved and set(kinds) <= set(GRASP.adapters):
            method = config.run.recalibrate_method
            if method != "gradient":
                raise ValueError(f"{stated} the recalibrate_method {method}: omit {name}.")


def weight_files(folder: Path) -> list[Path]:
    """Return the files with the weights of a model that was trained whole: one, or its parts."""
    return sorted(folder.glob("model*.safetensors"))


def is_saved(adapter: str) -> bool:
    """Return whether an entry of `adapters` is the folder of a saved adapter, and not a name."""
    return "/" in adapter or (adapter not in ADAPTERS and Path(adapter).is_dir())


def resolve(
    given: Mapping[str, Any], config: Path | None = None, defaults: Mapping[str, Any] = {}
) -> StudyConfig:
    """Return the settings of a config file, overruled by those given.

    A config file may serve several commands and adapters; a setting that is given must have an
    effect on at least one of the adapters.

    Args:
        given: Settings by flat name; those that are None count as not given.
        config: A TOML file with the same names. The run.toml of a run is one: the tables that
            record its versions and chips are ignored.
        defaults: Defaults of the command, where they are not those of the settings. A setting of
            the file that has no effect with them is ignored.

    Raises:
        ValueError: A setting is unknown, out of its range or without effect; or the file is invalid
            TOML, too large, or allows remote code.
        OSError: The file is missing or unreadable.

    Example:
        >>> resolve({"repeats": 5, "model": None}).run.repeats
        5
    """
    filed = _from_file(config) if config else {}
    stated = {name: value for name, value in given.items() if value is not None}
    own = {name: v for name, v in defaults.items() if name not in filed.keys() | stated.keys()}
    used = {name: value for name, value in filed.items() if not _is_unused(name, own)}
    resolved = _configured({**defaults, **used, **stated})
    check_effects(resolved, resolved.model.adapters, stated)
    return resolved


def _is_unused(name: str, defaults: Mapping[str, Any]) -> bool:
    """Return whether a setting of a file has no effect with the defaults of a command."""
    needs = SETTINGS[name].note.needs if name in SETTINGS else ()
    return any(other in defaults and not fits(defaults[other]) for other, fits, _ in needs)


def flat(config: StudyConfig, exclude: Iterable[str] = ()) -> dict[str, Any]:
    """Return the settings by flat name, as run.toml holds them; those that are None are omitted.

    Args:
        config: The settings.
        exclude: Names to omit. `trust_remote_code` and `metric` are always omitted: no file may
            let code run.

    Example:
        >>> flat(resolve({"groups": 4}))["groups"]
        4
    """
    values: dict[str, Any] = {}
    for section in StudyConfig.model_fields:
        part = getattr(config, section)
        values |= part.model_dump(mode="json", exclude_none=True, by_alias=True)
    return {name: value for name, value in values.items() if name not in set(exclude)}


def takes_settings[**P, R](
    *, without: tuple[str, ...] = (), defaults: Mapping[str, Any] = {}
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Show each setting, but those `without`, in the signature of a function of ``**settings``."""

    def with_signature(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        settings = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(name, setting.info.default),
                annotation=Union[*plain_types(setting.info.annotation)],
            )
            for name, setting in SETTINGS.items()
            if name not in without
        ]
        function.__signature__ = signature.replace(parameters=[*own, *settings])  # type: ignore[attr-defined]  # what help() reads
        return function

    return with_signature


def _configured(values: Mapping[str, Any]) -> StudyConfig:
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in SETTINGS:
            raise ValueError(unknown_name("setting", name, SETTINGS))
        sections.setdefault(SETTINGS[name].section, {})[name] = value
    try:
        config = StudyConfig.model_validate(sections)
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None
    hardware, trained = config.hardware, not all(map(is_saved, config.model.adapters))
    chosen = hardware.calibrate is not None or hardware.input_scaling is not None
    open_ranges = not chosen and hardware.weights == "analog"
    if config.training.learn_ranges and trained and open_ranges:
        # Ranges that are learned are those of the chips, also of the second stage.
        return _configured({**values, "calibrate": "learned"})
    return config


def _from_file(path: Path) -> dict[str, Any]:
    values = read_toml(path, f"The config file {path}")
    for name, trusted in (("trust_remote_code", "model"), ("metric", "metric")):
        if name in values:
            raise ValueError(
                f"The config file {path} sets {name}, which no file may: remove it, and use "
                f"--{name.replace('_', '-')} if you trust the {trusted}."
            )
    return {name: value for name, value in values.items() if name not in RECORDS}


def _sentence(error: ValidationError) -> str:
    """Return the first problem as one sentence with the name of the setting."""
    first = first_problem(error)
    message = first["msg"].removeprefix("Value error, ")
    if len(first["loc"]) < 2:
        return message
    name = str(first["loc"][1])
    if first["type"] == "too_short":
        return f"The setting {name} is empty: it should have at least 1 item."
    if first["type"] != "value_error":
        # A setting of several types has a problem with each.
        literal = [p for p in error.errors(include_url=False) if p["type"] == "literal_error"]
        words = [p["ctx"]["expected"] for p in literal if p["loc"][1] == name and p != first]
        text = describe_problem(first, name).replace("a valid tuple", "a list")
        return f"The setting {' or '.join([text, *words])}."
    value = shown(first["input"], longest=100)
    return f"The setting {name} is {value}: {message[0].lower()}{message[1:].rstrip('.')}."
