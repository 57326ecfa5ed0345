"""Parts of fits on a chip: closed forms of a layer, and groups that are divided."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from analog_grasp import GraspConfig, StochGraspConfig, deploy
from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.training.adapter_parameters import adapter_parameters
from analog_grasp.training.fit_methods import _least_squares, _statistics, finest_groups, refine

KINDS = {"grasp": GraspConfig, "stochgrasp": StochGraspConfig}


def test_least_squares_removes_an_error_that_groups_share():
    torch.manual_seed(0)
    linear = nn.Linear(12, 20).requires_grad_(False)
    layer = GraspLinear(linear, "default", GraspConfig(groups=3))
    deployment = deploy(nn.Sequential(linear), "ideal").program(0).drift_to("0s")
    tiles = next(iter(deployment.layers.values()))
    wrong = torch.tensor([0.8, 1.2, 0.9]).repeat_interleave(4)
    for split in tiles.splits:
        split.weight.mul_(wrong[split.rows])
    layer.base_layer = tiles
    x = torch.randn(200, 12)
    with torch.no_grad():
        scale, shift = _least_squares(layer, x, 1e-6)
    # The step is linear: 1 + (1 - wrong).
    torch.testing.assert_close(scale, torch.tensor([1.2, 0.8, 1.1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(shift, torch.zeros(3), atol=1e-3, rtol=0)


def test_statistics_restore_mean_and_standard_deviation_of_each_group():
    torch.manual_seed(0)
    layer = GraspLinear(nn.Linear(6, 2), "default", GraspConfig(groups=2))
    digital, chip = torch.randn(500, 6) + 1.0, 0.5 * torch.randn(500, 6) - 2.0
    with torch.no_grad():
        scale, shift = _statistics(layer, chip, digital, 1.0)
    for k in range(2):
        group = slice(3 * k, 3 * k + 3)
        matched = scale[k] * chip[:, group] + shift[k]
        torch.testing.assert_close(matched.mean(), digital[:, group].mean())
        torch.testing.assert_close(
            matched.std(unbiased=False), digital[:, group].std(unbiased=False)
        )


def test_statistics_of_reduced_precision_are_summed_in_full():
    torch.manual_seed(0)
    layer = GraspLinear(nn.Linear(64, 2), "default", GraspConfig(groups=4))
    x = torch.randn(500, 64) + 2.0
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            found[dtype] = _statistics(layer, x.to(dtype), (1.02 * x + 0.05).to(dtype), 1.0)
    for full, reduced in zip(*found.values(), strict=True):
        torch.testing.assert_close(reduced, full, atol=5e-3, rtol=0)


@pytest.mark.parametrize("kind", ["grasp", "stochgrasp"])
@pytest.mark.parametrize("grouping", ["contiguous", "strided", "random"])
@pytest.mark.parametrize("groups", [4, 8, 28])
def test_divided_groups_compute_the_same(reader, batch, kind, grouping, groups):
    settings = {"groups": 4, "grouping": grouping, "grouping_seed": 3}
    config = KINDS[kind](task_type="SEQ_CLS", **settings)
    torch.manual_seed(0)
    model = get_peft_model(reader("bert", dropout=False), config).eval()
    for _, parameter in adapter_parameters(model):
        parameter.data += 0.1 * torch.randn(parameter.shape)
    with torch.no_grad():
        expected = model(**batch).logits
        refine(model, groups)
        assert torch.equal(model(**batch).logits, expected)
    scales = [p for name, p in adapter_parameters(model) if name.endswith("_scale.default")]
    assert {len(scale) for scale in scales} == {groups}
    assert finest_groups(model) == (32 if groups < 28 else None)


def test_groups_are_divided_as_far_as_the_narrowest_layer_allows(reader):
    def finest(config):
        model = get_peft_model(reader("bert"), config)
        groups = finest_groups(model)
        if groups:
            refine(model, groups)
        return groups

    assert finest(LoraConfig(task_type="SEQ_CLS", target_modules=["query"])) is None
    # 32 features: five groups of 7, 7, 6, 6 and 6, and a multiple of these that divides each.
    assert finest(GraspConfig(task_type="SEQ_CLS", groups=5)) % 5 == 0
    assert finest(GraspConfig(task_type="SEQ_CLS", groups=17)) is None
    # One for each feature already.
    assert finest(GraspConfig(task_type="SEQ_CLS", target_modules=["query"])) is None
