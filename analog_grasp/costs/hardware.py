"""Cost models: published energy and time figures of analog hardware, one TOML file each."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from analog_grasp.devices import cards_folder
from analog_grasp.devices.fields import Section
from analog_grasp.utils.errors import describe_problem, first_problem, key_in, unknown_name
from analog_grasp.utils.io import read_toml

_QUANTITY = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?)\s*([A-Za-zµ]+)\s*")
_UNITS = {
    "energy": {"fJ": 1e-15, "pJ": 1e-12, "nJ": 1e-9, "uJ": 1e-6, "mJ": 1e-3, "J": 1.0},
    "time": {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0},
}


def _quantity(kind: str) -> BeforeValidator:
    units = _UNITS[kind]

    def read(value: object) -> float:
        match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
        if match is None or match[2] not in units:
            raise ValueError(f"is not a{'n' * (kind == 'energy')} {kind}: use {', '.join(units)}")
        return float(match[1]) * units[match[2]]

    return BeforeValidator(read)


_Energy = Annotated[float, _quantity("energy"), Field(ge=0)]
_Time = Annotated[float, _quantity("time"), Field(ge=0)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]
_Count = Annotated[int, Field(ge=1)]


class _Figure(Section):
    """A published figure, its range and its source.

    Attributes:
        value: The figure.
        low: The smallest value that the source supports; `value` if not stated.
        high: The largest one; `value` if not stated.
        basis: "measured" on hardware, or "projected" from simulation or component models.
        source: The publication.
    """

    basis: Literal["measured", "projected"]
    source: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, value, high = self.range
        if not low <= value <= high:
            raise ValueError(f"has the range {low:g} to {high:g}, which excludes {value:g}")
        return self

    @property
    def range(self) -> tuple[float, float, float]:
        """The smallest value, the value and the largest value, in SI units."""
        fields: Any = self
        low = fields.value if fields.low is None else fields.low
        high = fields.value if fields.high is None else fields.high
        return low, fields.value, high


class EnergyFigure(_Figure):
    """An energy, J."""

    value: _Energy
    low: _Energy | None = None
    high: _Energy | None = None


class TimeFigure(_Figure):
    """A time, s."""

    value: _Time
    low: _Time | None = None
    high: _Time | None = None


class NumberFigure(_Figure):
    """A figure without a unit, or in the unit that its key states."""

    value: _Positive
    low: _Positive | None = None
    high: _Positive | None = None


class ColumnCosts(Section):
    """Energies and times of one column in one read, for bit-serial inputs and a stepped ADC.

    Attributes:
        input_bits: b, for 2^(b - 1) - 1 samples and integrations.
        output_bits: b, for 1 to 2^(b - 1) ADC steps.
    """

    input_bits: _Count
    output_bits: _Count
    sample: EnergyFigure
    integrate: EnergyFigure
    adc_step: EnergyFigure
    shift_add: EnergyFigure
    integrate_time: TimeFigure
    adc_step_time: TimeFigure


class TileCosts(Section):
    """One read of a whole tile, which is charged whether the tile is full or not.

    Attributes:
        rows: Inputs of a tile.
        columns: Outputs of a tile.
        tiles_per_chip: Tiles of the chip whose throughput is `tops`.
        includes: What the energy of a read includes.
        tops_per_watt: 10^12 operations per joule; a multiply-add is two operations.
        tops: 10^12 operations per second of the whole chip.
        read_time: The time of a read, where the throughput is not stated.
        column: The costs of a column, where the efficiency is not stated.
    """

    rows: _Count
    columns: _Count
    tiles_per_chip: _Count | None = None
    includes: str
    tops_per_watt: NumberFigure | None = None
    tops: NumberFigure | None = None
    read_time: TimeFigure | None = None
    column: ColumnCosts | None = None

    @model_validator(mode="after")
    def _energy_is_stated_once(self) -> Self:
        if (self.tops_per_watt is None) == (self.column is None):
            raise ValueError("states tops_per_watt and column both or neither: state one of them")
        if self.tops is not None and self.tiles_per_chip is None:
            raise ValueError("states tops without tiles_per_chip: state the tiles of that chip")
        return self


class DigitalCosts(Section):
    """Digital arithmetic next to the tiles.

    Attributes:
        tops_per_watt: 10^12 operations per joule; a multiply-add is two operations.
        memory_energy: The energy of one byte read or written.
    """

    tops_per_watt: NumberFigure
    memory_energy: EnergyFigure | None = None


class ProgrammingCosts(Section):
    """Program-and-verify of devices.

    Attributes:
        devices_per_weight: Memory devices per weight.
        pulse_energy: The energy of one programming pulse.
        pulses_per_device: Programming pulses per device.
        device_energy: The energy to program one device, where pulses are not stated.
        device_time: The time to program one device.
    """

    devices_per_weight: _Count
    pulse_energy: EnergyFigure | None = None
    pulses_per_device: NumberFigure | None = None
    device_energy: EnergyFigure | None = None
    device_time: TimeFigure | None = None


class CostModel(Section):
    """The costs of one hardware; figures that its sources do not state are absent, never 0.

    Attributes:
        name: The name by which the model is selected.
        title: One line for tables.
        node: The technology node.

    Example:
        >>> energy = CostModel.load("hermes-1phase").read_energy()
        >>> [f"{value * 1e9:.1f} nJ" for value in energy]
        ['13.4 nJ', '13.4 nJ', '13.4 nJ']
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,60}$")]
    title: str
    node: str
    tile: TileCosts
    digital: DigitalCosts | None = None
    programming: ProgrammingCosts | None = None

    @classmethod
    def load(cls, model: "str | Path | CostModel") -> "CostModel":
        """Return a cost model by its name, the path of its TOML file, or itself.

        Raises:
            ValueError: The name is unknown, or the file is invalid.
            FileNotFoundError: The file does not exist.
        """
        if isinstance(model, CostModel):
            return model
        path = Path(model)
        if path.suffix != ".toml":
            if str(model) not in cls.names():
                raise ValueError(unknown_name("cost model", str(model), cls.names()))
            path = _folder() / f"{model}.toml"
        data = read_toml(path, f'The cost model "{path}"')
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            problem = first_problem(error)
            known = _keys(cls)
            raise ValueError(
                f'Cost model "{path}": {describe_problem(problem, key_in(data, problem), known)}.'
            ) from None

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the shipped cost models, sorted."""
        return sorted(path.stem for path in _folder().glob("*.toml"))

    def read_energy(self) -> tuple[float, float, float]:
        """Return the energy of one read of a tile, J: smallest, stated and largest."""
        tile = self.tile
        if tile.tops_per_watt is not None:
            operations = 2 * tile.rows * tile.columns
            low, value, high = tile.tops_per_watt.range
            return tuple(operations / (each * 1e12) for each in (high, value, low))  # type: ignore[return-value]
        assert tile.column is not None
        return self._column_energy(tile.column)

    def read_time(self) -> float | None:
        """Return the time of one read of a tile, s; None if no source states it."""
        tile = self.tile
        if tile.read_time is not None:
            return tile.read_time.value
        if tile.tops is not None and tile.tiles_per_chip is not None:
            return 2 * tile.rows * tile.columns * tile.tiles_per_chip / (tile.tops.value * 1e12)
        if tile.column is None:
            return None
        # All columns convert at the same time.
        samples, steps = _counts(tile.column)
        return (
            samples * tile.column.integrate_time.value + steps[1] * tile.column.adc_step_time.value
        )

    def _column_energy(self, column: ColumnCosts) -> tuple[float, float, float]:
        samples, steps = _counts(column)
        energies = [
            samples * (column.sample.range[i] + column.integrate.range[i])
            + steps[i] * column.adc_step.range[i]
            + column.shift_add.range[i]
            for i in range(3)
        ]
        low, value, high = (self.tile.columns * energy for energy in energies)
        return low, value, high


def _counts(column: ColumnCosts) -> tuple[int, tuple[int, float, int]]:
    """Return the samples of an input, and the smallest, mean and largest number of ADC steps."""
    most = 2 ** (column.output_bits - 1)
    return 2 ** (column.input_bits - 1) - 1, (1, (1 + most) / 2, most)


def _folder() -> Path:
    return cards_folder() / "costs"


def _keys(section: type[Section]) -> set[str]:
    """Return every key of a section and of the sections within it."""
    keys: set[str] = set()
    for name, info in section.model_fields.items():
        keys.add(name)
        for part in getattr(info.annotation, "__args__", (info.annotation,)):
            if isinstance(part, type) and issubclass(part, Section):
                keys |= _keys(part)
    return keys
