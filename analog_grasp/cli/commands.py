"""The commands as they are asked for: options, defaults and help.

Each hands on to the module that does its work, which is imported then: torch and peft take
seconds, for which neither the help nor a misspelt option should wait.
"""

from pathlib import Path
from typing import Annotated

import typer

from analog_grasp.cli import options
from analog_grasp.cli.console import loading
from analog_grasp.cli.options import CHIPS, DATA, HARDWARE, RUN, TRAINING, takes
from analog_grasp.tuning.search_space import RANGES, TRIALS

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


@takes(DATA, CHIPS, RUN, HARDWARE, TRAINING)
def compare(
    context: typer.Context,
    model: options.Model = None,
    adapters: options.Adapters = None,
    out: options.Out = Path("runs/compare"),
    config: options.Config = None,
    debug: options.Debug = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Compare adapters over devices and drift times, from training to report.

    Trains each adapter, measures it on simulated chips and writes tables, figures and a page.
    An interrupted run goes on where it stopped when the same command is given again.
    """
    with loading("compare"):
        from analog_grasp.cli.study import carry_out

    carry_out(options.given(context), out, config, quiet=quiet, verbose=verbose)


@takes(DATA, CHIPS, RUN, HARDWARE)
def drift(
    context: typer.Context,
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER_FOLDER...", help="Folders of saved adapters."),
    ],
    model: options.AdapterModel = None,
    out: options.Out = Path("runs/drift"),
    config: options.Config = None,
    debug: options.Debug = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
) -> None:
    """Measure saved adapters over devices and drift times; nothing is trained.

    An interrupted run goes on where it stopped when the same command is given again.
    """
    with loading("drift"):
        from analog_grasp.cli.study import carry_out

    settings = options.given(context)
    carry_out(settings, out, config, saved=folders, quiet=quiet, verbose=verbose)


@takes(DATA, TRAINING)
def train(
    context: typer.Context,
    adapter: Annotated[str, typer.Option(help="Its name; see `analog-grasp adapters`.")],
    model: options.Model = None,
    seed: options.TrainingSeed = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The adapter's folder, a new one.", show_default="runs/train/ADAPTER"),
    ] = None,
    save_steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps from one checkpoint, and one evaluation on a chip, to the next.",
            show_default="an epoch",
        ),
    ] = None,
    config: options.Config = None,
    debug: options.Debug = False,
) -> None:
    """Train one adapter into a folder that PEFT, deploy and drift can load.

    A training that was interrupted goes on from its last checkpoint when the same command is given
    again. Under `torchrun -m analog_grasp.cli` or `accelerate launch -m analog_grasp.cli` several
    processes train together.
    """
    with loading("train"):
        from analog_grasp.cli.single import train_one

    train_one(options.given(context), adapter, out, save_steps, config)


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
    with loading("tune"):
        from analog_grasp.cli.tune import tune_adapter

    tune_adapter(
        options.given(context),
        out,
        config,
        trials,
        adapter=adapter,
        search=search,
        ranges=ranges,
        multi=multi,
        held_out=held_out,
        storage=storage,
    )


@takes(DATA, HARDWARE)
def deploy(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(metavar="ADAPTER_FOLDER", help="The folder of a saved adapter.")
    ],
    device: Annotated[
        str, typer.Option(help="Its name (see `analog-grasp devices`), or a TOML file of your own.")
    ] = "pcm-hermes-2",
    time: Annotated[str, typer.Option(help="The drift time since programming.")] = "1d",
    seed: Annotated[int, typer.Option(help="The chip instance.")] = 0,
    placement: options.Placement = None,
    error: options.Error = None,
    model: options.AdapterModel = None,
    sensitivity: Annotated[
        str | None,
        typer.Option(
            help="Also the score with each layer alone on the chip (analog), or each layer alone "
            "taken off it (digital): one more measurement a layer.",
            show_default="off",
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            help="Also write the targets of every device to this file, chip.safetensors, for a "
            "real crossbar.",
            show_default="off",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of deployment.json.")] = Path("runs/deploy"),
    debug: options.Debug = False,
) -> None:
    """Deploy one saved adapter on one device: its score, the tiles and the error of the weights."""
    with loading("deploy"):
        from analog_grasp.cli.deploy import deploy_on

    asked = options.given(context) | {"devices": (device,), "times": (time,), "seed": seed}
    deploy_on(folder, asked, sensitivity=sensitivity, export=export, out=out)


def inspect(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="ADAPTER_FOLDER...", help="Folders of saved GRASP or StochGRASP adapters."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Also write inspection.csv, .md, .png, .svg and .pdf to this folder.",
            show_default="off",
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Show the scales, shifts and sigmas that adapters have learned, and if they have one mode.

    Several adapters, such as those of several K, stand side by side. A dip test says for every
    layer whether its numbers lie around one mode or several.
    """
    with loading("inspect"):
        from analog_grasp.cli.inspect import show_learned

    show_learned(folders, out)


def devices(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="The card to show: its name, or a TOML file. All are listed if left out.",
            show_default=False,
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """List the device cards, or show one with its source and its noise figures."""
    with loading("devices"):
        from analog_grasp.cli.catalogue import show_devices

    show_devices(name)


def adapters(debug: options.Debug = False) -> None:
    """List the adapters that can be trained and compared."""
    with loading("adapters"):
        from analog_grasp.cli.catalogue import show_adapters

    show_adapters()


def report(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder of a finished or interrupted run.")
    ],
    debug: options.Debug = False,
) -> None:
    """Write tables, figures and page again from what a run has measured."""
    with loading("report"):
        from analog_grasp.cli.study import report_again

    report_again(directory)
