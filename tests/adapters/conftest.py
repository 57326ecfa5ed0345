import pytest
import torch


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
