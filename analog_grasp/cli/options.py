"""The options that commands share: one for each setting of a study, and a few of their own.

An option that is not given is None, so that a config file or the setting's own default supplies
it: the defaults are written down in `StudyConfig` alone.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from analog_grasp.cli.debug import Debug as Debug
from analog_grasp.study.config import StudyConfig
from analog_grasp.utils.types import DEFAULT_MODEL

_TRAINING = "Training"
_HARDWARE = "Hardware"
# The settings that hold several values, which the command line separates by commas.
_LISTS = ("adapters", "devices", "times", "target_modules")
# A choice of peft's, and no ending of a name.
_ALL_LAYERS = "all-linear"


def given(context: typer.Context) -> dict[str, Any]:
    """The settings among the options of a command, as `resolve` takes them."""
    settings = {name: context.params.get(name) for name in StudyConfig.model_fields}
    for name in _LISTS:
        text = settings[name]
        if text is not None and text != _ALL_LAYERS:
            settings[name] = tuple(part.strip() for part in text.split(",") if part.strip())
    return settings


def _setting(name: str, text: str, shown: str | None = None, panel: str | None = None) -> Any:
    default = StudyConfig.model_fields[name].default
    if isinstance(default, tuple):
        default = ",".join(default)
    return typer.Option(
        f"--{name.replace('_', '-')}",
        help=text,
        show_default=shown or str(default),
        rich_help_panel=panel,
    )


def _hardware(name: str, text: str) -> Any:
    return _setting(name, text, "the card's", _HARDWARE)


def _switch(flag: str, text: str) -> Any:
    return typer.Option(
        f"--{flag}/--no-{flag}", help=text, show_default=False, rich_help_panel=_HARDWARE
    )


def takes[**P](*groups: Mapping[str, Any]) -> Callable[[Callable[P, None]], Callable[..., None]]:
    """Give a command groups of options, which it finds in its context by `given`.

    They are listed before the command's own.
    """

    def with_groups(command: Callable[P, None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        shared = {name: kind for group in groups for name, kind in group.items()}
        given = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in shared.items()
        ]
        mine = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own.values()]
        needed = [p for p in mine if p.default is p.empty]

        @functools.wraps(command)
        def run(**options: Any) -> None:
            command(**{name: value for name, value in options.items() if name in own})  # type: ignore[call-arg]  # those that its signature names

        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # what typer reads
            [*needed, *given, *(p for p in mine if p not in needed)]
        )
        return run

    return with_groups


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
Beams = Annotated[
    int | None,
    _setting("beams", "Tasks that write text: width of the beam search.", "the task's; e2e: 10"),
]
LengthPenalty = Annotated[
    float | None,
    _setting(
        "length_penalty",
        "Tasks that write text: the power of a text's length that divides its log-likelihood.",
        "the task's; e2e: 0.9",
    ),
]
NoRepeatNgram = Annotated[
    int | None,
    _setting(
        "no_repeat_ngram",
        "Tasks that write text: n-grams of so many tokens occur once; 0 for no such rule.",
        "the task's; e2e: 4",
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
Weights = Annotated[
    str | None,
    _setting(
        "weights",
        "Where the frozen weights live: analog (on tiles), or digital (exact), so that the noise "
        "of a programmed adapter can be studied alone.",
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
    _setting(
        "workers",
        "Processes on this machine, among which its cores are divided; each has its own copy of "
        "the model.",
        "one a core, at most 4, for many cells without a GPU; else 1",
    ),
]
RayAddress = Annotated[
    str | None,
    _setting("ray_address", "With --engine ray: a cluster that runs already.", "one started here"),
]

TrustRemoteCode = Annotated[
    bool | None,
    typer.Option(
        "--trust-remote-code",
        help="Let Python code that comes with the model run; no file can say so.",
        show_default=False,
    ),
]

DATA: Mapping[str, Any] = {
    "task": Task,
    "data_dir": DataDir,
    "beams": Beams,
    "length_penalty": LengthPenalty,
    "no_repeat_ngram": NoRepeatNgram,
    "trust_remote_code": TrustRemoteCode,
}
"""What is measured, and what may run for it."""

CHIPS: Mapping[str, Any] = {
    "devices": Devices,
    "times": Times,
    "repeats": Repeats,
    "placement": Placement,
    "weights": Weights,
    "seed": Seed,
}
"""Where and when it is measured."""

RUN: Mapping[str, Any] = {
    "error": Error,
    "until_ci": UntilCi,
    "repeats_limit": RepeatsLimit,
    "engine": Engine,
    "workers": Workers,
    "ray_address": RayAddress,
}
"""How a study is carried out."""

HARDWARE: Mapping[str, Any] = {
    "dac_bits": Annotated[int | None, _hardware("dac_bits", "DAC resolution; 0 for exact.")],
    "adc_bits": Annotated[int | None, _hardware("adc_bits", "ADC resolution; 0 for exact.")],
    "out_noise": Annotated[float | None, _hardware("out_noise", "Output noise of a bit line.")],
    "tile_size": Annotated[int | None, _hardware("tile_size", "Weights a side of a tile.")],
    "g_max": Annotated[float | None, _hardware("g_max", "Largest conductance, µS.")],
    "die_to_die": Annotated[
        float | None,
        _hardware("die_to_die", "Relative spread of the card's numbers from chip to chip."),
    ],
    "stuck_off": Annotated[
        float | None, _hardware("stuck_off", "Share of devices stuck at the least conductance.")
    ],
    "stuck_on": Annotated[
        float | None, _hardware("stuck_on", "Share of devices stuck at the largest conductance.")
    ],
    "drift_compensation": Annotated[
        str | None,
        _setting("drift_compensation", "global, per-column, exact or none.", panel=_HARDWARE),
    ],
    "calibrate": Annotated[
        float | None,
        _setting(
            "calibrate",
            "Fix every layer's input range at this percentile of its inputs on training rows; 100 "
            "is the largest.",
            "off",
            _HARDWARE,
        ),
    ],
    "precision": Annotated[
        str | None,
        _setting(
            "precision",
            "What tiles compute in: exact (float32, as aihwkit's) or fast (bfloat16 or bytes, as "
            "the processor multiplies faster; docs/fidelity.md tells the error).",
            panel=_HARDWARE,
        ),
    ],
    "programming_noise": Annotated[
        bool | None, _switch("programming-noise", "Whether devices miss.")
    ],
    "drift": Annotated[bool | None, _switch("drift", "Whether devices drift.")],
    "read_noise": Annotated[bool | None, _switch("read-noise", "Whether reads are noisy.")],
}
"""What is changed beside the card; see `analog_grasp.study.hardware`."""

TRAINING: Mapping[str, Any] = {
    "groups": Annotated[
        int | None, _setting("groups", "K, the scale-and-shift pairs a layer.", panel=_TRAINING)
    ],
    "target_modules": Annotated[
        str | None,
        _setting(
            "target_modules",
            "The linear layers to adapt: endings of their names, or all-linear.",
            panel=_TRAINING,
        ),
    ],
    "injection": Annotated[
        str | None,
        _setting(
            "injection",
            "Spread of the noise on the frozen weights, in units of the column maximum; or that of "
            "a device at a time, such as pcm-hermes-2@1d.",
            panel=_TRAINING,
        ),
    ],
    "converters": Annotated[
        str | None,
        _setting(
            "converters",
            "A device whose DACs, ADCs and output noise training goes through.",
            "exact",
            _TRAINING,
        ),
    ],
    "evaluate_on": Annotated[
        str | None,
        _setting(
            "evaluate_on",
            "A device at a time, such as pcm-hermes-2@1d, on which the best of all epochs is "
            "chosen, with rows held out from the training rows.",
            "the last epoch's",
            _TRAINING,
        ),
    ],
    "epochs": Annotated[
        float | None, _setting("epochs", "Passes over the training set.", panel=_TRAINING)
    ],
    "learning_rate": Annotated[
        float | None,
        _setting("learning_rate", "The peak learning rate.", "the adapter's own", _TRAINING),
    ],
    "shift_lr_ratio": Annotated[
        float | None,
        _setting(
            "shift_lr_ratio",
            "GRASP, StochGRASP: the learning rate of the shifts, in units of that of all else.",
            panel=_TRAINING,
        ),
    ],
    "batch_size": Annotated[
        int | None, _setting("batch_size", "Examples a batch.", panel=_TRAINING)
    ],
    "gradient_accumulation_steps": Annotated[
        int | None,
        _setting("gradient_accumulation_steps", "Batches a step.", panel=_TRAINING),
    ],
    "bf16": Annotated[
        bool | None,
        typer.Option(
            "--bf16/--no-bf16",
            help="Train in mixed precision.",
            show_default=False,
            rich_help_panel=_TRAINING,
        ),
    ],
    "noise_weight": Annotated[
        float | None,
        _setting(
            "noise_weight",
            "StochGRASP: weight of the noise-aware loss; 0 for none.",
            panel=_TRAINING,
        ),
    ],
    "noise_target": Annotated[
        str | None,
        _setting(
            "noise_target",
            "StochGRASP: the relative spread to learn, a number or that of a device at a time, "
            "such as pcm-hermes-2@1d.",
            panel=_TRAINING,
        ),
    ],
    "sampling": Annotated[
        str | None,
        _setting(
            "sampling",
            "StochGRASP: what draws its own sample: each feature, group or weight.",
            panel=_TRAINING,
        ),
    ],
}
"""How adapters are trained."""

Config = Annotated[
    Path | None,
    typer.Option(help="A TOML file of settings; those on the command line win."),
]
Out = Annotated[
    Path, typer.Option(help="The run's folder; that of an interrupted run is gone on with.")
]
Quiet = Annotated[
    bool, typer.Option("--quiet", help="Show errors alone; run.log tells each cell and note.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show each cell as it is measured.")]
