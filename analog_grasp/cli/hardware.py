"""The options on the hardware, which several commands take."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

_PANEL = "Hardware"


def _option(flag: str, text: str, shown: str = "the card's") -> Any:
    return typer.Option(flag, help=text, show_default=shown, rich_help_panel=_PANEL)


def _off(flag: str, text: str) -> Any:
    return typer.Option(flag, help=text, show_default=False, rich_help_panel=_PANEL)


# By the names of the settings in `analog_grasp.experiments.hardware`.
_OPTIONS: dict[str, Any] = {
    "dac_bits": Annotated[int | None, _option("--dac-bits", "DAC resolution; 0 for exact.")],
    "adc_bits": Annotated[int | None, _option("--adc-bits", "ADC resolution; 0 for exact.")],
    "out_noise": Annotated[float | None, _option("--out-noise", "Output noise of a bit line.")],
    "tile_size": Annotated[int | None, _option("--tile-size", "Weights a side of a tile.")],
    "g_max": Annotated[float | None, _option("--g-max", "Largest conductance, µS.")],
    "die_to_die": Annotated[
        float | None,
        _option("--die-to-die", "Relative spread of the card's numbers from chip to chip."),
    ],
    "stuck_off": Annotated[
        float | None, _option("--stuck-off", "Share of devices stuck at the least conductance.")
    ],
    "stuck_on": Annotated[
        float | None, _option("--stuck-on", "Share of devices stuck at the largest conductance.")
    ],
    "drift_compensation": Annotated[
        str | None,
        _option("--drift-compensation", "global, per-column, exact or none.", "global"),
    ],
    "calibrate": Annotated[
        float | None,
        _option(
            "--calibrate",
            "Fix every layer's input range at this percentile of its inputs on training rows; 100 "
            "is the largest.",
            "off",
        ),
    ],
    "programming_noise": Annotated[
        bool | None, _off("--programming-noise/--no-programming-noise", "Whether devices miss.")
    ],
    "drift": Annotated[bool | None, _off("--drift/--no-drift", "Whether devices drift.")],
    "read_noise": Annotated[
        bool | None, _off("--read-noise/--no-read-noise", "Whether reads are noisy.")
    ],
}


def takes_hardware[**P](command: Callable[P, None]) -> Callable[..., None]:
    """Give a command the options on the hardware, which it finds in its context.

    The command takes the context as its first argument.
    """
    own = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        command(**{name: value for name, value in given.items() if name in own.parameters})  # type: ignore[call-arg]

    with_options.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *more]
    )
    return with_options
