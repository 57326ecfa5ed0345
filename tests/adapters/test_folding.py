"""An adapter folded into its model: the same outputs from a plain model."""

import pytest
import torch
from peft import PeftModel

from analog_grasp.adapters.frozen import fold
from analog_grasp.adapters.registry import ADAPTERS, adapt

SETTINGS = {"groups": 4, "target_modules": "all-linear", "noise_weight": 1.0, "noise_target": 0.1,
            "sampling": "feature"}  # fmt: skip


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("name", ADAPTERS)
def test_folded_it_computes_the_same(model, name, batch):
    adapted = adapt(model, name, **SETTINGS)
    generator = torch.Generator().manual_seed(3)
    for parameter in (p for p in adapted.parameters() if p.requires_grad):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    expected, names = logits(adapted, batch), set(type(model)(model.config).state_dict())
    folded = fold(adapted)
    assert not isinstance(folded, PeftModel)
    # A layer that had no bias may have one now: the folded shift.
    assert set(folded.state_dict()) >= names
    assert not any("base_layer" in n or "modules_to_save" in n for n in folded.state_dict())
    torch.testing.assert_close(logits(folded, batch), expected, atol=1e-5, rtol=1e-4)


def test_what_is_not_finite_is_not_folded(bert):
    adapted = adapt(bert, "bitfit")
    next(p for n, p in adapted.named_parameters() if "bitfit_" in n).data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        fold(adapted)
