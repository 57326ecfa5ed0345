"""The report of a deployment."""

import torch
from torch import nn

from analog_grasp import deploy


class Attention(nn.Module):
    """A linear layer on tiles, and weights that are multiplied as parameters."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(3, 4, 4))
        self.Wq_bias_like = nn.Parameter(torch.zeros(4, 8))
        self.experts_bias = nn.Parameter(torch.zeros(2, 4))
        self.dense = nn.Linear(4, 4)


def digital(model, **settings):
    report = deploy(model, "ideal", **settings).program(0).report()
    return {module.name: (module.kind, module.weights) for module in report.digital}


def test_parameters_are_listed_by_their_own_names():
    expected = {"qkv": ("Attention", 48), "Wq_bias_like": ("Attention", 32)}
    assert digital(Attention()) == expected
    nested = nn.ModuleDict({"attention": Attention(), "embedding": nn.Embedding(5, 4)})
    expected = {f"attention.{name}": value for name, value in expected.items()}
    assert digital(nested) == {**expected, "embedding": ("Embedding", 20)}


def test_the_input_projections_of_attention_are_listed():
    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    expected = {"in_proj_weight": ("MultiheadAttention", 48)}
    assert digital(attention, layers=["out_proj"]) == expected
