"""Facts and moments of device cards as the command line shows them, cached on disk.

A card is read with pydantic and its moments are computed with NumPy, whose imports take several
times as long as printing the table. The results are therefore stored in the user's cache folder, by
the content of the card and of this package.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from platformdirs import user_cache_path

from analog_grasp.devices import cards_folder

FRACTIONS = (0.1, 0.5, 1.0)
"""Targets of the devices shown, as fractions of the conductance range, and weights shown."""
TIMES = {"0s": 0.0, "1h": 3600.0, "1d": 86_400.0, "30d": 2_592_000.0, "1y": 31_536_000.0}
"""Drift times shown, s."""


class CardFigures(NamedTuple):
    """A card's facts and moments.

    Attributes:
        facts: `name`, `title`, `technology`, `citation`, `doi`, `location`, `valid_range`,
            `not_modelled`, `mapping`, `g_min` and `g_max` (µS), `rows` and `columns`.
        means: Mean conductance of devices programmed to each of `FRACTIONS`, µS, by time.
        stds: Their standard deviation, µS, by time.
        weight_stds: Standard deviation of a stored weight of each of `FRACTIONS`, by time.
    """

    facts: dict[str, Any]
    means: dict[str, list[float]]
    stds: dict[str, list[float]]
    weight_stds: dict[str, list[float]]


def card_figures(devices: Sequence[str]) -> list[CardFigures]:
    """Return the figures of cards, from the cache or computed.

    Args:
        devices: Names or paths, as `DeviceCard.load` takes them.

    Raises:
        CardError: A card is unknown, or its file is missing, unreadable or invalid.

    Example:
        >>> (figures,) = card_figures(["gaussian"])
        >>> figures.facts["g_max"], [round(std, 2) for std in figures.stds["1y"]]
        (25.0, [1.25, 1.25, 1.25])
    """
    folder = user_cache_path("analog-grasp") / "figures"
    package = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    figures = []
    for device in devices:
        cached = _cache_file(folder, package, device)
        found = None if cached is None else _read(cached)
        if found is None:
            found = _computed(device)
            if cached is not None:
                _write(cached, found)
        figures.append(found)
    return figures


def _cache_file(folder: Path, package: bytes, device: str) -> Path | None:
    """Return the cache file of a card in its present state; None if the card cannot be read."""
    shipped = cards_folder() / f"{device.partition(':')[0]}.toml"
    try:
        content = (shipped if shipped.is_file() else Path(device)).read_bytes()
    except (OSError, ValueError):
        return None
    parts = (package, device.encode(errors="backslashreplace"), content)
    digest = hashlib.blake2b(b"\0".join(parts), digest_size=16)
    return folder / f"{digest.hexdigest()}.json"


def _read(path: Path) -> CardFigures | None:
    try:
        return CardFigures(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(path: Path, figures: CardFigures) -> None:
    from analog_grasp.utils.io import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(figures._asdict()).encode())
    except OSError:
        # Without a writable cache folder the figures are computed each time.
        return


def _computed(device: str) -> CardFigures:
    from analog_grasp.devices.card import DeviceCard
    from analog_grasp.devices.moments import conductance_moments, weight_std

    card = DeviceCard.load(device)
    facts = {
        "name": card.name,
        "title": card.title,
        "technology": card.technology,
        "citation": card.source.citation,
        "doi": card.source.doi,
        "location": card.source.location,
        "valid_range": card.valid_range,
        "not_modelled": card.not_modelled,
        "mapping": card.conductance.mapping,
        "g_min": card.conductance.g_min,
        "g_max": card.conductance.g_max,
        "rows": card.tile.rows,
        "columns": card.tile.columns,
    }
    moments = {text: conductance_moments(card, FRACTIONS, time) for text, time in TIMES.items()}
    return CardFigures(
        facts,
        {text: mean.tolist() for text, (mean, _) in moments.items()},
        {text: std.tolist() for text, (_, std) in moments.items()},
        {text: weight_std(card, FRACTIONS, time).tolist() for text, time in TIMES.items()},
    )
