"""The page's switches: what can be shown or hidden, and how its parts say what they show.

Each adapter, device and placement has a token, such as ``a0``, ``d1`` or ``p0``. A part of the
page lists the tokens of what it shows; it is hidden where all of one kind are switched off. So no
name is ever part of the script.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from analog_grasp.report.curves import MARKERS, variant_looks
from analog_grasp.study.statistics import Variant

_SHAPES = {
    "o": '<circle cx="6" cy="6" r="5"/>',
    "s": '<rect x="1.5" y="1.5" width="9" height="9"/>',
    "^": '<path d="M6 1 11.5 11H.5z"/>',
    "D": '<path d="M6 .5 11.5 6 6 11.5.5 6z"/>',
}


class Switches:
    """The switches of a comparison.

    Args:
        measured: The variants, in the order of the tables.
        devices: The devices, in that order too.

    Example:
        >>> switches = Switches([Variant("grasp", "digital")], ["pcm", "rram"])
        >>> switches.variant(Variant("grasp", "digital")), switches.devices(["rram"])
        ('a0 p0', 'd1')
    """

    def __init__(self, measured: Sequence[Variant], devices: Iterable[str]) -> None:
        self._looks = variant_looks(measured)
        self._adapters = list(dict.fromkeys(variant.adapter for variant in measured))
        self._placements = list(dict.fromkeys(variant.placement for variant in measured))
        self._devices = list(dict.fromkeys(devices))

    def variant(self, variant: Variant) -> str:
        """The tokens of an adapter at a placement."""
        adapter = self._adapters.index(variant.adapter)
        return f"a{adapter} {self.placement(variant.placement)}"

    def placement(self, name: str) -> str:
        """The token of a placement."""
        return f"p{self._placements.index(name)}"

    def devices(self, names: Iterable[str]) -> str:
        """The tokens of devices; of one that the tables do not have, none."""
        return " ".join(f"d{self._devices.index(n)}" for n in names if n in self._devices)

    def html(self) -> str:
        """The switches, which are the legend of the figures too."""
        colours = {look.adapter: look.colour for look in self._looks.values()}
        adapters = [swatch("o", colours[name]) for name in self._adapters]
        placements = [
            swatch(MARKERS[index % len(MARKERS)]) for index in range(len(self._placements))
        ]
        parts = [_group("Adapter", "a", self._adapters, adapters)]
        if len(self._placements) > 1:
            parts.append(_group("Placement", "p", self._placements, placements))
        if len(self._devices) > 1:
            parts.append(_group("Device", "d", self._devices, [""] * len(self._devices)))
        return f'<form class="switches" autocomplete="off">{"".join(parts)}</form>'


def swatch(marker: str, colour: str = "currentColor") -> str:
    """A marker for a legend.

    Example:
        >>> swatch("s", "#0072B2").partition(" fill=")[2]
        '"#0072B2"><rect x="1.5" y="1.5" width="9" height="9"/></svg>'
    """
    return (
        f'<svg class="swatch" aria-hidden="true" viewBox="0 0 12 12" fill="{colour}">'
        f"{_SHAPES[marker]}</svg>"
    )


def _group(title: str, kind: str, names: Sequence[str], marks: Sequence[str]) -> str:
    """One switch a name; a single name has nothing to be switched to, and is named only."""
    labels = "".join(
        f"<label>{_box(f'{kind}{index}') if len(names) > 1 else ''}{mark}"
        f"<span>{escape(name)}</span></label>"
        for index, (name, mark) in enumerate(zip(names, marks, strict=True))
    )
    return f"<fieldset><legend>{title}</legend>{labels}</fieldset>"


def _box(token: str) -> str:
    return f'<input type="checkbox" value="{token}" checked>'
