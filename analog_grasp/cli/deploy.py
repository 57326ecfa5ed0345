"""The commands deploy and inspect: one saved adapter on a chip, and learned parameters, shown."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from rich.table import Table

from analog_grasp.adapters.frozen import fold
from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.cli.console import request, show
from analog_grasp.costs.estimate import Costs
from analog_grasp.costs.table import cost_rows
from analog_grasp.crossbar.deployment import Deployment, deploy
from analog_grasp.crossbar.export import export_chip
from analog_grasp.crossbar.report import LayerReport
from analog_grasp.report.inspection import (
    LEGEND,
    inspect_adapters,
    inspection_findings,
    inspection_tables,
    write_inspection,
)
from analog_grasp.report.tables import metric_title, rich_table, score_text, scores_line
from analog_grasp.study.config import StudyConfig
from analog_grasp.study.runner import sequence_costs
from analog_grasp.study.trained_adapters import load_adapter
from analog_grasp.tasks import Task
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time, parse_time

Alone = Literal["analog", "digital"]


@dataclass(frozen=True)
class Outcome:
    """The content of deployment.json.

    Attributes:
        device: The card's name.
        placement: Placement of the adapter.
        seed: The chip instance.
        time_s: Time since programming, s.
        settings: Changes of the hardware, by the names of the settings.
        digital: The scores of the digital model, by metric.
        scores: The scores on the chip, by metric.
        tile: Rows and columns of a tile, in weights.
        share_on_tiles: Share of the model's weights that is on tiles.
        digital_modules: Modules whose weights are not on tiles: name, class, number of weights.
        layers: For each layer on tiles its tiles, weights, use, and weight error at 0 s and now.
        sensitivity: The score by layer; None unless requested.
        costs: Every quantity of costs.csv for one sequence; none unless requested.
    """

    device: str
    placement: str
    seed: int
    time_s: float
    settings: dict[str, Any]
    digital: dict[str, float]
    scores: dict[str, float]
    tile: tuple[int, int]
    share_on_tiles: float
    digital_modules: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    sensitivity: dict[str, Any] | None
    costs: list[dict[str, Any]]


def deploy_on(
    folder: Path,
    config: StudyConfig,
    *,
    sensitivity: Alone | None,
    export: Path | None,
    out: Path,
) -> None:
    """Deploy a saved adapter on the first device and at the first time of the settings.

    Args:
        folder: The adapter's folder.
        config: The settings.
        sensitivity: Also score each layer alone on the chip, or alone off the chip.
        export: A file for the programming targets of each device.
        out: The folder of deployment.json.
    """
    with request():
        card, task = config.hardware.card(config.hardware.devices[0]), config.task.load()
        adapted = load_adapter(folder, config.model.name, task, config.model.trust_remote_code)
        placement = config.hardware.placement
        check_placement(kind_of(adapted) or "grasp", placement)
        changed = config.hardware.changes().keys() & {"rescale", "clip", "layers"}
        if export is not None and changed:
            raise ValueError(
                f"The setting {min(changed)} has no effect on an exported chip, whose weights are "
                "mapped as they are: omit it, or --export."
            )
        deployment = deploy(adapted, card, **config.hardware.deploy_arguments())
        out.mkdir(parents=True, exist_ok=True)
    outcome, report, costs = _measure(adapted, deployment, config, task, sensitivity)
    at = format_time(outcome.time_s)
    show(scores_line("digital", outcome.digital))
    show(scores_line(f"on {card.name} at {at}, chip {outcome.seed}", outcome.scores))
    tiles, cells = (sum(layer[key] for layer in outcome.layers) for key in ("tiles", "cells"))
    use = cells / max(tiles * card.tile.rows * card.tile.columns, 1)
    show(
        f"tiles: {tiles} of {card.tile.rows} x {card.tile.columns} weights, {use:.1%} in use; "
        f"{cells:,} weights"
    )
    show(report)
    show(_layer_table(outcome.layers, at))
    if outcome.sensitivity is not None:
        show(_sensitivity_table(outcome.sensitivity))
    for found in costs:
        show(str(found))
    target = out / "deployment.json"
    content = json.dumps({"adapter": str(folder), **asdict(outcome)}, indent=1)
    write_atomically(target, content.encode())
    show(f"wrote {target}")
    if export is not None:
        export_chip(fold(adapted) if placement == "folded" else adapted, card, export)
        show(f"wrote {export}")


def show_learned(folders: Sequence[Path], out: Path | None) -> None:
    """Show the parameters that adapters have learned; write them too, if a folder is given."""
    with request():
        found = inspect_adapters(folders)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    for table in inspection_tables(found):
        show(rich_table(table))
    show(LEGEND)
    for text in inspection_findings(found):
        show(f"- {text}")
    if out is not None:
        for file in write_inspection(found, out):
            show(f"wrote {file}")


def _measure(
    adapted: PeftModel,
    deployment: Deployment,
    config: StudyConfig,
    task: Task,
    sensitivity: Alone | None,
) -> tuple[Outcome, str, list[Costs]]:
    """Return the outcome of a deployment, a sentence on what is on tiles, and the costs."""
    config.hardware.calibrate_inputs(deployment, task)
    programmed = deployment.program(config.run.seed).report()
    seconds = parse_time(config.run.times[0])
    deployment.drift_to(seconds)
    scores = task.scores(deployment.model)
    # After the evaluation, so that layers on tiles that it has not used are known.
    now = deployment.report()
    by_layer = None
    if sensitivity is not None:
        by_layer = {
            "alone": sensitivity,
            "metric": task.metrics[0],
            "scores": deployment.layer_sensitivity(task.evaluate, sensitivity),
        }
    card = deployment.card
    costs = sequence_costs(deployment, config.run)
    outcome = Outcome(
        device=card.name,
        placement=config.hardware.placement,
        seed=config.run.seed,
        time_s=seconds,
        settings=config.hardware.changes(),
        digital=task.scores(adapted),
        scores=scores,
        tile=(card.tile.rows, card.tile.columns),
        share_on_tiles=now.share_on_tiles,
        digital_modules=[asdict(module) for module in now.digital],
        layers=[_layer(*pair) for pair in zip(programmed, now, strict=True)],
        sensitivity=by_layer,
        costs=[row._asdict() for c in costs for row in cost_rows(c, "", card.name)],
    )
    return outcome, str(now), costs


def _layer(programmed: LayerReport, now: LayerReport) -> dict[str, Any]:
    return {
        "name": now.name,
        "tiles": now.tiles,
        "cells": now.cells,
        "use": now.use,
        "programmed_error": programmed.weight_error,
        "weight_error": now.weight_error,
    }


def _layer_table(layers: Sequence[Mapping[str, Any]], at: str) -> Table:
    table = Table(
        title="Weight error: root mean square of (weight now - target), % of the column maximum",
        title_justify="left",
    )
    table.add_column("layer")
    for name in ("tiles", "weights", "use", "error at 0s", f"error at {at}"):
        table.add_column(name, justify="right")
    for layer in layers:
        table.add_row(
            layer["name"],
            str(layer["tiles"]),
            f"{layer['cells']:,}",
            f"{layer['use']:.1%}",
            f"{layer['programmed_error']:.2%}",
            f"{layer['weight_error']:.2%}",
        )
    return table


def _sensitivity_table(sensitivity: Mapping[str, Any]) -> Table:
    """Return the layers in the order of the score that each one costs."""
    analog = sensitivity["alone"] == "analog"
    title = "Each layer alone on the chip" if analog else "Each layer alone off the chip"
    metric = sensitivity["metric"]
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    table.add_column(metric_title(metric), justify="right")
    scores = sensitivity["scores"].items()
    for name, score in sorted(scores, key=lambda pair: pair[1], reverse=not analog):
        table.add_row(name, score_text(score, metric))
    return table
