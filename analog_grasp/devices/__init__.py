"""Memory devices: cards, their noise model, and target noise profiles.

This module lists the shipped cards and computes the figures that the command line shows of them. A
card is read with pydantic and its moments are computed with NumPy, whose imports take several times
as long as printing the table; the figures are therefore cached in the user's cache folder, by the
content of the card and of this package.
"""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_cache_path

from analog_grasp.utils.errors import CardError, unknown_name
from analog_grasp.utils.io import LARGEST_FILE, write_atomically

FRACTIONS = (0.1, 0.5, 1.0)
"""Targets of the devices shown, as fractions of the conductance range, and weights shown."""
TIMES = {"0s": 0.0, "1h": 3600.0, "1d": 86_400.0, "30d": 2_592_000.0, "1y": 31_536_000.0}
"""Drift times shown, s."""
_FACTS = {
    "name", "title", "technology", "source", "valid_range", "not_modelled", "conductance",
    "mapping", "tile",
}  # fmt: skip


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


class CardFigures(NamedTuple):
    """The facts of a card and the moments of its devices.

    Attributes:
        facts: The fields of the card, but for its noise, drift and converters.
        means: Mean conductance of devices programmed to each of `FRACTIONS`, µS, by time.
        stds: Their standard deviation, µS, by time.
        weight_stds: Standard deviation of a stored weight of each of `FRACTIONS`, by time.
    """

    facts: dict[str, Any]
    means: dict[str, list[float]]
    stds: dict[str, list[float]]
    weight_stds: dict[str, list[float]]


def card_figures(device: str) -> CardFigures:
    """Return the figures of a card, given by name or path, from the cache or computed.

    Raises:
        CardError: The card is unknown, or its file is missing, unreadable or invalid.

    Example:
        >>> figures = card_figures("gaussian")
        >>> figures.facts["conductance"]["g_max"], round(figures.stds["0s"][0], 2)
        (25.0, 1.25)
    """
    cached = _cache_file(device)
    try:
        return CardFigures(**json.loads(cached.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        figures = _computed(device)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cached, json.dumps(figures._asdict()).encode())
    except OSError:
        # Without a writable cache folder the figures are computed each time.
        pass
    return figures


def _cache_file(device: str) -> Path:
    """Return the cache file of a card in its present state."""
    package = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    shipped = cards_folder() / f"{device.partition(':')[0]}.toml"
    path, content = shipped if shipped.is_file() else Path(device), b""
    # Where it cannot be read, loading the card raises its own error.
    with suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                content = file.read(LARGEST_FILE)
    parts = (*package, device.encode(errors="backslashreplace"), content)
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=16).hexdigest()
    return user_cache_path("analog-grasp") / "figures" / f"{digest}.json"


def _computed(device: str) -> CardFigures:
    from analog_grasp.devices.card import DeviceCard
    from analog_grasp.devices.conductance import conductance_moments, weight_std

    card = DeviceCard.load(device)
    moments = {text: conductance_moments(card, FRACTIONS, time) for text, time in TIMES.items()}
    return CardFigures(
        card.model_dump(include=_FACTS),
        {text: mean.tolist() for text, (mean, _) in moments.items()},
        {text: std.tolist() for text, (_, std) in moments.items()},
        {text: weight_std(card, FRACTIONS, time).tolist() for text, time in TIMES.items()},
    )
