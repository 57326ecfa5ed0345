"""The command on a study of settings: tune."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from analog_grasp.cli import options
from analog_grasp.cli.console import Stages, show, tell
from analog_grasp.cli.errors import RequestError, asking
from analog_grasp.cli.options import CHIPS, DATA, HARDWARE, TRAINING, takes
from analog_grasp.experiments import resolve
from analog_grasp.experiments.search import RANGES
from analog_grasp.experiments.tune import TRIALS, Tuning, prepare_tuning
from analog_grasp.report import comparison_tables, device_text, findings, rich_table
from analog_grasp.report.tuning import importance_table, trial_table, tuning_findings
from analog_grasp.tuning import Tuned, carry_out

_TUNING = "Tuning"
_SEARCHED = ", ".join(f"{name} ({r.low:g} to {r.high:g})" for name, r in RANGES.items())

Trials = Annotated[
    int,
    typer.Option(
        min=1, help="Settings to try in total, by all processes.", rich_help_panel=_TUNING
    ),
]
Search = Annotated[
    str,
    typer.Option(
        help=f"What is varied: {_SEARCHED}. The settings as given are tried first, then those "
        "with noise_weight 0.",
        rich_help_panel=_TUNING,
    ),
]
Ranges = Annotated[
    str | None,
    typer.Option(
        help="Other ranges, such as noise_weight=0.01:10,groups=4:32.",
        show_default="as above",
        rich_help_panel=_TUNING,
    ),
]
Multi = Annotated[
    bool,
    typer.Option(
        "--multi",
        help="Look for the front of digital score against score after drift; nothing is given up "
        "early then.",
        rich_help_panel=_TUNING,
    ),
]
HeldOut = Annotated[
    int | None,
    typer.Option(
        help="Rows of the training split to tune on.",
        show_default="a fifth, 1,000 at most",
        rich_help_panel=_TUNING,
    ),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="URL of a database that machines share, such as postgresql://user@host/name; the "
        "study is called as the last part of --out.",
        show_default="study.sqlite in the folder",
        rich_help_panel=_TUNING,
    ),
]
Adapter = Annotated[
    str, typer.Option(help="What is tuned; see `analog-grasp adapters`.", rich_help_panel=_TUNING)
]


@takes(DATA, CHIPS, HARDWARE, TRAINING)
def tune(
    context: typer.Context,
    model: options.Model = None,
    out: options.Out = Path("runs/tune"),
    config: options.Config = None,
    debug: options.Debug = False,
    adapter: Adapter = "stochgrasp",
    trials: Trials = TRIALS,
    search: Search = "noise_weight",
    ranges: Ranges = None,
    multi: Multi = False,
    held_out: HeldOut = None,
    storage: Storage = None,
) -> None:
    """Find the noise-aware loss weight that keeps the score on ageing chips.

    Every trial is trained on a part of the training data and measured on the rest; the best is
    then measured on the validation data, which no trial has seen, and written to best.toml for
    train and compare. An interrupted tuning goes on when the same command is given again, and
    several processes that are given it share the work.
    """
    with asking():
        tuning = prepare_tuning(
            resolve(options.given(context), config),
            out,
            adapter=adapter,
            search=_names(search),
            ranges=_ranges(ranges),
            multi=multi,
            held_out=held_out,
            storage=storage,
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
