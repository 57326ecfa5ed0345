"""The cells of a study and their seeds."""

from analog_grasp.experiments import Settings
from analog_grasp.experiments.grid import Chip, cell_count, chips, times

SETTINGS = Settings(
    adapters=("grasp",), devices=("ideal", "pcm-hermes-2"), times=("1d", "0s"), repeats=2, seed=5
)


def test_every_device_has_its_chips_with_seeds_from_the_study():
    assert chips(SETTINGS) == [
        Chip("ideal", 0, 5),
        Chip("ideal", 1, 6),
        Chip("pcm-hermes-2", 0, 5),
        Chip("pcm-hermes-2", 1, 6),
    ]


def test_a_chip_is_the_same_whatever_else_is_measured():
    wider = SETTINGS.model_copy(update={"devices": ("rram-wan2022", "ideal"), "repeats": 5})
    alone = {(c.device, c.repeat): c for c in chips(SETTINGS)}
    among = {(c.device, c.repeat): c for c in chips(wider)}
    shared = alone.keys() & among.keys()
    assert len(shared) == 2
    assert all(alone[key] == among[key] for key in shared)


def test_times_are_seconds_in_the_order_asked():
    assert list(times(SETTINGS)) == [86_400.0, 0.0]


def test_the_number_of_cells():
    assert cell_count(SETTINGS) == 1 * 2 * 2 * 2
    assert cell_count(Settings()) == len(chips(Settings())) * 5 * 2
