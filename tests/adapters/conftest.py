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
