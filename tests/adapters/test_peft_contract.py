"""The contract of PEFT on small custom models, for both methods.

Run this file against a new release of peft: it covers what PEFT's own generic tests ask of a
method, on models without transformers, with every way to choose layers.
"""

import copy
import math
import pickle
import warnings

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
)
from small_models import WIDTH, Conv1DMlp, Deep, Mlp, Shared, build, close, move
from torch import nn

from analog_grasp.adapters.base import AdapterLayer
from analog_grasp.adapters.config import SIGMA_RANGE, GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear

CASES = [
    pytest.param(Mlp, {"target_modules": ["lin0"]}, id="one layer"),
    pytest.param(Mlp, {"target_modules": "lin0"}, id="regular expression"),
    pytest.param(Mlp, {"target_modules": ["lin0", "lin1"]}, id="all layers"),
    pytest.param(Mlp, {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}, id="saved module"),
    pytest.param(Mlp, {"target_modules": ["lin1"], "learn_shift": False}, id="scales alone"),
    pytest.param(Mlp, {"target_modules": ["lin0"], "grouping": "strided"}, id="strided"),
    pytest.param(
        Mlp,
        {"target_modules": ["lin0"], "grouping": "random", "grouping_seed": 3, "form": "normalize"},
        id="random and normalize",
    ),
    pytest.param(lambda: Mlp(bias=False), {"target_modules": ["lin0"]}, id="no bias"),
    pytest.param(Conv1DMlp, {"target_modules": ["conv1d"]}, id="Conv1D"),
    pytest.param(Deep, {"target_modules": ["up", "down"]}, id="blocks"),
    pytest.param(
        Deep,
        {"target_modules": ["up"], "layers_to_transform": [1], "layers_pattern": "layers"},
        id="one block",
    ),
    pytest.param(Shared, {"target_modules": ["lin0"]}, id="layer called twice"),
]
pytestmark = pytest.mark.filterwarnings("ignore:.*merged model has.*biases:UserWarning")


def adapter_keys(model, name):
    return [key for key in model.state_dict() if key.endswith(f".{name}")]


@pytest.mark.parametrize(("make", "settings"), CASES)
class TestModels:
    @pytest.fixture
    def adapted(self, make, settings, make_config):
        return get_peft_model(build(make), make_config(**settings))

    def test_a_new_adapter_changes_no_output(self, make, adapted, x):
        close(adapted(x), build(make)(x), 0)

    def test_only_the_adapter_and_saved_modules_train(self, adapted, x):
        before = {name: p.clone() for name, p in adapted.named_parameters()}
        adapted.train()
        # Adam, as squared gradients of a standard deviation can be small.
        optimiser = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            adapted(x).square().sum().backward()
            optimiser.step()
        for name, parameter in adapted.named_parameters():
            learned = "grasp_" in name or "modules_to_save" in name
            assert parameter.requires_grad == learned, name
            assert torch.equal(parameter, before[name]) != learned, name

    def test_saves_and_loads(self, make, settings, adapted, x, tmp_path):
        expected = move(adapted)(x)
        adapted.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(build(make), tmp_path)
        close(loaded(x), expected, 0)
        saved = get_peft_model_state_dict(adapted)
        again = get_peft_model_state_dict(loaded)
        assert saved.keys() == again.keys()
        assert all(torch.equal(saved[key], again[key]) for key in saved)
        assert all("grasp_" in key or "lin1" in key for key in saved)

    def test_loads_without_memory_for_initial_values(self, make, adapted, x, tmp_path):
        expected = move(adapted)(x)
        adapted.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(build(make), tmp_path, low_cpu_mem_usage=True)
        assert not any(p.is_meta for p in loaded.parameters())
        close(loaded(x), expected, 0)

    @pytest.mark.parametrize("safe", [True, False])
    def test_merges_and_unmerges(self, adapted, x, safe):
        expected = move(adapted)(x)
        weights = {n: p.clone() for n, p in adapted.named_parameters() if "base_layer" in n}
        adapted.merge_adapter(safe_merge=safe)
        close(adapted(x), expected)
        adapted.unmerge_adapter()
        close(adapted(x), expected, 0)
        restored = {n: p for n, p in adapted.named_parameters() if "base_layer" in n}
        assert weights.keys() == restored.keys()
        assert all(torch.equal(weights[n], restored[n]) for n in weights)

    def test_merges_and_unloads(self, make, adapted, x):
        expected = move(adapted)(x)
        plain = adapted.merge_and_unload(safe_merge=True)
        assert type(plain) is type(build(make))
        assert not any(isinstance(m, AdapterLayer) for m in plain.modules())
        close(plain(x), expected)

    def test_a_broken_adapter_is_not_merged_safely(self, adapted):
        for name, parameter in adapted.named_parameters():
            if "grasp_scale.default" in name:
                parameter.data[0] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            adapted.merge_adapter(safe_merge=True)

    def test_unloads(self, make, adapted, x):
        plain = move(adapted).unload()
        assert not any(isinstance(m, AdapterLayer) for m in plain.modules())
        if adapted.modules_to_save is None:
            close(plain(x), build(make)(x), 0)

    @pytest.mark.parametrize("merged", [False, True])
    def test_disables(self, make, adapted, x, merged):
        expected, frozen = move(adapted)(x), build(make)(x)
        if merged:
            adapted.merge_adapter()
        with adapted.disable_adapter():
            close(adapted(x), frozen)
        close(adapted(x), expected)
        layers = [m for m in adapted.modules() if isinstance(m, AdapterLayer)]
        assert {bool(layer.merged_adapters) for layer in layers} == {merged}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, make, settings, make_config, x, dtype):
        base = build(make).to(dtype)
        adapted = move(get_peft_model(base, make_config(**settings)))
        parameters = [p for n, p in adapted.named_parameters() if "grasp_" in n]
        assert all(p.dtype == torch.float32 for p in parameters)
        expected = adapted(x.to(dtype))
        assert expected.dtype == dtype
        adapted.merge_adapter()
        close(adapted(x.to(dtype)).float(), expected.float(), 0.1)

    def test_copies_and_pickles(self, adapted, x):
        expected = move(adapted)(x)
        close(copy.deepcopy(adapted)(x), expected, 0)
        close(pickle.loads(pickle.dumps(adapted))(x), expected, 0)

    def test_several_adapters(self, settings, make_config, adapted, x, tmp_path):
        first = move(adapted)(x)
        adapted.add_adapter("other", make_config(**settings))
        close(adapted(x), first, 0)
        adapted.set_adapter("other")
        trainable = [n for n, p in adapted.named_parameters() if p.requires_grad]
        assert trainable
        assert all(".other" in name for name in trainable)
        second = move(adapted, seed=3)(x)
        assert not torch.allclose(first, second)
        adapted.save_pretrained(tmp_path, selected_adapters=["other"])
        adapted.set_adapter("default")
        close(adapted(x), first, 0)
        adapted.load_adapter(tmp_path / "other", "loaded")
        adapted.set_adapter("loaded")
        close(adapted(x), second, 0)

    def test_deletes_adapters_without_a_trace(self, settings, make_config, adapted, x):
        expected = move(adapted)(x)
        adapted.add_adapter("other", make_config(**settings))
        adapted.set_adapter("other")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adapted.delete_adapter("other")
        assert list(adapted.peft_config) == ["default"]
        assert not adapter_keys(adapted, "other")
        for layer in adapted.modules():
            if isinstance(layer, GraspLinear):
                assert not any("other" in getattr(layer, n) for n in layer.other_param_names)
                assert "other" not in str(vars(layer.group_of))
        close(adapted(x), expected, 0)

    def test_mixed_batches(self, make, settings, make_config, adapted, x):
        first, frozen = move(adapted)(x), build(make)(x)
        adapted.add_adapter("other", make_config(**settings))
        adapted.set_adapter("other")
        second = move(adapted, seed=3)(x)
        names = ["default", "other", "__base__", "default", "other"]
        mixed = adapted(x, adapter_names=names)
        by_name = {"default": first, "other": second, "__base__": frozen}
        close(mixed, torch.stack([by_name[name][row] for row, name in enumerate(names)]))


@pytest.mark.parametrize("merge", ["merge_adapter", "merge_and_unload"])
def test_merging_an_unknown_adapter_raises_and_merges_nothing(make_config, x, merge):
    adapted = move(get_peft_model(build(Mlp), make_config(target_modules=["lin0"])))
    expected = adapted(x)
    with pytest.raises(ValueError, match=r"Unknown adapter 'defualt'\. Did you mean 'default'\?"):
        getattr(adapted, merge)(adapter_names=["default", "defualt"])
    close(adapted(x), expected, 0)
    assert not adapted.base_model.model.lin0.merged


def test_all_linear_layers_are_meant_by_their_full_names(make_config, x, tmp_path):
    def nested():
        return nn.Sequential(nn.Linear(WIDTH, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 4)))

    adapted = move(get_peft_model(build(nested), make_config(target_modules="all-linear")))
    assert [name for name, _ in adapted.base_model.modulated_layers()] == ["0", "1.1"]
    adapted.save_pretrained(tmp_path)
    close(PeftModel.from_pretrained(build(nested), tmp_path)(x), adapted(x), 0)


@pytest.mark.parametrize("sampling", ["feature", "group", "weight", "token"])
def test_steps_of_training_that_are_far_too_large_stay_finite(sampling):
    # As in PEFT's test_parameters_after_loading_model, whose loss has no lower limit.
    config = StochGraspConfig(groups=4, target_modules=["lin0", "lin1"], sampling=sampling)
    adapted = get_peft_model(build(Mlp), config).train()
    optimiser = torch.optim.SGD(adapted.parameters(), lr=0.5)
    inputs = torch.arange(9.0 * WIDTH).view(9, WIDTH)
    for _ in range(3):
        optimiser.zero_grad()
        adapted(inputs).log_softmax(-1).sum().backward()
        optimiser.step()
    layer = adapted.base_model.model.lin0
    logarithms = layer.stochgrasp_scale_log_sigma["default"]
    low, high = SIGMA_RANGE
    assert all(parameter.isfinite().all() for parameter in adapted.parameters())
    assert ((logarithms < math.log(low)) | (logarithms > math.log(high))).any()
    sigma = layer.relative_sigmas("default")[0]
    assert sigma.min() > 0
    assert sigma.max() <= high * (1 + 1e-6)
    logarithms.grad = None
    sigma.log().sum().backward()
    close(logarithms.grad, torch.ones(4))


class Bypassed(nn.Module):
    """A layer that is called, one whose weight is read, as Mamba does, and one without use."""

    def __init__(self) -> None:
        super().__init__()
        self.called = nn.Linear(WIDTH, WIDTH)
        self.read = nn.Linear(WIDTH, 4)
        self.unused = nn.Linear(WIDTH, 4)

    def forward(self, x):
        y = self.called(x.to(self.called.weight.dtype))
        return y @ self.read.weight.T + self.read.bias


def test_layers_whose_weights_are_read_instead_of_called_are_warned_of(make_config, x):
    adapted = get_peft_model(build(Bypassed), make_config(target_modules=["called", "read"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted(x)
    with pytest.warns(UserWarning, match="weights of 1 adapted layers.* such as read: their"):
        adapted.train()(x).sum().backward()
    others = get_peft_model(build(Bypassed), make_config(target_modules=["called", "unused"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapted(x)
        others.train()(x)


@pytest.mark.parametrize("first", [GraspConfig, StochGraspConfig])
def test_two_methods_on_the_same_layers_raise(first):
    second = StochGraspConfig if first is GraspConfig else GraspConfig
    settings = {"groups": 4, "target_modules": ["lin0"]}
    model = inject_adapter_in_model(first(**settings), build(Mlp))
    with pytest.raises(ValueError, match=r"lin0 is a .*GraspLinear already"):
        inject_adapter_in_model(second(**settings), model)


def test_a_layer_above_an_unmerged_one_of_another_method_is_not_merged(x):
    model = inject_adapter_in_model(LoraConfig(target_modules=["lin0"]), build(Mlp))
    model = inject_adapter_in_model(GraspConfig(groups=4, target_modules=["lin0"]), model, "grasp")
    model.lin0.base_layer.lora_B["default"].weight.data.normal_()
    model.lin0.grasp_scale["grasp"].data.normal_()
    with pytest.raises(ValueError, match="Linear below a GraspLinear is not merged"):
        model.lin0.merge(adapter_names=["grasp"])
    expected = model(x)
    model.lin0.base_layer.merge()
    model.lin0.merge(adapter_names=["grasp"])
    close(model(x), expected)


class Encoder(nn.Module):
    """A transformer layer of torch, whose attention reads the weight of its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 20, batch_first=True)

    def forward(self, x):
        return self.layer(x[:, None])


def test_the_projection_inside_multihead_attention_is_not_adapted(make_config, x, tmp_path):
    adapted = get_peft_model(build(Encoder), make_config(target_modules="all-linear"))
    names = [name for name, _ in adapted.base_model.modulated_layers()]
    assert names == ["layer.linear1", "layer.linear2"]
    with torch.no_grad():
        expected = move(adapted)(x)
        assert not torch.allclose(expected, build(Encoder)(x))
        adapted.save_pretrained(tmp_path)
        close(PeftModel.from_pretrained(build(Encoder), tmp_path)(x), expected, 0)
        adapted.merge_adapter()
        close(adapted(x), expected)
    with pytest.raises(ValueError, match=r"out_proj cannot be adapted: nn\.MultiheadAttention"):
        get_peft_model(build(Encoder), make_config(target_modules=["out_proj"]))


@pytest.mark.parametrize("sampling", ["feature", "weight", "token"])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_layers_of_bitsandbytes(bits, sampling):
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    dense = nn.Linear(64, 64)
    if bits == 8:
        layer = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(64, 64, quant_type="nf4")
    layer.load_state_dict(dense.state_dict())
    config = StochGraspConfig(groups=4, target_modules=["0"], sampling=sampling, init_sigma=0.1)
    adapted = get_peft_model(nn.Sequential(layer.to("cpu")), config).eval()
    x = torch.randn(50, 5, 64)
    close(adapted(x), dense(x), 0.3)
    sampled = adapted.train()(x)
    sampled.sum().backward()
    error = (sampled - adapted.eval()(x)).square().mean() / dense(x).var()
    assert error.item() == pytest.approx(0.1**2, rel=0.2)
    with pytest.raises(ValueError, match="quantised weights of a Linear"):
        adapted.merge_adapter()
