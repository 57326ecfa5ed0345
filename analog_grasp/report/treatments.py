"""Table of the costs of recalibrated and scheduled adapters."""

from collections.abc import Sequence

from analog_grasp.report.tables import MISSING, Entry, TextRow, TextTable
from analog_grasp.study.records import TreatmentCost

TITLE = (
    "Costs per age: examples, those read by the chip, parameters and bytes rewritten, and devices"
    " that reprogramming would write instead"
)


def treatment_text(costs: Sequence[TreatmentCost]) -> TextTable:
    """Return the mean cost of each treatment per age as text.

    Example:
        >>> cost = TreatmentCost("grasp+recalibrated-64", 3, 64, 3376, 49.0, 5506, 22024, 21233664)
        >>> [entry.text for entry in treatment_text([cost]).rows[0].entries]
        ['3', '64', '3,376', '49', '5,506', '22,024', '21,233,664']
    """
    columns = (
        "adapter", "fits", "examples", "chip reads", "seconds", "parameters", "bytes", "devices"
    )  # fmt: skip
    rows = tuple(
        TextRow(
            cost.variant,
            tuple(
                Entry(MISSING if value is None else f"{value:,.0f}")
                for value in (cost.fits, cost.examples, cost.examples_read, cost.seconds,
                              cost.parameters, cost.bytes, cost.devices)
            ),
        )
        for cost in costs
    )  # fmt: skip
    return TextTable(TITLE, columns, rows)
