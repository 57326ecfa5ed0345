"""What a study changes about the hardware: the settings beside the device cards.

torch and the cards are imported where they are used: a command tells its options without them.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from analog_grasp.utils.types import DriftCompensation

if TYPE_CHECKING:
    from analog_grasp.crossbar import Deployment
    from analog_grasp.devices.card import DeviceCard
    from analog_grasp.tasks import Task

# Sentences that input ranges are calibrated on.
_CALIBRATION_ROWS = 128

_Share = Annotated[float, Field(ge=0, le=1)]


class Hardware(BaseModel):
    """Settings that change a card or switch an effect off; what is None is as the card has it.

    Example:
        >>> Hardware(adc_bits=6).card("pcm-hermes-2").converters.adc_bits
        6
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    dac_bits: Annotated[int, Field(ge=0, le=16)] | None = None
    """Resolution of the inputs; 0 for exact ones."""
    adc_bits: Annotated[int, Field(ge=0, le=16)] | None = None
    """Resolution of the outputs; 0 for exact ones."""
    out_noise: Annotated[float, Field(ge=0)] | None = None
    """Standard deviation of the output noise, in units of full input times largest weight."""
    tile_size: Annotated[int, Field(ge=1)] | None = None
    """Weights a side of a tile."""
    g_max: Annotated[float, Field(gt=0)] | None = None
    """The largest conductance, µS."""
    die_to_die: _Share | None = None
    """Relative spread from chip to chip of the card's means and spreads."""
    stuck_off: _Share | None = None
    """Share of the devices stuck at g_min."""
    stuck_on: _Share | None = None
    """Share of the devices stuck at g_max."""
    programming_noise: bool = True
    drift: bool = True
    read_noise: bool = True
    drift_compensation: DriftCompensation = "global"
    calibrate: Annotated[float, Field(gt=0, le=100)] | None = None
    """Fix the DAC's range of every layer at this percentile of its inputs; 100 is the largest."""
    precision: Literal["exact", "fast"] = "exact"
    """Whether tiles compute in float32, as aihwkit's do, or in bfloat16 or bytes; see
    `analog_grasp.kernels.matmul`."""

    def card(self, name: str) -> "DeviceCard":
        """The card of a device, changed as the settings say.

        Raises:
            CardError: There is no such card, or a change does not fit it.
        """
        from analog_grasp.devices.card import DeviceCard

        names = {"out_noise": "output_noise"}
        fields = ("dac_bits", "adc_bits", "out_noise", "tile_size", "g_max")
        faults = ("die_to_die", "stuck_off", "stuck_on")
        values: dict[str, Any] = {
            names.get(field, field): getattr(self, field) for field in (*fields, *faults)
        }
        changes = {field: value for field, value in values.items() if value is not None}
        card = DeviceCard.load(name)
        return card.with_(**changes) if changes else card

    def switches(self) -> dict[str, Any]:
        """The arguments of `analog_grasp.deploy` that the settings give."""
        import torch

        names = ("programming_noise", "drift", "read_noise", "drift_compensation")
        dtype = torch.float32 if self.precision == "exact" else torch.bfloat16
        return {name: getattr(self, name) for name in names} | {"dtype": dtype}

    def hardware(self) -> dict[str, Any]:
        """What is changed about the hardware, by the names of the settings."""
        fields = Hardware.model_fields
        changed = {name: getattr(self, name) for name in fields}
        return {name: v for name, v in changed.items() if v != fields[name].default}

    def calibrated(self, deployment: "Deployment", task: "Task", model: Any = None) -> None:
        """Calibrate a deployed model's input ranges on training rows, where that is asked."""
        if self.calibrate is not None:
            few = task.subset(train=min(_CALIBRATION_ROWS, len(task.train)))
            deployment.calibrate(lambda each: few.scores(each, "train"), self.calibrate, model)
