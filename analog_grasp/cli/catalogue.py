"""The commands devices and adapters: what a study can choose from."""

from typing import TYPE_CHECKING, Annotated

import typer

from analog_grasp.cli.console import Debug, request, show

if TYPE_CHECKING:
    from rich.table import Table

    from analog_grasp.devices.card import DeviceCard

# Programmed conductances, as fractions of the range, and drift times that are shown.
_LEVELS = (0.1, 0.5, 1.0)
_TIMES = ("0s", "1h", "1d", "30d", "1y")
_MAPPINGS = {
    "pair": "a weight is the difference of two devices",
    "single": "a weight is one device",
    "signed": "a weight is one signed conductance, which no real device provides",
}


def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The card to show: a name or a TOML file; without it all are listed.",
            show_default=False,
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """List the device cards, or show one with its source and its noise."""
    with request():
        from analog_grasp.devices.card import DeviceCard

        cards = [DeviceCard.load(each) for each in ([name] if name else DeviceCard.names())]
    if name is None:
        show(
            "std: standard deviation of devices programmed to 0.1 / 0.5 / 1.0 of the range, before "
            "any drift compensation"
        )
        show(_card_table(cards))
        return
    (card,) = cards
    for line in _facts(card):
        show(line)
    show(
        "\nConductance of devices programmed to 0.1, 0.5 and 1.0 of the range: mean ± standard "
        "deviation, µS, before any drift compensation"
    )
    show(_conductance_table(card))
    show(
        "\nStandard deviation of a stored weight, % of the largest weight: what --noise-target "
        f"{name}@TIME refers to"
    )
    show(_weight_table(card))


def adapters(debug: Debug = False) -> None:
    """List the adapters that can be trained and compared."""
    from rich.table import Table

    from analog_grasp.adapters.registry import ADAPTERS

    table = Table("name", "title", "trained parameters", "placements", "reference")
    for name, method in ADAPTERS.items():
        placements = ", ".join(method.placements)
        table.add_row(name, method.title, method.trains, placements, method.reference)
    show(table)


def _card_table(cards: "list[DeviceCard]") -> "Table":
    from rich.table import Table

    from analog_grasp.devices.moments import conductance_moments

    table = Table("name", "technology", "range, µS", "std at 0s, µS", "std at 1d, µS", "source")
    for card in cards:
        stds = (
            " / ".join(f"{std:.2f}" for std in conductance_moments(card, _LEVELS, time)[1])
            for time in (0.0, 86_400.0)
        )
        table.add_row(card.name, card.technology, _range(card), *stds, card.source.citation)
    return table


def _facts(card: "DeviceCard") -> list[str]:
    source = card.source
    return [
        f"{card.name}: {card.title}",
        f"technology: {card.technology}",
        f"source: {source.citation}" + (f", doi:{source.doi}" if source.doi else ""),
        f"taken from: {source.location}",
        f"valid for: {card.valid_range}",
        f"not modelled: {card.not_modelled}",
        f"conductance: {_range(card)} µS, {_MAPPINGS[card.conductance.mapping]}",
        f"tile: {card.tile.rows} x {card.tile.columns} weights",
    ]


def _conductance_table(card: "DeviceCard") -> "Table":
    from rich.table import Table

    from analog_grasp.devices.moments import conductance_moments
    from analog_grasp.utils.time import parse_time

    low, high = card.conductance.g_min, card.conductance.g_max
    table = Table("time", *(f"to {low + level * (high - low):.3g} µS" for level in _LEVELS))
    for time in _TIMES:
        moments = zip(*conductance_moments(card, _LEVELS, parse_time(time)), strict=True)
        table.add_row(time, *(f"{mean:.2f} ± {std:.2f}" for mean, std in moments))
    return table


def _weight_table(card: "DeviceCard") -> "Table":
    from rich.table import Table

    from analog_grasp.devices.moments import weight_std
    from analog_grasp.utils.time import parse_time

    table = Table("time", *(f"weight {level:g}" for level in _LEVELS))
    for time in _TIMES:
        stds = weight_std(card, _LEVELS, parse_time(time))
        table.add_row(time, *(f"{100 * std:.2f}" for std in stds))
    return table


def _range(card: "DeviceCard") -> str:
    return f"{card.conductance.g_min:g} to {card.conductance.g_max:g}"
