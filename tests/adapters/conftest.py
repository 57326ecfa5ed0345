import pytest
import torch


@pytest.fixture
def shaken():
    """Give every trainable number of a model a value away from its start."""

    def shake(model: torch.nn.Module, std: float = 0.2, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if "grasp_" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.data.add_(std * noise)

    return shake
