"""The section of a study's settings on its devices, and on the mapping of models to them."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from analog_grasp.devices import check_name
from analog_grasp.study.fields import NUMBER, Names, Note, Section, as_layers
from analog_grasp.utils.io import place_name
from analog_grasp.utils.types import DriftCompensation, Placement, ProgrammingError

if TYPE_CHECKING:
    from torch import nn

    from analog_grasp.crossbar import Deployment
    from analog_grasp.devices.card import DeviceCard
    from analog_grasp.devices.schema import LayerMapping
    from analog_grasp.tasks import Task

_Share = Annotated[float, Field(ge=0, le=1)]
_Bits = Annotated[int, Field(ge=0, le=16)]
_CARD = Note("the card's")
_ON_TILES = (("weights", lambda weights: weights == "analog", "the weights analog"),)
_CARD_OR_OFF = Note("the card's, else off", needs=_ON_TILES)
_PROGRAMMED = Note(needs=(("placement", lambda p: p == "programmed", "the placement programmed"),))
_WITH_NOISE = Note(
    needs=(*_PROGRAMMED.needs, ("programming_noise", bool, "programming noise")),
)
# Training rows on which inputs are observed.
_CALIBRATION_ROWS = 128
# Settings that change a card.
_CARD_VALUES = {
    *("dac_bits", "adc_bits", "output_noise", "input_scaling", "output_range"),
    *("tile_size", "g_max", "die_to_die", "stuck_off", "stuck_on"),
}
# Settings that are arguments of `analog_grasp.deploy`.
_DEPLOY_ARGUMENTS = {
    *("placement", "programming_error", "drift_compensation", "clip", "first_token"),
    *("programming_noise", "drift", "read_noise"),
}


def _not_empty(layers: str | tuple[str, ...]) -> str | tuple[str, ...]:
    # The setting weights is the one that keeps every layer digital.
    if not layers:
        raise ValueError("it should have at least 1 item")
    return layers


_Layers = Annotated[str | tuple[str, ...], BeforeValidator(as_layers), AfterValidator(_not_empty)]


class HardwareSettings(Section):
    """The devices, and what is changed about their cards.

    Example:
        >>> HardwareSettings(adc_bits=6).card("pcm-hermes-2").converters.adc_bits
        6
    """

    devices: Names = Field(
        default=("pcm-nandakumar2019", "pcm-hermes-2", "rram-wan2022", "rram-cmo-falcone"),
        description="The devices: names (see `analog-grasp devices`) or your own TOML files.",
    )
    placement: Placement = Field(
        default="digital",
        description="Placement of the adapter: digital (exact, next to the chip), folded "
        "(programmed with the weights) or programmed (on analog devices of its own).",
    )
    weights: Annotated[Literal["analog", "digital"], _PROGRAMMED] = Field(
        default="analog",
        description="The frozen weights: analog (on tiles) or digital (exact), to study the noise "
        "of a programmed adapter alone.",
    )
    programming_error: Annotated[ProgrammingError, _WITH_NOISE] = Field(
        default="device",
        description="The programming error of a programmed adapter: device (the card's) or "
        "learned (the standard deviations that StochGRASP has learned).",
    )
    dac_bits: Annotated[_Bits | None, _CARD] = Field(
        default=None, description="DAC resolution in bits; 0 for exact inputs."
    )
    adc_bits: Annotated[_Bits | None, _CARD] = Field(
        default=None, description="ADC resolution in bits; 0 for exact outputs."
    )
    output_noise: Annotated[float | None, _CARD] = Field(
        default=None,
        ge=0,
        description="Standard deviation of the output noise of a bit line, in units of a full "
        "input times the largest weight.",
    )
    input_scaling: Annotated[Literal["abs_max", "none"] | None, _CARD] = Field(
        default=None,
        description="Input range of the DAC: abs_max, the largest value of each input vector, or "
        "none, 1 for all. --calibrate gives each layer a fixed range instead.",
    )
    output_range: Annotated[float | None, _CARD] = Field(
        default=None,
        gt=0,
        description="Output range of the ADC of all tiles, in units of a full input times the "
        "largest weight. --output-ranges gives each tile a smaller one.",
    )
    tile_size: Annotated[int | None, _CARD] = Field(
        default=None, ge=1, description="Rows and columns of a tile, in weights."
    )
    g_max: Annotated[float | None, _CARD] = Field(
        default=None, gt=0, description="Largest conductance, µS."
    )
    die_to_die: Annotated[_Share | None, _CARD] = Field(
        default=None,
        description="Relative die-to-die spread of the card's means and standard deviations.",
    )
    stuck_off: Annotated[_Share | None, _CARD] = Field(
        default=None, description="Share of devices stuck at the smallest conductance."
    )
    stuck_on: Annotated[_Share | None, _CARD] = Field(
        default=None, description="Share of devices stuck at the largest conductance."
    )
    drift_compensation: DriftCompensation = Field(
        default="global",
        description="Drift compensation of the tiles: global, per-column, exact or none.",
    )
    layers: Annotated[_Layers, Note(needs=_ON_TILES)] = Field(
        default="all-linear",
        description="The linear layers on tiles: endings of their names, or all-linear, to which "
        "the output layer of a language model belongs only if it is named (all-linear,lm_head).",
    )
    rescale: Annotated[_Share | None, _CARD_OR_OFF] = Field(
        default=None,
        description="Rescale the inputs and weights of each layer by its inputs on training rows "
        "(NORA): 0 evens out the weights, 1 the inputs, 0.5 both.",
    )
    clip: Annotated[
        Annotated[float, Field(gt=0)] | Literal["least-error"] | None, NUMBER, _CARD_OR_OFF
    ] = Field(
        default=None,
        description="Clip large weights as they are mapped: a number of standard deviations of "
        "their column, or least-error, which minimises the error under the card's noise after a "
        "day.",
    )
    calibrate: Annotated[
        Annotated[float, Field(gt=0, le=100)] | Literal["least-error", "learned"] | None,
        NUMBER,
        _CARD_OR_OFF,
    ] = Field(
        default=None,
        description="Fix the input range of each layer on training rows: a percentile of its "
        "inputs (100 for the largest), least-error, which minimises the error of clipping and "
        "rounding, or learned (--learn-ranges).",
    )
    output_ranges: Annotated[
        Annotated[float, Field(gt=0, le=100)] | Literal["least-error"] | None,
        NUMBER,
        Note("the card's", needs=_ON_TILES),
    ] = Field(
        default=None,
        description="Give the ADC of each tile a range of its own on training rows: a percentile "
        "of the tile's outputs, or least-error, which minimises the error of clipping and "
        "rounding. By default all tiles have the range of the card, unless its mapping states "
        "otherwise.",
    )
    first_token: Annotated[
        Literal["analog", "digital"] | None, Note("the card's, else analog", needs=_ON_TILES)
    ] = Field(
        default=None,
        description="Where a language model computes the first token of each sequence, whose "
        "activations are the largest: analog (on tiles) or digital (exact).",
    )
    mapping: bool = Field(
        default=True,
        description="Use what a card states about mapping: rescale, clip, calibrate, output_ranges "
        "and first_token, where they are not given.",
    )
    precision: Literal["exact", "fast"] = Field(
        default="exact",
        description="Arithmetic of the tiles: exact (as accurate as float32) or fast (weights "
        "rounded to 8 bits; see docs/fidelity.md).",
    )
    programming_noise: bool = Field(default=True, description="Simulate programming noise.")
    drift: bool = Field(default=True, description="Simulate conductance drift.")
    read_noise: bool = Field(default=True, description="Simulate read noise.")

    @model_validator(mode="after")
    def _one_input_range(self) -> Self:
        if None not in (self.input_scaling, self.calibrate):
            raise ValueError(
                f"The settings input_scaling {self.input_scaling!r} and calibrate "
                f"{self.calibrate!r} are both given, but the range that calibrate fixes replaces "
                "the scaling: omit one of them."
            )
        return self

    def card(self, device: str) -> "DeviceCard":
        """Return the card of a device, changed as the settings say.

        Raises:
            CardError: The device is unknown, or a change does not fit its card.
        """
        check_name(device)
        from analog_grasp.devices.card import DeviceCard

        return self.changed(DeviceCard.load(device))

    def changed(self, card: "DeviceCard") -> "DeviceCard":
        """Return a card, changed as the settings say.

        Raises:
            CardError: A change does not fit the card.
        """
        changes = self.model_dump(include=_CARD_VALUES, exclude_none=True)
        card = card if self.mapping else card.without("mapping")
        return card.with_(**changes) if changes else card

    def mapping_on(self, card: "DeviceCard") -> "LayerMapping":
        """Return the mapping of layers to a device: that of the settings, else that of its card."""
        from analog_grasp.devices.schema import LayerMapping

        given = self.model_dump(include={*LayerMapping.model_fields}, exclude_none=True)
        return (card.mapping or LayerMapping()).model_copy(update=given)

    def cards(self) -> "dict[str, DeviceCard]":
        """Return the cards of all devices by name, changed as the settings say.

        Raises:
            ValueError: A device is unknown, a change does not fit its card, or two cards have the
                same name.
        """
        cards = [self.card(device) for device in self.devices]
        named = {card.name: card for card in cards}
        places = set(map(place_name, named))
        if len(places) < len(cards):
            raise ValueError(
                f"Two of the devices {', '.join(self.devices)} have the same name: a device is "
                "called by the name in its card, which must differ by more than ':' and '-'."
            )
        return named

    def deploy_arguments(self) -> dict[str, Any]:
        """Return the arguments of `analog_grasp.deploy` except the model and the card."""
        import torch

        return self.model_dump(include=_DEPLOY_ARGUMENTS) | {
            "layers": () if self.weights == "digital" else self.layers,
            "dtype": torch.float32 if self.precision == "exact" else torch.bfloat16,
        }

    def changes(self) -> dict[str, Any]:
        """Return the settings, by name, that differ from a plain deployment on the cards."""
        columns = {"devices", "placement", "programming_error"}
        return self.model_dump(exclude_defaults=True, exclude=columns)

    def deploy(
        self, model: "nn.Module", card: "DeviceCard", task: "Task", **changes: Any
    ) -> "Deployment":
        """Deploy a model as the settings say, rescaled and calibrated on training rows of a task.

        Changes are other arguments of `analog_grasp.deploy`.
        """
        from analog_grasp.crossbar import deploy

        deployment = deploy(model, card, **self.deploy_arguments() | changes)
        self.calibrate_inputs(deployment, task)
        return deployment

    def calibrate_inputs(self, deployment: "Deployment", task: "Task", model: Any = None) -> None:
        """Rescale a deployment, and calibrate a model's ranges, on a few training rows.

        The model is one on the deployment; its own, which alone rescales it, if None.
        """
        chosen = self.mapping_on(deployment.card)
        ranges = (chosen.rescale, chosen.calibrate, chosen.output_ranges)
        if not deployment.layers or ranges == (None, None, None):
            return
        few = task.subset(train=min(_CALIBRATION_ROWS, len(task.train)))

        def observe(each: "nn.Module") -> object:
            return few.scores(each, "train")

        if chosen.rescale is not None and model in (None, deployment.model):
            deployment.rescale(observe, chosen.rescale)
        if deployment.card.converters is None:
            # Other devices of the study have ranges.
            return
        if self.calibrate == "learned":
            adapted = deployment.model if model is None else model
            deployment.set_input_ranges(getattr(adapted, "input_ranges", {}), model)
        elif chosen.calibrate is not None:
            deployment.calibrate(observe, chosen.calibrate, model)
        if chosen.output_ranges is not None:
            deployment.calibrate_outputs(observe, chosen.output_ranges, model)
