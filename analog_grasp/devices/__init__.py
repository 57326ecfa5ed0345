"""Memory devices: cards, their noise model, and target noise profiles."""

from pathlib import Path


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
