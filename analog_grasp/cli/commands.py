"""The commands, with the options that only one of them has.

A command checks its request, then imports the module that does its work: torch and peft take
seconds to import, which neither a help text nor a wrong request should cost.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from analog_grasp.adapters.registry import check_placement
from analog_grasp.cli.console import Debug, RequestError, loading, request
from analog_grasp.cli.options import Config, Out, given, takes
from analog_grasp.study.checks import (
    check_empty,
    check_export,
    check_folder,
    check_model,
    check_saved,
    check_study,
    check_task,
    check_training,
)
from analog_grasp.study.config import ONE_STAGE, TREATMENTS, resolve
from analog_grasp.study.fields import split_names
from analog_grasp.study.hardware import HardwareSettings
from analog_grasp.tuning.search_space import (
    RANGES,
    TRIALS,
    check_searched,
    parse_ranges,
    search_space,
)
from analog_grasp.utils.errors import check_packages
from analog_grasp.utils.time import parse_time

_OTHER = "the one that the adapter names"
_PLAN = ("until_ci", "repeats_limit", "engine", "workers", "ray_address")
_SEVERAL = ("trainings", "trainings_limit")
_SEARCHED = ", ".join(f"{name} ({r.low:g} to {r.high:g})" for name, r in RANGES.items())
# The cost model that deploy shows, as `analog_grasp.costs` does.
_COSTS: dict[str, Any] = {"costs": ("hermes-1phase",)}
_DEPLOYED = _COSTS | {"devices": ("pcm-hermes-2",), "times": ("1d",)}
_Folders = Annotated[
    list[Path], typer.Argument(metavar="ADAPTER_FOLDER...", help="Folders of saved adapters.")
]


@takes("model", "task", "hardware", "training", "run", out="runs/compare")
def compare(context: typer.Context) -> None:
    """Compare adapters over devices and drift times, from training to report.

    Trains each adapter, measures it on simulated chips and writes tables, figures and a page. The
    same command resumes an interrupted run.
    """
    _study(context)


@takes(*("model", "task", "hardware", "run"), without=("adapters",), model=_OTHER, out="runs/drift")
def drift(context: typer.Context, folders: _Folders) -> None:
    """Measure saved adapters over devices and drift times, without training.

    The same command resumes an interrupted run.
    """
    # Absolute, so that none is taken for the adapter of that name.
    _study(context, adapters=tuple(str(folder.resolve()) for folder in folders))


@takes(
    *("model", "task", "hardware", "run"),
    without=("adapters", "recalibrate"),
    model=_OTHER,
    out="runs/recalibrate",
)
def recalibrate(
    context: typer.Context,
    folders: _Folders,
    examples: Annotated[
        str | None,
        typer.Option(help="Numbers of unlabelled examples, such as 16,64,256.", show_default="64"),
    ] = None,
) -> None:
    """Measure saved adapters as they are and re-fitted on aged chips, over drift time.

    The same command resumes an interrupted run. The re-fitted adapters are saved in the run's
    folder, each with the chip, its age and the cost of the fit.
    """
    adapters = tuple(str(folder.resolve()) for folder in folders)
    counts = split_names(examples or "")
    if examples is not None and not (counts and all(map(_is_count, counts))):
        raise RequestError(
            f"--examples is {examples!r}: give whole numbers of at least 2, such as 16,64."
        )
    with request():
        placement = given(context)["placement"]
        if placement in ("folded", "programmed"):
            raise RequestError(
                f"--placement is {placement!r}, which leaves the adapter on the devices of the "
                "chip, as they are: only a digital adapter can be recalibrated."
            )
        # The run.toml of a comparison states that there is none.
        asked = {"placement": placement, "recalibrate": counts or None}
        stated = resolve(asked, context.params["config"], {"recalibrate": (64,)})
    _study(context, adapters=adapters, recalibrate=stated.run.recalibrate or (64,))


def _is_count(text: str) -> bool:
    return text.isdecimal() and int(text) > 1


def _study(context: typer.Context, **asked: Any) -> None:
    options = context.params
    with request():
        if options["quiet"] and options["verbose"]:
            raise RequestError("--quiet and --verbose exclude each other: give one of them.")
        config = resolve(given(context) | asked, options["config"])
        check_study(config)
        from analog_grasp.study.provenance import check_new

        check_new(options["out"])
    with loading("compare"):
        from analog_grasp.cli.runs import run_study

    run_study(config, options["out"], quiet=options["quiet"], verbose=options["verbose"])


@takes("model", "task", "training", without=("adapters", *_SEVERAL), also=("seed",), **ONE_STAGE)
def train(
    context: typer.Context,
    adapter: Annotated[str, typer.Option(help="The adapter's name; see `analog-grasp adapters`.")],
    out: Annotated[
        Path | None,
        typer.Option(help="A new folder for the adapter.", show_default="runs/train/ADAPTER"),
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
    if folder.name in ("", ".."):
        # Checkpoints are in a folder beside it, which is called after it.
        folder = folder.resolve()
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


def _tuning(text: str, *flags: str, **facts: Any) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel="Tuning", **facts)


@takes(
    *("model", "task", "hardware", "training", "run"),
    without=("adapters", *_PLAN, *_SEVERAL, *TREATMENTS),
    **ONE_STAGE,
)
def tune(
    context: typer.Context,
    out: Out = Path("runs/tune"),
    config: Config = None,
    debug: Debug = False,
    adapter: Annotated[str, _tuning("The adapter; see `analog-grasp adapters`.")] = "stochgrasp",
    trials: Annotated[
        int, _tuning("Number of trials, over all processes.", min=1, metavar="<int>")
    ] = TRIALS,
    search: Annotated[
        str,
        _tuning(
            f"The settings to search: {_SEARCHED}. The given settings are tried first, then the "
            "same with noise_weight 0."
        ),
    ] = "noise_weight",
    ranges: Annotated[
        str | None,
        _tuning("Other ranges, such as noise_weight=0.01:10,groups=4:32.", show_default="as above"),
    ] = None,
    multi: Annotated[
        bool,
        _tuning(
            "Search the Pareto front of digital score and score after drift; no trial is pruned "
            "then.",
            "--multi",
        ),
    ] = False,
    held_out: Annotated[
        int | None,
        _tuning(
            "Training rows that are held out, on which trials are scored.",
            min=1,
            metavar="<int>",
            show_default="a fifth, 1,000 at most",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        _tuning(
            "URL of a database that machines share, such as postgresql://user@host/name; the "
            "study is named after the last part of --out.",
            show_default="study.sqlite in the folder",
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
        check_packages("Tuning", "tune", "optuna", "sqlalchemy")
        settings = given(context)
        check_placement(adapter, "folded")
        resolved = resolve(settings | {"adapters": (adapter,)}, config, ONE_STAGE)
        check_study(resolved)
        searched = split_names(search)
        found = parse_ranges(ranges or "")
        check_searched(search_space(searched, found), adapter)
        check_folder(out)
    with loading("tune"):
        from analog_grasp.cli.runs import tune_adapter

    tune_adapter(
        resolved, out, trials, adapter=adapter, search=searched, ranges=found, multi=multi,
        held_out=held_out, storage=storage,
    )  # fmt: skip


@takes(
    *("model", "task", "hardware"),
    without=("adapters", "devices"),
    also=("seed", "costs", "tiles"),
    model=_OTHER,
    **_COSTS,
)
def deploy(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="ADAPTER_FOLDER", help="The folder of a saved adapter.")
    ],
    device: Annotated[
        str | None,
        typer.Option(
            help="The device: a name (see `analog-grasp devices`) or a TOML file.",
            show_default="pcm-hermes-2",
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(help="The drift time since programming.", show_default="1d"),
    ] = None,
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
    write_tolerance: Annotated[
        str | None,
        typer.Option(
            help="Half width of the accepted range when weights are programmed and verified, in "
            "units of the conductance range; or learned, the standard deviations of a digital "
            "StochGRASP adapter. Prints the pulses per device; --export writes the tolerances. "
            "Requires a card with a section write, such as rram-wan2022.",
            metavar="learned|<float>",
            show_default="the card's",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of deployment.json.")] = Path("runs/deploy"),
    config: Config = None,
    debug: Debug = False,
) -> None:
    """Deploy one saved adapter on one device: its score, tiles, weight error and costs."""
    with request():
        asked: dict[str, Any] = {"adapters": (str(folder.resolve()),)}
        if device is not None:
            asked["devices"] = (device,)
        if time is not None:
            # Here, as the setting that receives it is called times.
            parse_time(time)
            asked["times"] = (time,)
        settings = resolve(given(context) | asked, config, _DEPLOYED)
        for option, stated in (("device", settings.hardware.devices), ("time", settings.run.times)):
            if len(stated) > 1:
                raise RequestError(
                    f"The config file states {len(stated)} {option}s, {', '.join(stated)}, and a "
                    f"deployment has one: give --{option}."
                )
        check_study(settings)
        if sensitivity is not None and settings.hardware.weights == "digital":
            raise RequestError("--sensitivity has no effect with weights digital: omit one.")
        tolerance = None
        if write_tolerance is not None:
            tolerance = _tolerance(write_tolerance, settings.hardware)
        if export is not None:
            check_export(export)
            if settings.hardware.placement == "programmed":
                raise RequestError(
                    "--export has no effect on an adapter whose placement is 'programmed', as only "
                    "frozen weights are exported: give digital or folded, or omit --export."
                )
        check_folder(out)
    with loading("deploy"):
        from analog_grasp.cli.runs import deploy_on

    deploy_on(
        folder, settings, sensitivity=sensitivity, write_tolerance=tolerance, export=export, out=out
    )


def _tolerance(text: str, hardware: HardwareSettings) -> float | Literal["learned"]:
    """Return the value of --write-tolerance, checked without torch."""
    tolerance: float | Literal["learned"]
    try:
        tolerance = "learned" if text == "learned" else float(text)
    except ValueError:
        tolerance = math.nan
    if tolerance != "learned" and not 0 < tolerance < math.inf:
        raise RequestError(
            f"--write-tolerance is {text!r}: give learned, or a number above 0, in units of the "
            "conductance range."
        )
    if hardware.weights == "digital":
        raise RequestError("--write-tolerance has no effect with weights digital: omit one.")
    if not hardware.programming_noise:
        raise RequestError(
            "--write-tolerance has no effect without programming noise: omit it, or "
            "--no-programming-noise."
        )
    card = hardware.card(hardware.devices[0])
    if card.write is None:
        raise RequestError(
            f"--write-tolerance has no effect on {card.name}, whose card states no "
            "program-and-verify (section write): use a card that does, such as rram-wan2022."
        )
    return tolerance


def inspect(
    folders: _Folders,
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

    Several adapters, such as those of several K, are shown side by side. A dip test shows for each
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
            help="Another folder for the report; required if that of the run is read-only.",
            show_default="the run's",
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the tables, figures and page of a run again."""
    with request():
        from analog_grasp.study.provenance import read_run

        read_run(directory)
        if out is not None:
            check_folder(out)
    with loading("report"):
        from analog_grasp.cli.runs import report_again

    report_again(directory, out)
