"""One chip: a saved adapter deployed, reported, and written to a file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.table import Table

from analog_grasp import deploy as deploy_model
from analog_grasp.adapters.folding import fold
from analog_grasp.adapters.registry import check_placement, kind_of
from analog_grasp.cli.console import show
from analog_grasp.cli.errors import asking
from analog_grasp.crossbar.deployment import Deployment, LayerReport
from analog_grasp.crossbar.export import export_chip
from analog_grasp.crossbar.sensitivity import layer_sensitivity
from analog_grasp.devices.card import DeviceCard
from analog_grasp.report.tables import metric_title, score_text, scores_line
from analog_grasp.study.adapters import load_adapter
from analog_grasp.study.config import StudyConfig, resolve
from analog_grasp.tasks import Task
from analog_grasp.utils.io import write_atomically
from analog_grasp.utils.time import format_time, parse_time


def deploy_on(
    folder: Path,
    asked: Mapping[str, Any],
    *,
    sensitivity: str | None,
    export: Path | None,
    out: Path,
) -> None:
    """Deploy the adapter of a folder on the device and at the time that are asked for."""
    with asking():
        settings = resolve(asked)
        seconds = parse_time(*asked["times"])
        card, data = settings.hardware.card(settings.hardware.devices[0]), settings.task.load()
        adapted = load_adapter(folder, settings.model.name, data, settings.model.trust_remote_code)
        check_placement(kind_of(adapted.active_peft_config) or "grasp", settings.hardware.placement)
        _check_choice(sensitivity)
        deployment = deploy_model(adapted, card, **settings.hardware.deploy_arguments())
        out.mkdir(parents=True, exist_ok=True)
    outcome = _measured(adapted, deployment, settings, data, seconds, sensitivity)
    for line in _told(outcome, card):
        show(line)
    target = out / "deployment.json"
    content = json.dumps({"adapter": str(folder), **asdict(outcome)}, indent=1)
    write_atomically(target, content.encode())
    show(f"wrote {target}")
    if export is not None:
        plain = fold(adapted) if settings.hardware.placement == "folded" else adapted
        export_chip(plain, card, export)
        show(f"wrote {export}")


@dataclass(frozen=True)
class Outcome:
    """What deployment.json holds.

    Attributes:
        device: The card's name.
        placement: Where the adapter lives.
        seed: The chip instance.
        time_s: Seconds since programming.
        settings: What was changed about the hardware.
        digital: The scores of the digital model, by metric.
        scores: Those on the chip.
        tile: Rows and columns of a tile, in weights.
        layers: Of each layer its tiles, cells, use, and weight error once programmed and now.
        sensitivity: The score by layer; None where it was not asked for.
    """

    device: str
    placement: str
    seed: int
    time_s: float
    settings: dict[str, Any]
    digital: dict[str, float]
    scores: dict[str, float]
    tile: tuple[int, int]
    layers: list[dict[str, Any]]
    sensitivity: dict[str, Any] | None


def _measured(
    adapted: PeftModel,
    deployment: Deployment,
    settings: StudyConfig,
    task: Task,
    seconds: float,
    sensitivity: str | None,
) -> Outcome:
    settings.hardware.calibrate_inputs(deployment, task)
    programmed = deployment.program(settings.run.seed).report()
    now = deployment.drift_to(seconds).report()
    scores = task.scores(deployment.model)
    by_layer = None
    if sensitivity is not None:
        alone: Any = sensitivity
        by_layer = {
            "alone": sensitivity,
            "metric": task.metrics[0],
            "scores": layer_sensitivity(deployment, task.evaluate, alone),
        }
    card = deployment.card
    return Outcome(
        device=card.name,
        placement=settings.hardware.placement,
        seed=settings.run.seed,
        time_s=seconds,
        settings=settings.hardware.changes(),
        digital=task.scores(adapted),
        scores=scores,
        tile=(card.tile.rows, card.tile.columns),
        layers=[_layer(*pair) for pair in zip(programmed, now, strict=True)],
        sensitivity=by_layer,
    )


def _layer(programmed: LayerReport, now: LayerReport) -> dict[str, Any]:
    return {
        "name": now.name,
        "tiles": now.tiles,
        "cells": now.cells,
        "use": now.use,
        "programmed_error": programmed.weight_error,
        "weight_error": now.weight_error,
    }


def _told(outcome: Outcome, card: DeviceCard) -> list[str | Table]:
    layers = outcome.layers
    tiles, cells = (sum(layer[of] for layer in layers) for of in ("tiles", "cells"))
    use = cells / (tiles * card.tile.rows * card.tile.columns)
    at = format_time(outcome.time_s)
    told: list[str | Table] = [
        scores_line("digital", outcome.digital),
        scores_line(f"on {outcome.device} at {at}, chip {outcome.seed}", outcome.scores),
        f"tiles: {tiles} of {card.tile.rows} x {card.tile.columns} weights, {use:.1%} in use; "
        f"{cells:,} weights",
        _layer_table(layers, at),
    ]
    if outcome.sensitivity is not None:
        told.append(_sensitivity_table(outcome.sensitivity))
    return told


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
    """The layers in the order of what they cost."""
    analog = sensitivity["alone"] == "analog"
    title = "Each layer alone on the chip" if analog else "Each layer alone taken off the chip"
    metric = sensitivity["metric"]
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    table.add_column(metric_title(metric), justify="right")
    scores = sensitivity["scores"].items()
    for name, score in sorted(scores, key=lambda pair: pair[1], reverse=not analog):
        table.add_row(name, score_text(score, metric))
    return table


def _check_choice(sensitivity: str | None) -> None:
    if sensitivity not in (None, "analog", "digital"):
        raise ValueError(f"--sensitivity is {sensitivity!r}: it should be analog or digital.")
