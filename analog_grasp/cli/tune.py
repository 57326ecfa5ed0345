"""A tuning, carried out and shown."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from analog_grasp.cli.console import Stages, show, tell
from analog_grasp.cli.errors import RequestError, asking
from analog_grasp.report import comparison_tables, device_text, findings, rich_table
from analog_grasp.report.tuning import importance_table, trial_table, tuning_findings
from analog_grasp.study.config import resolve
from analog_grasp.tuning.api import Tuned, carry_out
from analog_grasp.tuning.tune import Tuning, prepare_tuning


def tune_adapter(
    settings: dict[str, Any],
    out: Path,
    config: Path | None,
    trials: int,
    *,
    search: str,
    ranges: str | None,
    **others: Any,
) -> None:
    """Tune, or go on with it, and show what came out.

    Args:
        settings, out, config: As the command takes them.
        trials: Settings to try in total.
        search, ranges: As text.
        others: Further arguments of `analog_grasp.tuning.tune.prepare_tuning`.
    """
    with asking():
        tuning = prepare_tuning(
            resolve(settings, config),
            out,
            search=_names(search),
            ranges=_ranges(ranges),
            **others,
        )
    with _interruptible(tuning, trials):
        with Stages() as stages:
            tuned = carry_out(tuning, trials, stages)
        _show(tuned)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _ranges(text: str | None) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for part in _names(text or ""):
        name, _, ends = part.partition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            raise RequestError(
                f"The range '{part}' cannot be read: write a setting with its lowest and highest "
                "value, as in noise_weight=0.01:10."
            ) from None
        found[name.strip()] = (low, high)
    return found


@contextmanager
def _interruptible(tuning: Tuning, trials: int) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        tell(
            "Interrupted",
            f"{len(tuning.trials())} of {trials} trials are finished and kept in "
            f"{tuning.directory}; the same command goes on.",
        )
        raise typer.Exit(1) from None


def _show(tuned: Tuned) -> None:
    show(rich_table(trial_table(tuned.trials)))
    if tuned.trials.importance:
        show(rich_table(importance_table(tuned.trials)))
    for sentence in tuning_findings(tuned.trials):
        show(f"- {sentence}")
    show("The best setting on the validation split, which no trial has seen:")
    measured, adapters = tuned.results.measurements, tuned.results.adapters
    for table in comparison_tables(measured, adapters):
        show(rich_table(device_text(table)))
    for sentence in findings(measured, adapters):
        show(f"- {sentence}")
    for file in tuned.files:
        show(f"wrote {file}")
