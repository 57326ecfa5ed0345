"""The commands with their options and help.

A command checks its request, then imports the module that does its work: torch and peft take
seconds to import, which neither a help text nor a wrong request should cost.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analog_grasp.adapters.registry import check_placement
from analog_grasp.cli.console import Debug, RequestError, loading, request
from analog_grasp.cli.options import Config, Out, Quiet, Verbose, given, takes
from analog_grasp.study.config import (
    ONE_STAGE,
    check_costs,
    check_effects,
    check_empty,
    check_export,
    check_model,
    check_saved,
    check_study,
    check_task,
    check_training,
    resolve,
)
from analog_grasp.study.sections import split_names
from analog_grasp.tuning.search_space import RANGES, TRIALS, search_space

_OTHER = "the one that the adapter names"
_PLAN = ("until_ci", "repeats_limit", "engine", "workers", "ray_address")
_SEVERAL = ("trainings", "trainings_limit")
_SEARCHED = ", ".join(f"{name} ({r.low:g} to {r.high:g})" for name, r in RANGES.items())
_TUNING = "Tuning"

Folders = Annotated[
    list[Path], typer.Argument(metavar="ADAPTER_FOLDER...", help="Folders of saved adapters.")
]


@takes("model", "task", "hardware", "training", "run")
def compare(
    context: typer.Context,
    out: Out = Path("runs/compare"),
    config: Config = None,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare adapters over devices and drift times, from training to report.

    Trains each adapter, measures it on simulated chips and writes tables, figures and a page. The
    same command resumes an interrupted run.
    """
    _study(given(context), out, config, quiet, verbose)


@takes("model", "task", "hardware", "run", without=("adapters",), model=_OTHER)
def drift(
    context: typer.Context,
    folders: Folders,
    out: Out = Path("runs/drift"),
    config: Config = None,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure saved adapters over devices and drift times, without training.

    The same command resumes an interrupted run.
    """
    # Absolute, so that none is taken for the adapter of that name.
    adapters = tuple(str(folder.resolve()) for folder in folders)
    _study(given(context) | {"adapters": adapters}, out, config, quiet, verbose)


@takes("model", "task", "hardware", "run", without=("adapters", "recalibrate"), model=_OTHER)
def recalibrate(
    context: typer.Context,
    folders: Folders,
    examples: Annotated[
        str, typer.Option(help="Numbers of unlabelled examples, such as 16,64,256.")
    ] = "64",
    out: Out = Path("runs/recalibrate"),
    config: Config = None,
    debug: Debug = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure saved adapters as they are and re-fitted on aged chips, over drift time.

    The same command resumes an interrupted run. The re-fitted adapters are saved in the run's
    folder, each with the chip, its age and the cost of the fit.
    """
    asked = {
        "adapters": tuple(str(folder.resolve()) for folder in folders),
        "recalibrate": split_names(examples),
    }
    _study(given(context) | asked, out, config, quiet, verbose)


def _study(
    settings: dict[str, Any], out: Path, file: Path | None, quiet: bool, verbose: bool
) -> None:
    with request():
        if quiet and verbose:
            raise RequestError("--quiet and --verbose exclude each other: give one of them.")
        config = resolve(settings, file)
        check_study(config)
    with loading("compare"):
        from analog_grasp.cli.runs import run_study

    run_study(config, out, quiet=quiet, verbose=verbose)


@takes("model", "task", "training", without=("adapters", *_SEVERAL), also=("seed",), **ONE_STAGE)
def train(
    context: typer.Context,
    adapter: Annotated[str, typer.Option(help="Its name; see `analog-grasp adapters`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The adapter's folder, a new one.", show_default="runs/train/ADAPTER"),
    ] = None,
    save_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="<int>",
            help="Steps between two checkpoints, and between two evaluations on a chip.",
            show_default="an epoch",
        ),
    ] = None,
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Train one adapter into a folder that PEFT, deploy and drift can load.

    The same command resumes an interrupted training from its last checkpoint. Under `torchrun -m
    analog_grasp.cli` or `accelerate launch -m analog_grasp.cli` several processes train together.
    """
    folder = out or Path("runs/train") / adapter
    with request():
        check_placement(adapter, "folded")
        settings = resolve(given(context) | {"adapters": (adapter,)}, config, ONE_STAGE)
        check_task(settings.task)
        check_model(settings.model.name)
        if settings.training.then == ("devices",) and "devices" not in settings.given():
            raise RequestError(
                "The setting then is devices, of which train has none: name them, as in "
                "pcm-hermes-2@0s..1y, or give devices in a config file."
            )
        check_training(settings)
        check_empty(folder)
    with loading("train"):
        from analog_grasp.cli.runs import train_one

    train_one(settings, adapter, folder, save_steps)


@takes(
    *("model", "task", "hardware", "training", "run"),
    without=("adapters", *_PLAN, *_SEVERAL),
    **ONE_STAGE,
)
def tune(
    context: typer.Context,
    out: Out = Path("runs/tune"),
    config: Config = None,
    debug: Debug = False,
    adapter: Annotated[
        str,
        typer.Option(help="The adapter; see `analog-grasp adapters`.", rich_help_panel=_TUNING),
    ] = "stochgrasp",
    trials: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="<int>",
            help="Number of trials, over all processes.",
            rich_help_panel=_TUNING,
        ),
    ] = TRIALS,
    search: Annotated[
        str,
        typer.Option(
            help=f"The settings to search: {_SEARCHED}. The given settings are tried first, then "
            "the same with noise_weight 0.",
            rich_help_panel=_TUNING,
        ),
    ] = "noise_weight",
    ranges: Annotated[
        str | None,
        typer.Option(
            help="Other ranges, such as noise_weight=0.01:10,groups=4:32.",
            show_default="as above",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    multi: Annotated[
        bool,
        typer.Option(
            "--multi",
            help="Search the Pareto front of digital score and score after drift; no trial is "
            "pruned then.",
            rich_help_panel=_TUNING,
        ),
    ] = False,
    held_out: Annotated[
        int | None,
        typer.Option(
            help="Rows of the training split to tune on.",
            show_default="a fifth, 1,000 at most",
            rich_help_panel=_TUNING,
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="URL of a database that machines share, such as postgresql://user@host/name; the "
            "study is named after the last part of --out.",
            show_default="study.sqlite in the folder",
            rich_help_panel=_TUNING,
        ),
    ] = None,
) -> None:
    """Find the noise-aware loss weight with the best score after drift.

    Every trial is trained on a part of the training data and measured on the rest; the best is
    then measured on the validation data, which no trial has seen, and written to best.toml for
    train and compare. The same command resumes an interrupted tuning, and several processes that
    run it share the work.
    """
    with request():
        settings = given(context)
        check_placement(adapter, "folded")
        resolved = resolve(settings, config, ONE_STAGE)
        stated = [name for name, value in settings.items() if value is not None]
        check_effects(resolved, [adapter], stated)
        check_study(resolved.replace(adapters=(adapter,)))
        searched = split_names(search)
        found = parse_ranges(ranges or "")
        search_space(searched, found)
    with loading("tune"):
        from analog_grasp.cli.runs import tune_adapter

    tune_adapter(
        resolved,
        out,
        trials,
        adapter=adapter,
        search=searched,
        ranges=found,
        multi=multi,
        held_out=held_out,
        storage=storage,
    )


@takes(
    *("model", "task", "hardware"),
    without=("adapters", "devices"),
    also=("seed", "costs", "tiles"),
    model=_OTHER,
)
def deploy(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="ADAPTER_FOLDER", help="The folder of a saved adapter.")
    ],
    device: Annotated[
        str, typer.Option(help="The device: a name (see `analog-grasp devices`) or a TOML file.")
    ] = "pcm-hermes-2",
    time: Annotated[str, typer.Option(help="The drift time since programming.")] = "1d",
    sensitivity: Annotated[
        Literal["analog", "digital"] | None,
        typer.Option(
            help="Also score each layer alone on the chip (analog), or each layer alone off the "
            "chip (digital); one more evaluation per layer.",
            show_default="off",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write the programming targets of each device to this file, for a real "
            "crossbar.",
            metavar="FILE.safetensors",
            show_default="off",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of deployment.json.")] = Path("runs/deploy"),
    debug: Debug = False,
) -> None:
    """Deploy one saved adapter on one device: its score, tiles, weight error and costs."""
    with request():
        settings = resolve(given(context) | {"devices": (device,), "times": (time,)})
        check_saved(folder)
        check_task(settings.task)
        check_model(settings.model.name)
        settings.hardware.cards()
        check_costs(settings.run.costs, 1)
        if export is not None:
            check_export(export)
    with loading("deploy"):
        from analog_grasp.cli.runs import deploy_on

    deploy_on(folder, settings, sensitivity=sensitivity, export=export, out=out)


def inspect(
    folders: Folders,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write inspection.csv, .md, .png, .svg and .pdf to this folder.",
            show_default="off",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show the distribution of the scales, shifts and sigmas that adapters have learned.

    Several adapters, such as those of several K, are shown side by side. A dip test says for each
    layer whether the distribution has one mode or several.
    """
    with request():
        for folder in folders:
            check_saved(folder)
    with loading("inspect"):
        from analog_grasp.cli.runs import show_learned

    show_learned(folders, out)


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a finished or interrupted run.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder of the report, so that the run's may be read-only.",
            show_default="the run's",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the tables, figures and page of a run again."""
    with request():
        from analog_grasp.study.provenance import read_run

        read_run(directory)
    with loading("report"):
        from analog_grasp.cli.runs import report_again

    report_again(directory, out)


def parse_ranges(text: str) -> dict[str, tuple[float, float]]:
    """Read ranges of a search, such as ``noise_weight=0.01:10,groups=4:32``.

    Raises:
        ValueError: The text has another form.

    Example:
        >>> parse_ranges("groups=4:32")
        {'groups': (4.0, 32.0)}
    """
    found: dict[str, tuple[float, float]] = {}
    for part in split_names(text):
        name, _, ends = part.partition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            raise ValueError(
                f"The range '{part}' is invalid: give a setting with its lowest and highest value, "
                "as in noise_weight=0.01:10."
            ) from None
        found[name.strip()] = (low, high)
    return found
