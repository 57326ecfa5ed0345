"""Settings of the hardware: those that are given take precedence over the mapping of a card."""

import numpy as np
import pytest

from analog_grasp import DeviceCard, load_base_model
from analog_grasp.crossbar.forward_hooks import hooks_of
from analog_grasp.devices.schema import LayerMapping
from analog_grasp.study.hardware import HardwareSettings

STATED = {"rescale": 0.5, "clip": 2.0, "calibrate": 99.0, "output_ranges": 90.0}


@pytest.fixture
def card():
    """Return a card that states a mapping."""
    mapping = LayerMapping(**STATED)
    return DeviceCard.load("pcm-hermes-2").model_copy(update={"mapping": mapping})


@pytest.fixture
def deployed(bert_folder, task):
    """Return a function that gives the calibration and weights of a model that is deployed."""

    model = load_base_model(task, bert_folder)

    def run(card, **settings):
        deployment = HardwareSettings(**settings).deploy(model, card, task)
        hooks = hooks_of(deployment.model)
        scales = {name: layer.input_scale for name, layer in deployment.layers.items()}
        targets = deployment.program(0).weights()
        tensors = [
            {name: each.tolist() for name, each in found.items() if each is not None}
            for found in (scales, targets)
        ]
        return hooks.input_ranges, hooks.output_ranges, *tensors

    return run


def test_a_study_calibrates_and_maps_as_the_card_states(deployed, card):
    found = deployed(card)
    assert all(found)
    assert found == deployed(card.without("mapping"), **STATED)


def test_settings_take_precedence(deployed, card):
    given = {"rescale": 1.0, "clip": 3.0, "calibrate": "least-error", "output_ranges": 100.0}
    assert deployed(card, **given) == deployed(card.without("mapping"), **given)
    one = deployed(card, calibrate=50.0)
    assert one == deployed(card.without("mapping"), **STATED | {"calibrate": 50.0})


def test_the_mapping_of_a_card_can_be_switched_off(card):
    assert HardwareSettings().card(card) == card
    assert HardwareSettings(mapping=False).card(card) == DeviceCard.load("pcm-hermes-2")
    assert HardwareSettings(mapping=False, adc_bits=6).card(card).mapping is None


def test_a_scaling_of_inputs_replaces_the_range_that_a_card_calibrates(deployed, card):
    settings = HardwareSettings(input_scaling="none", output_range=3.0)
    changed = settings.card(card)
    assert (changed.converters.input_scaling, changed.converters.output_range) == ("none", 3.0)
    assert changed.mapping == LayerMapping(**STATED | {"calibrate": None})
    input_ranges, *_ = deployed(changed)
    assert input_ranges == {}


@pytest.mark.parametrize("rule", [99.0, "learned"])
def test_two_rules_for_the_range_of_an_input_are_rejected(rule):
    with pytest.raises(
        ValueError, match=r"input_scaling 'abs_max' and calibrate .* are both given"
    ):
        HardwareSettings(input_scaling="abs_max", calibrate=rule)


def test_the_output_range_is_the_largest_of_the_tiles(deployed, card):
    changed = HardwareSettings(output_range=0.05).card(card)
    _, output_ranges, *_ = deployed(changed)
    assert max(np.max(each) for each in output_ranges.values()) == pytest.approx(0.05)


def test_without_layers_on_tiles_the_card_has_nothing_to_map(deployed, card):
    assert deployed(card, weights="digital") == ({}, {}, {}, {})
