"""The commands devices and adapters: what a study can choose from."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from analog_grasp.cli.console import Debug, request, show

if TYPE_CHECKING:
    from rich.table import Table

    from analog_grasp.devices import CardFigures

_MAPPINGS = {
    "pair": "a weight is the difference of two devices",
    "single": "a weight is one device",
    "signed": "a weight is one signed conductance, as in models of whole weights",
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
        from analog_grasp.devices import card_figures, card_names, check_name

        check_name(name)
        cards = [card_figures(each) for each in ([name] if name else card_names())]
    if name is None:
        show(
            "std: standard deviation of devices programmed to 0.1 / 0.5 / 1.0 of the range, before "
            "any drift compensation"
        )
        show(_card_table(cards))
        return
    (card,) = cards
    show("\n".join(_facts(card)))
    devices, weights = _noise_tables(card)
    show(
        "\nConductance of devices programmed to 0.1, 0.5 and 1.0 of the range: mean ± standard "
        "deviation, µS, before any drift compensation"
    )
    show(devices)
    show(
        "\nStandard deviation of a stored weight, % of the largest weight: what --noise-target "
        f"{name}@TIME refers to"
    )
    show(weights)


def adapters(debug: Debug = False) -> None:
    """List the adapters that can be trained and compared."""
    from rich.table import Table

    from analog_grasp.adapters.registry import ADAPTERS

    table = Table("name", "title", "trained parameters", "placements", "reference")
    for name, method in ADAPTERS.items():
        placements = ", ".join(method.placements)
        table.add_row(name, method.title, method.trains, placements, method.reference)
    show(table)


def _card_table(cards: "list[CardFigures]") -> "Table":
    from rich.table import Table

    table = Table("name", "technology", "range, µS", "std at 0s, µS", "std at 1d, µS", "source")
    for card in cards:
        stds = (" / ".join(f"{std:.2f}" for std in card.stds[time]) for time in ("0s", "1d"))
        name, technology, source = (card.facts[key] for key in ("name", "technology", "source"))
        table.add_row(name, technology, _range(card.facts), *stds, source["citation"])
    return table


def _facts(card: "CardFigures") -> list[str]:
    facts = card.facts
    source, tile = facts["source"], facts["tile"]
    return [
        f"{facts['name']}: {facts['title']}",
        f"technology: {facts['technology']}",
        f"source: {source['citation']}" + (f", doi:{source['doi']}" if source["doi"] else ""),
        f"taken from: {source['location']}",
        f"valid for: {facts['valid_range']}",
        f"not modelled: {facts['not_modelled']}",
        f"conductance: {_range(facts)} µS, {_MAPPINGS[facts['conductance']['mapping']]}",
        f"tile: {tile['rows']} x {tile['columns']} weights",
    ]


def _range(facts: dict[str, Any]) -> str:
    return f"{facts['conductance']['g_min']:g} to {facts['conductance']['g_max']:g}"


def _noise_tables(card: "CardFigures") -> "tuple[Table, Table]":
    """Return the conductance of devices, and the noise of weights, over time."""
    from rich.table import Table

    from analog_grasp.devices import FRACTIONS

    low, high = (card.facts["conductance"][end] for end in ("g_min", "g_max"))
    devices = Table("time", *(f"to {low + part * (high - low):.3g} µS" for part in FRACTIONS))
    for time, means in card.means.items():
        moments = zip(means, card.stds[time], strict=True)
        devices.add_row(time, *(f"{mean:.2f} ± {std:.2f}" for mean, std in moments))
    weights = Table("time", *(f"weight {part:g}" for part in FRACTIONS))
    for time, stds in card.weight_stds.items():
        weights.add_row(time, *(f"{100 * std:.2f}" for std in stds))
    return devices, weights
