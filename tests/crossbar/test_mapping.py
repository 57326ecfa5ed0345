"""Which layers of a model become tiles: each weight once."""

import torch
from torch import nn

from analog_grasp.crossbar.mapping import map_layers


class Analog(nn.Module):
    def __init__(self, name, layer):
        super().__init__()
        self.name, self.held = name, (layer.weight, layer.bias)


def mapped(model, pattern="all-linear"):
    made = []

    def make(name, layer):
        made.append(Analog(name, layer))
        return made[-1]

    map_layers(model, pattern, make)
    return made


def test_a_layer_in_two_places_is_mapped_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    (analog,) = mapped(model)
    assert model[0] is model[2] is analog
    assert analog.name == "0"


def test_layers_with_tied_weights_share_their_tiles():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    # Another bias is another layer, since the bias belongs to it.
    model[2].weight = model[0].weight
    first, last = mapped(model)
    assert model[0] is model[1] is first
    assert model[2] is last
    assert torch.equal(first.held[0], last.held[0])


def test_only_the_chosen_layers_are_replaced():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    assert [analog.name for analog in mapped(model, ["1"])] == ["1"]
    assert isinstance(model[0], nn.Linear)
