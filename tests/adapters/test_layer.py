import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear

D, OUT, K = 10, 6, 4


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, OUT)


def conv1d() -> Conv1D:
    torch.manual_seed(0)
    layer = Conv1D(OUT, D)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def by_hand(layer, x, base):
    """METHOD's formula, spelled out feature by feature."""
    scale, shift = layer.means("default")
    group = [i * K // D for i in range(D)]
    modulated = torch.stack([scale[g] * x[..., i] + shift[g] for i, g in enumerate(group)], -1)
    return base(modulated)


@pytest.fixture(params=[linear, conv1d], ids=["Linear", "Conv1D"])
def base(request):
    return request.param()


def adapted(base, **settings) -> GraspLinear:
    layer = GraspLinear(base, "default", GraspConfig(groups=K, **settings))
    nn.init.normal_(layer.grasp_scale["default"], 1, 0.3)
    nn.init.normal_(layer.grasp_shift["default"], 0, 0.3)
    return layer


def stochastic(base, **settings) -> StochGraspLinear:
    layer = StochGraspLinear(base, "default", StochGraspConfig(groups=K, **settings))
    nn.init.normal_(layer.stochgrasp_scale["default"], 1, 0.3)
    nn.init.normal_(layer.stochgrasp_shift["default"], 0, 0.3)
    return layer


def test_starts_as_the_frozen_layer(base):
    x = torch.randn(3, 5, D)
    assert torch.equal(GraspLinear(base, "default", GraspConfig(groups=K))(x), base(x))


def test_modulates_by_the_formula_when_k_does_not_divide_d(base):
    x = torch.randn(3, 5, D)
    layer = adapted(base)
    torch.testing.assert_close(layer(x), by_hand(layer, x, base))


def test_strided_groups_share_every_kth_feature(base):
    layer = adapted(base, grouping="strided")
    scale, _ = layer.modulation(["default"])
    assert torch.equal(scale[:K], scale[K : 2 * K])


@pytest.mark.parametrize("bias", [True, False])
def test_merge_computes_the_same_and_unmerge_restores_every_bit(bias):
    base = nn.Linear(D, OUT, bias=bias)
    before = {k: v.clone() for k, v in base.state_dict().items()}
    layer, x = adapted(base), torch.randn(3, D)
    expected = layer(x)
    layer.merge()
    torch.testing.assert_close(base(x), expected)
    torch.testing.assert_close(layer(x), expected)
    layer.unmerge()
    after = base.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[k], before[k]) for k in before)
    torch.testing.assert_close(layer(x), expected)


def test_merge_works_on_conv1d():
    base = conv1d()
    layer, x = adapted(base), torch.randn(3, D)
    expected = layer(x)
    layer.merge(safe_merge=True)
    torch.testing.assert_close(base(x), expected)


def test_a_scale_of_zero_unmerges():
    base = linear()
    before = base.weight.clone()
    layer = adapted(base)
    layer.grasp_scale["default"].data.zero_()
    layer.merge()
    layer.unmerge()
    assert torch.equal(base.weight, before)


def test_safe_merge_refuses_what_is_not_finite():
    layer = adapted(linear())
    layer.grasp_scale["default"].data[0] = float("nan")
    with pytest.raises(ValueError, match="folded weight is not finite"):
        layer.merge(safe_merge=True)


def test_two_active_adapters_follow_each_other_and_merge_as_one():
    base = linear()
    layer, x = adapted(base), torch.randn(3, D)
    layer.update_layer("second", GraspConfig(groups=2))
    nn.init.normal_(layer.grasp_scale["second"], 1, 0.3)
    nn.init.normal_(layer.grasp_shift["second"], 0, 0.3)
    (s1, b1), (s2, b2) = layer.modulation(["default"]), layer.modulation(["second"])
    layer.set_adapter(["default", "second"])
    expected = base(s2 * (s1 * x + b1) + b2)
    torch.testing.assert_close(layer(x), expected)
    layer.merge()
    torch.testing.assert_close(base(x), expected)


def test_a_layer_that_is_not_linear_is_refused():
    with pytest.raises(ValueError, match=r"Embedding cannot be modulated.*nn.Linear"):
        GraspLinear(nn.Embedding(3, 4), "default", GraspConfig(groups=2))


def test_half_precision_input_keeps_its_type():
    layer = adapted(linear().to(torch.bfloat16))
    layer.grasp_scale.float()
    layer.grasp_shift.float()
    assert layer(torch.randn(2, D, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("sampling", ["feature", "group", "weight"])
def test_evaluation_uses_the_means_unless_told_otherwise(base, sampling):
    layer = stochastic(base, sampling=sampling).eval()
    x = torch.randn(3, 5, D)
    expected = layer(x)
    torch.testing.assert_close(expected, by_hand(layer, x, base))
    layer.sample_in_eval = True
    assert not torch.allclose(layer(x), expected)


@pytest.mark.parametrize("sampling", ["feature", "group", "weight"])
def test_sampled_outputs_have_the_exact_mean_and_variance(base, sampling):
    torch.manual_seed(3)
    layer = stochastic(base, sampling=sampling, init_sigma=0.3).train()
    draws = 40_000
    x = torch.randn(D).expand(draws, 1, D)
    with torch.no_grad():
        y = layer(x)[:, 0]
        mean = by_hand(layer, x[0, 0], base)
        weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
        sigma_scale, sigma_shift = layer.sigmas("default")
        group = layer.group_of["default"]
        if sampling == "group":
            member = torch.nn.functional.one_hot(group, K).to(weight.dtype)
            along_scale = (weight * x[0, 0]) @ member
            along_shift = weight @ member
            variance = along_scale.square() @ sigma_scale.square()
            variance += along_shift.square() @ sigma_shift.square()
        else:
            inner = (x[0, 0] * sigma_scale[group]).square() + sigma_shift[group].square()
            variance = weight.square() @ inner
    torch.testing.assert_close(y.mean(0), mean, atol=5 * (variance.max() / draws) ** 0.5, rtol=0)
    torch.testing.assert_close(y.var(0), variance, rtol=0.04, atol=0)


def test_every_example_draws_its_own_sample_and_its_tokens_share_it():
    layer = stochastic(linear(), sampling="feature").train()
    x = torch.randn(1, 1, D).expand(2, 3, D)
    with torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(y[0, 0], y[0, 2])
    assert not torch.allclose(y[0, 0], y[1, 0])


def test_spread_is_relative_to_the_largest_of_its_kind():
    layer = stochastic(linear(), init_sigma=0.1)
    for sigma, mean in zip(layer.sigmas("default"), layer.means("default"), strict=True):
        torch.testing.assert_close(sigma, torch.full((K,), 0.1) * mean.abs().max())


@pytest.mark.parametrize("sampling", ["feature", "group", "weight"])
def test_gradients_reach_means_and_spreads(sampling):
    layer = stochastic(linear(), sampling=sampling).train()
    layer(torch.randn(3, 5, D)).square().sum().backward()
    for name in layer.adapter_layer_names:
        gradient = getattr(layer, name)["default"].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_sampling_by_weight_needs_a_digital_weight():
    layer = stochastic(linear(), sampling="weight").train()
    layer.base_layer = nn.Identity()
    with pytest.raises(ValueError, match="deployed"):
        layer(torch.randn(3, D))
