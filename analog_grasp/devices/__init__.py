"""Memory devices: cards, their noise model, and target noise profiles."""

from pathlib import Path

from analog_grasp.utils.errors import CardError, unknown_name


def cards_folder() -> Path:
    """Return the folder of the shipped cards: in a wheel's package, or in a clone's root."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "device_models"
    return inside if inside.is_dir() else package.parent / "device_models"


def card_names() -> list[str]:
    """Return the names of the shipped cards, sorted.

    Example:
        >>> "ideal" in card_names()
        True
    """
    return sorted(path.stem for path in cards_folder().glob("*.toml"))


def is_path(device: object) -> bool:
    """Return whether a device is given by the path of its card, not by name.

    Example:
        >>> is_path("cards/mine.toml"), is_path("pcm-hermes-2")
        (True, False)
    """
    text = str(device)
    return isinstance(device, Path) or text.endswith(".toml") or "/" in text or "\\" in text


def check_name(device: object) -> None:
    """Raise CardError if a device is given by a name that no shipped card has.

    It takes a fraction of the time of reading a card.
    """
    if not isinstance(device, str) or is_path(device):
        return
    if device.partition(":")[0] not in (names := card_names()):
        raise CardError(unknown_name("device", device, names))
