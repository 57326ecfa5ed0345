"""Grouping, modulation, merging and sampling of one layer."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear, group_index

D, OUT, K = 10, 6, 4


def linear(**settings) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, OUT, **settings)


def conv1d() -> Conv1D:
    torch.manual_seed(0)
    layer = Conv1D(OUT, D)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def explicit(layer, x, base):
    """Return the output by the formula of the paper, feature by feature."""
    scale, shift = layer.means("default")
    group = [i * K // D for i in range(D)]
    modulated = torch.stack([scale[g] * x[..., i] + shift[g] for i, g in enumerate(group)], -1)
    return base(modulated)


def adapted(base, **settings) -> GraspLinear:
    layer = GraspLinear(base, "default", GraspConfig(groups=K, **settings))
    return randomised(layer, "default")


def stochastic(base, **settings) -> StochGraspLinear:
    layer = StochGraspLinear(base, "default", StochGraspConfig(groups=K, **settings))
    return randomised(layer, "default")


def randomised(layer, name):
    scale, shift = (getattr(layer, kind) for kind in layer.adapter_layer_names[:2])
    nn.init.normal_(scale[name], 1, 0.3)
    if name in shift:
        nn.init.normal_(shift[name], 0, 0.3)
    return layer


@pytest.fixture(params=[linear, conv1d], ids=["Linear", "Conv1D"])
def base(request):
    return request.param()


@given(st.integers(1, 200).flatmap(lambda d: st.tuples(st.just(d), st.integers(1, d))))
@pytest.mark.parametrize("grouping", ["contiguous", "strided", "random"])
def test_every_group_is_used_and_sizes_differ_by_at_most_one(grouping, sizes):
    features, groups = sizes
    index = group_index(features, groups, grouping)
    counts = torch.bincount(index, minlength=groups)
    assert index.shape == (features,)
    assert len(counts) == groups
    assert counts.min() >= 1
    assert counts.max() - counts.min() <= 1
    assert grouping != "contiguous" or (index.diff() >= 0).all()


def test_random_groups_are_a_fixed_function_of_the_seed():
    # Saved adapters hold the seed alone, so that these values must never change.
    assert group_index(9, 4, "random").tolist() == [3, 2, 0, 1, 2, 0, 3, 1, 0]
    assert group_index(9, 4, "random", seed=1).tolist() == [2, 0, 2, 1, 0, 3, 3, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), "groups is 0; .* 8 input .* from 1 to 8"),
        ((9,), "groups is 9; .* 8 input .* from 1 to 8"),
        ((2, "blocks"), "'blocks'.*contiguous, strided, random"),
    ],
)
def test_groups_that_cannot_be_formed_raise(arguments, error):
    with pytest.raises(ValueError, match=error):
        group_index(8, *arguments)


def test_modulation_follows_the_formula_where_k_does_not_divide_d(base):
    x = torch.randn(3, 5, D)
    layer = adapted(base)
    torch.testing.assert_close(layer(x), explicit(layer, x, base))


def test_strided_groups_share_every_kth_feature(base):
    scale, _ = adapted(base, grouping="strided").modulation(["default"])
    assert torch.equal(scale[:K], scale[K : 2 * K])


def normalized(x, scale, shift, group):
    return torch.stack([(x[..., i] - shift[g]) / scale[g] for i, g in enumerate(group)], -1)


@pytest.mark.parametrize("grouping", ["contiguous", "random"])
def test_the_form_normalize_subtracts_the_shift_and_divides_by_the_scale(base, grouping):
    layer = adapted(base, form="normalize", grouping=grouping, grouping_seed=3)
    x = torch.randn(3, 5, D)
    group = group_index(D, K, grouping, 3).tolist()
    expected = base(normalized(x, *layer.means("default"), group))
    torch.testing.assert_close(layer(x), expected, atol=1e-4, rtol=1e-4)
    layer.merge(safe_merge=True)
    torch.testing.assert_close(base(x), expected, atol=1e-4, rtol=1e-4)
    layer.unmerge()
    layer.update_layer("second", GraspConfig(groups=2))
    randomised(layer, "second")
    layer.set_adapter(["default", "second"])
    scale, shift = layer.modulation(["second"])
    both = base(scale * normalized(x, *layer.means("default"), group) + shift)
    torch.testing.assert_close(layer(x), both, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sampling", ["feature", "group"])
def test_the_form_normalize_draws_the_divisor(sampling):
    torch.manual_seed(6)
    base = linear()
    nn.init.zeros_(base.bias)
    settings = {"form": "normalize", "sampling": sampling, "learn_shift": False}
    layer = stochastic(base, init_sigma=0.05, **settings).train()
    base.weight.data = torch.eye(OUT, D)
    with torch.no_grad():
        divisors = 1 / layer(torch.ones(20_000, 1, D))[:, 0]
        (scale, _), (sigma, _) = layer.means("default"), layer.sigmas("default")
    group = layer.group_of["default"][:OUT]
    torch.testing.assert_close(divisors.mean(0), scale[group], atol=2e-3, rtol=0)
    torch.testing.assert_close(divisors.std(0), sigma[group], atol=0, rtol=0.03)
    same = torch.corrcoef(divisors[:, :2].T)[0, 1]
    assert same == pytest.approx(1 if sampling == "group" else 0, abs=0.05)


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
@pytest.mark.parametrize("shape", [(0, 3, D), (3, 0, D), (0, D)])
def test_an_empty_batch_is_sampled(sampling, shape):
    layer = stochastic(linear(), sampling=sampling).train()
    y = layer(torch.zeros(shape))
    assert y.shape == (*shape[:-1], OUT)
    y.sum().backward()
    assert not any(p.grad.any() for n, p in layer.named_parameters() if "grasp" in n)


def test_without_shifts_only_scales_are_learned(base):
    layer = adapted(base, learn_shift=False)
    assert [n for n, _ in layer.named_parameters() if "grasp" in n] == ["grasp_scale.default"]
    x = torch.randn(3, D)
    scale, shift = layer.modulation(["default"])
    assert not shift.any()
    torch.testing.assert_close(layer(x), base(scale * x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-30, 3e4])
def test_unmerging_restores_every_bit_whatever_the_scale(dtype, scale):
    base = linear().to(dtype)
    before = base.weight.clone()
    layer = adapted(base)
    layer.grasp_scale["default"].data[:2] = scale
    layer.merge()
    layer.unmerge()
    assert torch.equal(base.weight, before)


def test_a_merge_holds_no_second_copy_of_the_weight():
    layer = adapted(nn.Linear(256, 256))
    layer.merge()
    held = [value for value in vars(layer._frozen).values() if isinstance(value, torch.Tensor)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert size < 0.3 * 4 * 256 * 256


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_merged_layer_can_change_its_type_before_it_is_unmerged(dtype):
    layer, x = adapted(linear()), torch.randn(3, D)
    frozen, expected = copy.deepcopy(layer.base_layer), layer(x)
    layer.merge()
    layer.to(dtype)
    layer.unmerge()
    exact = dtype == torch.float64
    tolerance = {"atol": 0.0, "rtol": 0.0} if exact else {"atol": 0.0, "rtol": 0.01}
    torch.testing.assert_close(layer.base_layer.weight, frozen.weight.to(dtype), **tolerance)
    assert torch.equal(layer.base_layer.bias, frozen.bias.to(dtype))
    torch.testing.assert_close(layer(x.to(dtype)).float(), expected, atol=0.05, rtol=0.05)


def test_a_merge_that_is_not_finite_raises_and_changes_nothing():
    layer = adapted(linear())
    layer.update_layer("broken", GraspConfig(groups=K))
    layer.grasp_scale["broken"].data[0] = float("nan")
    layer.merge()
    merged = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match="folded weight or bias is not finite"):
        layer.merge(safe_merge=True, adapter_names=["broken"])
    assert layer.merged_adapters == ["default"]
    assert torch.equal(layer.base_layer.weight, merged)


def test_a_merge_that_is_not_finite_in_the_type_of_the_weight_raises():
    half = nn.Linear(2, 2).half()
    half.weight.data.fill_(300.0)
    layer = GraspLinear(half, "default", GraspConfig(groups=1))
    layer.grasp_scale["default"].data.fill_(300.0)
    with pytest.raises(ValueError, match="folded weight or bias is not finite"):
        layer.merge(safe_merge=True)
    assert not layer.merged


@pytest.mark.parametrize("steps", [[["default", "second"]], [["default"], ["second"]]])
def test_adapters_apply_in_order_and_merge_so_in_one_step_or_two(steps):
    base = linear()
    layer, x = adapted(base), torch.randn(3, D)
    layer.update_layer("second", GraspConfig(groups=2))
    randomised(layer, "second")
    (s1, b1), (s2, b2) = layer.modulation(["default"]), layer.modulation(["second"])
    layer.set_adapter(["default", "second"])
    expected = base(s2 * (s1 * x + b1) + b2)
    torch.testing.assert_close(layer(x), expected)
    for names in steps:
        layer.merge(adapter_names=names)
    torch.testing.assert_close(base(x), expected)


class Quantised(nn.Linear):
    """A linear layer with an 8-bit weight and a scale, as in quantised models."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__(dense.in_features, dense.out_features)
        self.step = dense.weight.detach().abs().max() / 127
        codes = (dense.weight.detach() / self.step).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)

    def forward(self, x):
        return x @ (self.weight * self.step).T + self.bias


@pytest.mark.parametrize("method", ["merge", "weight", "token"])
def test_quantised_weights_are_neither_merged_nor_sampled(method):
    layer = stochastic(Quantised(linear()), sampling="feature" if method == "merge" else method)
    x = torch.randn(3, D)
    torch.testing.assert_close(layer.eval()(x), explicit(layer, x, layer.base_layer))
    codes = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match=r"dequantised?"):
        layer.merge(safe_merge=True) if method == "merge" else layer.train()(x)
    assert torch.equal(layer.base_layer.weight, codes)


def test_another_kind_of_layer_raises():
    with pytest.raises(ValueError, match=r"Embedding cannot be modulated.*nn.Linear"):
        GraspLinear(nn.Embedding(3, 4), "default", GraspConfig(groups=2))


class Scaled(nn.Linear):
    def forward(self, x, factor, *, offset=0.0):
        return factor * super().forward(x) + offset


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
def test_arguments_reach_the_base_layer(sampling):
    layer = stochastic(Scaled(D, OUT), sampling=sampling, init_sigma=1e-9).train()
    x = torch.randn(2, 3, D)
    expected = explicit(layer, x, lambda z: layer.base_layer(z, 2.0, offset=1.0))
    torch.testing.assert_close(layer(x, 2.0, offset=1.0), expected)
    torch.testing.assert_close(layer.eval()(x, 2.0, offset=1.0), expected)


@pytest.mark.parametrize("training", [True, False])
def test_a_new_layer_is_in_the_mode_of_the_layer_it_wraps(training):
    base = linear().train(training)
    x = torch.randn(2, D)
    layer = stochastic(base, init_sigma=0.5)
    assert layer.training == training
    assert torch.equal(layer(x), layer(x)) != training


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
def test_evaluation_uses_the_means_by_default(base, sampling):
    layer = stochastic(base, sampling=sampling).eval()
    x = torch.randn(3, 5, D)
    expected = layer(x)
    torch.testing.assert_close(expected, explicit(layer, x, base))
    layer.sample_in_eval = True
    assert not torch.allclose(layer(x), expected)


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
def test_sampled_outputs_have_the_exact_mean_and_variance(base, sampling):
    torch.manual_seed(3)
    layer = stochastic(base, sampling=sampling, init_sigma=0.3).train()
    draws = 40_000
    x = torch.randn(D).expand(draws, 1, D)
    with torch.no_grad():
        y = layer(x)[:, 0]
        mean = explicit(layer, x[0, 0], base)
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


@pytest.mark.parametrize(
    ("sampling", "shared"), [("feature", 1), ("group", 1), ("weight", 1), ("token", 0)]
)
def test_equal_tokens_of_an_example_share_their_errors_but_examples_do_not(sampling, shared):
    torch.manual_seed(4)
    layer = stochastic(linear(), sampling=sampling, init_sigma=0.3).train()
    x = torch.randn(D).expand(600, 2, D)
    with torch.no_grad():
        error = layer(x) - explicit(layer, x, layer.base_layer)
    for output in range(OUT):
        tokens = torch.corrcoef(error[:, :, output].T)[0, 1]
        examples = torch.corrcoef(torch.stack([error[:-1, 0, output], error[1:, 0, output]]))[0, 1]
        assert tokens == pytest.approx(shared, abs=0.2)
        assert abs(examples) < 0.2


def test_the_covariance_of_different_tokens_is_that_of_one_weight_matrix():
    torch.manual_seed(5)
    layer = stochastic(conv1d(), sampling="weight", init_sigma=0.3).train()
    x = torch.randn(2, D)
    draws = 20_000
    with torch.no_grad():
        y = layer(x.expand(draws, 2, D))
        error = y - y.mean(0)
        sigma_scale, sigma_shift = (
            sigma[layer.group_of["default"]] for sigma in layer.sigmas("default")
        )
        weight = layer.base_layer.weight.T
        products = x[0] * x[1] * sigma_scale.square() + sigma_shift.square()
        expected = weight.square() @ products
        measured = (error[:, 0] * error[:, 1]).mean(0)
    scale = (error.square().mean((0, 1)) / draws**0.5).max()
    torch.testing.assert_close(measured, expected, atol=6 * float(scale), rtol=0)


def test_standard_deviations_are_relative_to_the_largest_of_their_kind():
    layer = stochastic(linear(), init_sigma=0.1)
    for sigma, mean in zip(layer.sigmas("default"), layer.means("default"), strict=True):
        torch.testing.assert_close(sigma, torch.full((K,), 0.1) * mean.abs().max())


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
def test_gradients_reach_means_and_standard_deviations(sampling):
    layer = stochastic(linear(), sampling=sampling).train()
    layer(torch.randn(3, 5, D)).square().sum().backward()
    for name in layer.adapter_layer_names:
        gradient = getattr(layer, name)["default"].grad
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("sampling", ["feature", "group"])
def test_the_gradient_of_a_standard_deviation_is_that_of_the_mean_loss(sampling):
    # A Gaussian likelihood whose targets have the model's own variance, of 1.
    torch.manual_seed(8)
    layer = stochastic(linear(), sampling=sampling, init_sigma=0.02).train()
    examples, factor = 60_000, 3.0
    x = torch.randn(D)
    target = explicit(layer, x, layer.base_layer).detach() + torch.randn(examples, OUT)
    outputs = layer(x.expand(examples, 1, D))[:, 0]
    layer.loss_scale = factor
    (factor * (outputs - target).square().sum(1).mean() / 2).backward()
    member = torch.nn.functional.one_hot(layer.group_of["default"], K).float()
    for name, sigma, inputs in zip(
        layer.adapter_layer_names[2:], layer.sigmas("default"), (x, torch.ones(D)), strict=True
    ):
        by_input = inputs * layer.base_layer.weight
        curvature = by_input.square().sum(0) @ member
        if sampling == "group":
            curvature = (by_input @ member).square().sum(0)
        expected = factor * sigma.square() * curvature
        torch.testing.assert_close(
            getattr(layer, name)["default"].grad, expected, rtol=0.05, atol=0
        )


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
def test_flattened_tokens_have_the_samples_of_their_example(sampling):
    x, found = torch.randn(3, 5, D), []
    for flat in (False, True):
        layer = stochastic(linear(), sampling=sampling).train()
        layer.examples = 3
        y = layer(x.flatten(0, 1)).view(3, 5, OUT) if flat else layer(x)
        y.square().sum((1, 2)).mean().backward()
        found.append([y, *(getattr(layer, n)["default"].grad for n in layer.adapter_layer_names)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("size", [0.01, 8000.0])
@pytest.mark.parametrize("sampling", ["weight", "token"])
def test_the_noise_of_outputs_is_drawn_in_full_precision(sampling, size):
    layer, found = stochastic(linear(), sampling=sampling).train(), []
    layer.stochgrasp_shift_log_sigma["default"].data.fill_(-9.0)
    for mixed in (False, True):
        torch.manual_seed(0)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16, enabled=mixed):
            found.append(layer(torch.full((16000, 2, D), size)).float().std((0, 1)))
    torch.testing.assert_close(*found, rtol=0.02, atol=0)


def test_the_gradient_of_weight_samples_is_that_of_the_sampled_output():
    layer = stochastic(linear(), sampling="weight").double().train()

    def output(x, log_sigma):
        torch.manual_seed(7)
        layer.stochgrasp_scale_log_sigma["default"] = nn.Parameter(torch.empty(K))
        layer.stochgrasp_scale_log_sigma._parameters["default"] = log_sigma
        return layer(x)

    x = torch.randn(2, 3, D, dtype=torch.float64, requires_grad=True)
    log_sigma = torch.randn(K, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, log_sigma))


@pytest.mark.parametrize("sampling", ["weight", "token"])
def test_sampling_by_cross_points_requires_a_digital_weight(sampling):
    layer = stochastic(linear(), sampling=sampling).train()
    layer.base_layer = nn.Identity()
    with pytest.raises(ValueError, match="Identity has no digital weight"):
        layer(torch.randn(3, D))


def test_default_groups_are_64_or_one_per_feature():
    assert GraspLinear(nn.Linear(96, 2), "default", GraspConfig()).means("default")[0].numel() == 64
    narrow = GraspLinear(nn.Linear(8, 2), "default", GraspConfig())
    assert narrow.group_of["default"].tolist() == list(range(8))
