import pytest
import torch

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig


@pytest.fixture(params=[GraspConfig, StochGraspConfig], ids=["grasp", "stochgrasp"])
def make_config(request):
    """A function that returns a configuration of each of the two methods, with four groups."""
    return lambda **settings: request.param(groups=4, **settings)


@pytest.fixture
def x():
    """Five inputs of twelve features."""
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def perturb():
    """Move every adapter parameter of a model away from its initial value."""

    def move(model: torch.nn.Module, std: float = 0.2, seed: int = 5) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "grasp_" in name or "bitfit_" in name:
                parameter.data.add_(std * torch.randn(parameter.shape, generator=generator))
        return model

    return move
