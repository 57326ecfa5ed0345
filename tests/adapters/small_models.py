"""Small custom models that are adapted, and what the tests of several files do with them."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.training.adapter_parameters import adapter_parameters

WIDTH = 12


class Mlp(nn.Module):
    """Two linear layers, the first of which has a bias only on request."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.lin0 = nn.Linear(WIDTH, 20, bias=bias)
        self.act = nn.ReLU()
        self.lin1 = nn.Linear(20, 4)

    def forward(self, x):
        return self.lin1(self.act(self.lin0(x)))


class Conv1DMlp(nn.Module):
    """The same with the transposed linear layer of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = Conv1D(20, WIDTH)
        self.lin1 = nn.Linear(20, 4)

    def forward(self, x):
        return self.lin1(self.conv1d(x).relu())


class Deep(nn.Module):
    """A list of blocks with the same names inside, as in a transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(WIDTH, 16), "down": nn.Linear(16, WIDTH)})
            for _ in range(3)
        )
        self.out = nn.Linear(WIDTH, 4)

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["down"](layer["up"](x).relu())
        return self.out(x)


class Shared(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Linear(WIDTH, WIDTH)
        self.lin1 = nn.Linear(WIDTH, 4)

    def forward(self, x):
        return self.lin1(self.lin0(self.lin0(x).relu()))


def build(make):
    torch.manual_seed(0)
    return make().eval()


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def move(model, seed=2, std=0.3):
    """Move all trainable parameters away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            parameter.data += std * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def with_small_inputs(model, size):
    """Scale the inputs of BERT's attention outputs; the function and relative noise are as before.

    With a power of two rounding is as before too.
    """
    for name, module in model.named_modules():
        if name.endswith("self.value"):
            module.weight.data *= size
            module.bias.data *= size
        elif name.endswith("attention.output.dense"):
            module.weight.data /= size
    return model


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def bits(model):
    """Return copies of the parameters of an adapter and its head, by name."""
    return {name: p.detach().clone() for name, p in adapter_parameters(model)}


def same_bits(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
