"""Device cards that were given in Python, written into a run's folder, from which it resumes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from analog_grasp.devices.card import DeviceAtTime, DeviceCard
from analog_grasp.study.evaluator import place_name
from analog_grasp.study.provenance import CARDS_FOLDER, RUN_FILE, check_new
from analog_grasp.utils.errors import CardError
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time


def with_card_files(
    settings: Mapping[str, Any], directory: Path, own: tuple[str, ...] = (RUN_FILE,)
) -> dict[str, Any]:
    """Return settings in which each `DeviceCard` is the path of its file in a run's folder.

    A card that is equal to the shipped one of its name is that name. A device at a time, such as
    ``card.at("1d")``, becomes ``"PATH@1d"``.

    Args:
        settings: Settings by flat name.
        directory: The run's folder; files are written to its subfolder ``devices``.
        own: Files that show that a folder is that of a run.

    Raises:
        ValueError: A card cannot be written, two different cards have the same name, or the folder
            holds files that do not belong to a run.
        OSError: A file cannot be written.

    Example:
        >>> card = DeviceCard.load("pcm-hermes-2")
        >>> with_card_files({"devices": [card], "injection": card.at("1d")}, Path("run"))
        {'devices': ['pcm-hermes-2'], 'injection': 'pcm-hermes-2@1d'}
    """
    written: dict[Path, DeviceCard] = {}

    def text(value: Any) -> Any:
        if isinstance(value, list | tuple) and not isinstance(value, DeviceAtTime):
            return [text(each) for each in value]
        if isinstance(value, DeviceAtTime):
            return f"{text(value.card)}@{format_time(value.time)}"
        if isinstance(value, DeviceCard):
            return _name_or_file(value, directory, own, written)
        return value

    return {name: text(value) for name, value in settings.items()}


def _name_or_file(
    card: DeviceCard, directory: Path, own: tuple[str, ...], written: dict[Path, DeviceCard]
) -> str:
    if _is_shipped(card):
        return card.name
    path = (directory / CARDS_FOLDER / f"{place_name(card.name)}.toml").resolve()
    if written.setdefault(path, card) != card:
        raise ValueError(
            f"Two different cards have the name {card.name}: give each its own, as in "
            "card.model_copy(update={'name': 'mine'})."
        )
    content = card_toml(card)
    if not any((directory / name).is_file() for name in own):
        check_new(directory)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content.encode())
    return str(path)


def _is_shipped(card: DeviceCard) -> bool:
    try:
        return DeviceCard.load(card.name) == card
    except CardError:
        return False


def card_toml(card: DeviceCard) -> str:
    """Return a card as the text of its TOML file.

    Raises:
        ValueError: No file can state the card.

    Example:
        >>> "adc_bits = 6" in card_toml(DeviceCard.load("pcm-hermes-2").with_(adc_bits=6))
        True
    """
    data = card.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if "table" in data.get("drift", {}):
        # The table begins with the programmed state.
        data.pop("programming", None)
    if DeviceCard.model_validate(data) != card:
        raise ValueError(
            f"The card {card.name} cannot be written to a file, as its drift table begins with the "
            "programming noise that it lacks: use the setting programming_noise=False instead."
        )
    return tomli_w.dumps(data)
