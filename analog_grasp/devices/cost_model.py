"""Cost models: published energy, time and area figures of hardware, in TOML files."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from analog_grasp.devices import cards_folder
from analog_grasp.devices.fields import Area, Energy, Seconds, Section, Text
from analog_grasp.utils.errors import unknown_name
from analog_grasp.utils.io import read_toml

Range = tuple[float, float, float]
"""The smallest, the stated and the largest value, in SI units."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=False)]
_Count = Annotated[int, Field(ge=1)]
_ACCELERATORS = "digital-accelerators.toml"


class Figure[T](Section):
    """A published figure, its range and its source.

    Attributes:
        value: The figure.
        low: The smallest value that the source supports; `value` if not stated.
        high: The largest one; `value` if not stated.
        basis: "measured" on hardware, or "projected" from simulation, component models or a data
            sheet.
        source: The publication.
    """

    value: T
    low: T | None = None
    high: T | None = None
    basis: Literal["measured", "projected"]
    source: Text

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        low, value, high = self.range
        if not low <= value <= high:
            raise ValueError(f"has the range {low:g} to {high:g}, which excludes {value:g}")
        return self

    @property
    def range(self) -> Range:
        """The smallest value, the value and the largest value, in SI units."""
        fields: Any = self
        low = fields.value if fields.low is None else fields.low
        high = fields.value if fields.high is None else fields.high
        return low, fields.value, high


class ColumnCosts(Section):
    """Energies and times of one column in one read, for bit-serial inputs and a stepped ADC.

    Attributes:
        input_bits: b, for 2^(b - 1) - 1 samples and integrations.
        output_bits: b, for 1 to 2^(b - 1) ADC steps.
        sample, integrate: Energies per sample: of the input drivers, and of the integration.
        adc_step: Energy per step of the ADC.
        shift_add: Energy of shifting and adding per read.
        integrate_time, adc_step_time: Times of an integration and of an ADC step.
    """

    input_bits: _Count
    output_bits: _Count
    sample: Figure[Energy]
    integrate: Figure[Energy]
    adc_step: Figure[Energy]
    shift_add: Figure[Energy]
    integrate_time: Figure[Seconds]
    adc_step_time: Figure[Seconds]


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
        dac_energy: Energy per input and read, where reads do not include "DAC".
        adc_energy: Energy per output and read, where reads do not include "ADC".
        area: The area of one tile with its converters.
    """

    rows: _Count
    columns: _Count
    tiles_per_chip: _Count | None = None
    includes: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    tops_per_watt: Figure[_Positive] | None = None
    tops: Figure[_Positive] | None = None
    read_time: Figure[Seconds] | None = None
    column: ColumnCosts | None = None
    dac_energy: Figure[Energy] | None = None
    adc_energy: Figure[Energy] | None = None
    area: Figure[Area] | None = None

    @model_validator(mode="after")
    def _stated_once(self) -> Self:
        if (self.tops_per_watt is None) == (self.column is None):
            raise ValueError("states tops_per_watt and column both or neither: state one of them")
        times = [self.read_time, self.tops, self.column]
        if sum(stated is not None for stated in times) > 1:
            raise ValueError(
                "states more than one of read_time, tops and column: state one of them"
            )
        if self.tops is not None and self.tiles_per_chip is None:
            raise ValueError("states tops without tiles_per_chip: state the tiles of that chip")
        for name, figure in (("DAC", self.dac_energy), ("ADC", self.adc_energy)):
            if figure is not None and (name in self.includes or self.column is not None):
                raise ValueError(
                    f"states {name.lower()}_energy, which its reads include already: state it once"
                )
        return self


class DigitalCosts(Section):
    """Digital arithmetic next to the tiles.

    Attributes:
        tops_per_watt: 10^12 operations per joule; a multiply-add is two operations.
        elementwise_energy: Energy of a multiply-add that is not part of a matrix product, as in
            GRASP, (IA)^3 and norms; from `tops_per_watt` if not stated.
        memory_energy: The energy of one byte read or written: key-value cache, adapter.
    """

    tops_per_watt: Figure[_Positive]
    elementwise_energy: Figure[Energy] | None = None
    memory_energy: Figure[Energy] | None = None


class ProgrammingCosts(Section):
    """Program-and-verify of devices.

    Attributes:
        devices_per_weight: Memory devices per weight.
        pulse_energy: The energy of one programming pulse.
        pulse_time: The time of one programming pulse.
        pulses_per_device: Programming pulses per device.
        parallel_devices: Devices of a tile that are programmed at the same time.
    """

    devices_per_weight: _Count
    pulse_energy: Figure[Energy] | None = None
    pulse_time: Figure[Seconds] | None = None
    pulses_per_device: Figure[_Positive] | None = None
    parallel_devices: Figure[_Positive] | None = None


class CostModel(Section):
    """The costs of one hardware; figures that its sources do not state are absent, never 0.

    Attributes:
        name: The name by which the model is selected.
        title: One line for tables.
        node: The technology node.
        tile: The tiles.
        digital: Digital arithmetic and memory next to the tiles.
        programming: Programming of the devices.

    Example:
        >>> energy = CostModel.load("hermes-1phase").read_energy()["tile reads"]
        >>> [f"{value * 1e9:.1f} nJ" for value in energy]
        ['13.4 nJ', '13.4 nJ', '13.4 nJ']
    """

    name: Annotated[str, Field(pattern=r"^[\w.-]{1,60}$")]
    title: Text
    node: Text
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
        return cls.from_data(data, f'Cost model "{path}"')

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the shipped cost models, sorted."""
        found = (path.stem for path in _folder().glob("*.toml") if path.name != _ACCELERATORS)
        return sorted(found)

    def read_energy(self) -> dict[str, Range | None]:
        """Return the energy of one read of a tile by part, J; None for what is not stated.

        The part "tile reads" includes what `TileCosts.includes` lists; what it does not list of
        DAC and ADC is a part of its own.
        """
        tile = self.tile
        if tile.column is not None:
            return self._column_energy(tile.column)
        assert tile.tops_per_watt is not None
        operations = 2 * tile.rows * tile.columns
        parts: dict[str, Range | None] = {
            "tile reads": joules_of(operations, tile.tops_per_watt.range)
        }
        for name, figure, count in (
            ("DAC", tile.dac_energy, tile.rows), ("ADC", tile.adc_energy, tile.columns),
        ):  # fmt: skip
            if name not in tile.includes:
                parts[name] = None if figure is None else times(count, figure.range)
        return parts

    def read_time(self) -> float | None:
        """Return the time of one read of a tile, s; None if no source states it."""
        tile = self.tile
        if tile.read_time is not None:
            return tile.read_time.value
        if tile.tops is not None and tile.tiles_per_chip is not None:
            return 2 * tile.rows * tile.columns * tile.tiles_per_chip / (tile.tops.value * 1e12)
        if tile.column is None:
            return None
        # All columns convert at the same time, until the one with the most steps is done.
        samples, (*_, most) = _counts(tile.column)
        return samples * tile.column.integrate_time.value + most * tile.column.adc_step_time.value

    def digital_energy(self, macs: int, elementwise: bool = False) -> Range | None:
        """Return the energy of digital multiply-adds, J; None if it is not stated and not 0."""
        if not macs:
            return 0.0, 0.0, 0.0
        if self.digital is None:
            return None
        if elementwise and self.digital.elementwise_energy is not None:
            return times(macs, self.digital.elementwise_energy.range)
        return joules_of(2 * macs, self.digital.tops_per_watt.range)

    def memory_energy(self, count: int) -> Range | None:
        """Return the energy to read or write bytes, J; None if it is not stated and not 0."""
        if not count:
            return 0.0, 0.0, 0.0
        if self.digital is None or self.digital.memory_energy is None:
            return None
        return times(count, self.digital.memory_energy.range)

    def _column_energy(self, column: ColumnCosts) -> dict[str, Range | None]:
        samples, steps = _counts(column)
        low, value, high = (n * e for n, e in zip(steps, column.adc_step.range, strict=True))
        energies: dict[str, Range | None] = {
            "tile reads": sum_of(times(samples, column.integrate.range), column.shift_add.range),
            "DAC": times(samples, column.sample.range),
            "ADC": (low, value, high),
        }
        return {part: times(self.tile.columns, e) for part, e in energies.items()}


class Accelerator(Section):
    """A digital accelerator to compare with.

    Attributes:
        title: One line for tables.
        node: The technology node.
        tops_per_watt: 10^12 int8 operations per joule.
    """

    title: Text
    node: Text
    tops_per_watt: Figure[_Positive]

    @classmethod
    def shipped(cls) -> "list[Accelerator]":
        """Return the accelerators that every table compares with.

        Example:
            >>> [each.tops_per_watt.value for each in Accelerator.shipped()][0]
            9.5
        """
        data = read_toml(_folder() / _ACCELERATORS, "The list of digital accelerators")
        return TypeAdapter(list[cls]).validate_python(data["accelerator"])  # type: ignore[valid-type]


def joules_of(operations: float, tops_per_watt: Range) -> Range:
    """Return the energy of operations, J, from a range of efficiencies, 10^12 per joule.

    Example:
        >>> joules_of(2e12, (1.0, 2.0, 4.0))
        (0.5, 1.0, 2.0)
    """
    low, value, high = tops_per_watt
    return operations / (high * 1e12), operations / (value * 1e12), operations / (low * 1e12)


def times(count: float, energy: Range | None) -> Range | None:
    """Return a range multiplied by a number; None for None."""
    if energy is None:
        return None
    low, value, high = energy
    return count * low, count * value, count * high


def sum_of(*parts: Range | None) -> Range | None:
    """Return the sum of ranges; None if one of them is None."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    low, value, high = (sum(part[i] for part in known) for i in range(3))
    return low, value, high


def _counts(column: ColumnCosts) -> tuple[int, Range]:
    """Return the samples of an input, and the smallest, mean and largest number of ADC steps."""
    most = 2 ** (column.output_bits - 1)
    return 2 ** (column.input_bits - 1) - 1, (1, (1 + most) / 2, most)


def _folder() -> Path:
    return cards_folder() / "costs"
