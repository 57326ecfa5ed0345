"""The options that commands share: one for each setting of a study, and a few of their own.

An option that is not given is None, so that a config file or the setting's own default supplies
it: the defaults are written down in `Settings` alone.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from analog_grasp.cli.debug import Debug as Debug
from analog_grasp.experiments import Settings
from analog_grasp.tasks import DEFAULT_MODEL

_TRAINING = "Training"
# The settings that hold several values, which the command line separates by commas.
_LISTS = ("adapters", "devices", "times", "target_modules")
# A choice of peft's, and no ending of a name.
_ALL_LAYERS = "all-linear"


def given(context: typer.Context) -> dict[str, Any]:
    """The settings among the options of a command, as `resolve` takes them."""
    settings = {name: context.params.get(name) for name in Settings.model_fields}
    for name in _LISTS:
        text = settings[name]
        if text is not None and text != _ALL_LAYERS:
            settings[name] = tuple(part.strip() for part in text.split(",") if part.strip())
    return settings


def _setting(name: str, text: str, shown: str | None = None, panel: str | None = None) -> Any:
    default = Settings.model_fields[name].default
    if isinstance(default, tuple):
        default = ",".join(default)
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=text,
        show_default=shown or str(default),
        rich_help_panel=panel,
    )


Model = Annotated[
    str | None,
    _setting("model", "The pre-trained model: a folder, or an id on the Hub.", DEFAULT_MODEL),
]
AdapterModel = Annotated[
    str | None,
    _setting(
        "model",
        "The pre-trained model: a folder, or an id on the Hub.",
        "the one that the adapter names",
    ),
]
Task = Annotated[str | None, _setting("task", "What is measured: reviews, glue/sst2, ...")]
DataDir = Annotated[
    str | None,
    _setting(
        "data_dir",
        "A folder with the task's files in their official layout, such as SST-2/train.tsv.",
        "the Hub, or built in",
    ),
]
Adapters = Annotated[
    str | None,
    _setting(
        "adapters",
        "The adapters to compare, the first being the one that the others are held against: "
        "names (see `analog-grasp adapters`) or folders of saved ones.",
    ),
]
Devices = Annotated[
    str | None,
    _setting(
        "devices", "The devices: names (see `analog-grasp devices`) or TOML files of your own."
    ),
]
Times = Annotated[str | None, _setting("times", "Drift times since programming.")]
Repeats = Annotated[int | None, _setting("repeats", "Chip instances a device.")]
Placement = Annotated[
    str | None,
    _setting(
        "placement",
        "Where the adapter lives: digital (exact, beside the chip), folded (programmed with the "
        "weights) or programmed (in analog devices of its own).",
    ),
]
Error = Annotated[
    str | None,
    _setting(
        "error",
        "What a programmed adapter misses its values by: as the device does, or by as much as its "
        "learned spreads allow.",
    ),
]
UntilCi = Annotated[
    float | None,
    _setting(
        "until_ci",
        "Draw more chip instances until the 95 % interval of every cell is at most plus or minus "
        "so many points.",
        "as many as --repeats says",
    ),
]
RepeatsLimit = Annotated[
    int | None, _setting("repeats_limit", "With --until-ci: chip instances a device at most.")
]
Seed = Annotated[
    int | None,
    _setting("seed", "Names the training and the first chip instance; the others count up."),
]
TrainingSeed = Annotated[int | None, _setting("seed", "Names the training.")]
Engine = Annotated[
    str | None,
    _setting("engine", "Where the work is done: local (this machine) or ray (a Ray cluster)."),
]
Workers = Annotated[
    int | None,
    _setting("workers", "Processes on this machine, among which its cores are divided."),
]
RayAddress = Annotated[
    str | None,
    _setting("ray_address", "With --engine ray: a cluster that runs already.", "one started here"),
]

Groups = Annotated[
    int | None, _setting("groups", "K, the scale-and-shift pairs a layer.", panel=_TRAINING)
]
TargetModules = Annotated[
    str | None,
    _setting(
        "target_modules",
        "The linear layers to adapt: endings of their names, or all-linear.",
        panel=_TRAINING,
    ),
]
Injection = Annotated[
    float | None,
    _setting(
        "injection",
        "Spread of the noise on the frozen weights, in units of the column maximum.",
        panel=_TRAINING,
    ),
]
Epochs = Annotated[
    float | None, _setting("epochs", "Passes over the training set.", panel=_TRAINING)
]
LearningRate = Annotated[
    float | None,
    _setting("learning_rate", "The peak learning rate.", "the adapter's own", _TRAINING),
]
BatchSize = Annotated[int | None, _setting("batch_size", "Examples a step.", panel=_TRAINING)]
NoiseWeight = Annotated[
    float | None,
    _setting(
        "noise_weight", "StochGRASP: weight of the noise-aware loss; 0 for none.", panel=_TRAINING
    ),
]
NoiseTarget = Annotated[
    str | None,
    _setting(
        "noise_target",
        "StochGRASP: the relative spread to learn, a number or that of a device at a time, such "
        "as pcm-hermes-2@1d.",
        panel=_TRAINING,
    ),
]
Sampling = Annotated[
    str | None,
    _setting(
        "sampling",
        "StochGRASP: what draws its own sample: each feature, group or weight.",
        panel=_TRAINING,
    ),
]

Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file of settings; those on the command line win."),
]
Out = Annotated[
    Path, typer.Option(help="The run's folder; that of an interrupted run is gone on with.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show neither progress nor tables; run.log tells each cell.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show each cell as it is measured.")]
