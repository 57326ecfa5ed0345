"""Placement "programmed": the devices of an adapter, and how they are read."""

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from scipy import stats
from small_models import logits, move
from torch import nn

from analog_grasp import Deployment, DeviceCard, GraspConfig, StochGraspConfig, deploy
from analog_grasp.adapters.layer import GraspLinear, StochGraspLinear
from analog_grasp.crossbar.programmed_adapter import ProgrammedModulation, ProgrammedVector
from analog_grasp.devices.profile import profile as device_profile

CARDS = DeviceCard.names()


def adapted(model, config=StochGraspConfig, **settings):
    return move(get_peft_model(model, config(task_type="SEQ_CLS", groups=5, **settings)), 5, 0.2)


def modulation(layer, device, error="device", compensation="none"):
    return ProgrammedModulation(layer, "layer", DeviceCard.load(device), error, compensation)


def programmed(model, device, **settings):
    return deploy(model, DeviceCard.load(device), placement="programmed", **settings).program(0)


@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
@pytest.mark.parametrize("sampling", ["feature", "group"])
def test_an_ideal_chip_stores_the_adapter_exactly(model, batch, config, sampling):
    more = {"sampling": sampling} if config is StochGraspConfig else {}
    digital = adapted(model, config, **more)
    deployed = programmed(digital, "ideal").drift_to("1y")
    torch.testing.assert_close(
        logits(deployed.model, batch), logits(digital, batch), atol=1e-6, rtol=1e-5
    )


@pytest.mark.filterwarnings("ignore:Device card:UserWarning")
@pytest.mark.parametrize("error", ["device", "learned"])
@pytest.mark.parametrize("device", CARDS)
def test_every_card_stores_an_adapter(bert, batch, device, error):
    deployed = programmed(adapted(bert), device, programming_error=error)
    for time in ("0s", "1d", "1y"):
        assert logits(deployed.drift_to(time).model, batch).isfinite().all()


def test_the_devices_error_is_that_of_its_profile():
    card = DeviceCard.load("pcm-nandakumar2019")
    vector = ProgrammedVector(torch.full((40_000,), 0.5))
    vector.target[0] = 1.0
    vector.__post_init__()
    vector.program(card, seed=1, chip=1, compensation="none")
    vector.drift_to(86400.0)
    profile = device_profile(card, "1d")
    expected = torch.tensor([0.5])
    assert vector.value[1:].std() == pytest.approx(float(profile.std_at(expected)), rel=0.03)
    assert vector.value[1:].mean() == pytest.approx(float(profile.mean_at(expected)), rel=0.01)


def test_compensation_restores_the_mean_of_drifted_parameters():
    card = DeviceCard.load("pcm-nandakumar2019")
    means = {}
    for compensation in ("exact", "global", "none"):
        vector = ProgrammedVector(torch.full((10_000,), 1.0))
        vector.program(card, seed=1, chip=1, compensation=compensation)
        vector.drift_to(3e7)
        means[compensation] = float(vector.value.mean())
    assert means["exact"] == pytest.approx(1, abs=1e-6)
    # Relative to the devices as they are read first, of which programming changes the mean too.
    assert means["global"] == pytest.approx(1, abs=0.01)
    assert means["none"] < 0.6


def test_parameters_whose_devices_all_read_zero_are_zero():
    vector = ProgrammedVector(torch.full((10,), 0.5))
    card = DeviceCard.load("pcm-hermes-2").with_(stuck_off=1.0)
    vector.program(card, seed=1, chip=1, compensation="global")
    for seconds in (0.0, 86_400.0):
        vector.drift_to(seconds)
        assert (vector.value == 0).all()


def test_a_learned_error_is_the_learned_gaussian():
    layer = nn.Linear(30_000, 2)
    config = StochGraspConfig(groups=3, init_sigma=0.03)
    grasp = StochGraspLinear(layer, "default", config)
    with torch.no_grad():
        grasp.stochgrasp_scale["default"].copy_(torch.tensor([0.5, 1.0, 2.0]))
    module = modulation(grasp, "ideal", "learned")
    module.program(0)
    module.drift_to(0.0)
    scale = module.vectors[0].value
    for group, mean in enumerate((0.5, 1.0, 2.0)):
        part = scale[group * 10_000 : (group + 1) * 10_000]
        # Standard deviations are relative to the layer's largest scale.
        assert stats.kstest((part - mean) / 0.06, "norm").pvalue > 1e-3


def test_features_of_a_group_share_a_device_only_when_sampled_by_group():
    for sampling, different in (("group", 2), ("feature", 12)):
        grasp = StochGraspLinear(
            nn.Linear(12, 2), "default", StochGraspConfig(groups=2, sampling=sampling)
        )
        module = modulation(grasp, "gaussian")
        module.program(0)
        module.drift_to(0.0)
        used = module.vectors[0].value[module._device_of]
        assert used.unique().numel() == different


def test_zero_shifts_stay_zero():
    grasp = GraspLinear(nn.Linear(6, 2), "default", GraspConfig(groups=2))
    module = modulation(grasp, "pcm-hermes-2", compensation="global")
    module.program(0)
    module.drift_to(1e6)
    assert (module.vectors[1].value == 0).all()
    assert (module.vectors[0].value != 1).any()


def test_read_noise_is_drawn_at_every_read():
    module = modulation(GraspLinear(nn.Linear(6, 2), "default", GraspConfig(groups=2)), "ideal")
    module.program(0)
    module.drift_to(0.0)
    module.vectors[0].variance = torch.full((6,), 0.01)
    x = torch.ones(50_000, 6)
    module.base_layer = nn.Identity()
    torch.manual_seed(0)
    read = module(x)
    assert read.std(0).sub(0.1).abs().max() < 0.003
    assert (module(x) != read).any()


@pytest.mark.parametrize("sampling", ["feature", "group"])
def test_the_parameters_move_with_the_layer(sampling):
    config = StochGraspConfig(groups=2, sampling=sampling)
    module = modulation(StochGraspLinear(nn.Linear(12, 2), "default", config), "pcm-hermes-2")
    module.program(0)
    state = module.state_dict().keys()
    module.to("meta")
    assert module(torch.ones(3, 12, device="meta")).shape == (3, 2)
    assert module.state_dict().keys() == state


def test_the_same_seed_gives_the_same_bits(bert, batch):
    digital = adapted(bert)
    first = programmed(digital, "pcm-hermes-2").drift_to("1d")
    early = logits(first.model, batch)
    again = programmed(digital, "pcm-hermes-2").drift_to("1y").drift_to("1d")
    assert torch.equal(logits(again.model, batch), early)
    assert not torch.equal(logits(again.program(1).drift_to("1d").model, batch), early)


def test_an_attached_adapter_has_its_own_devices_on_the_same_chip(bert, batch, make_model):
    first, second = adapted(bert), adapted(make_model("bert"), GraspConfig)
    chip = programmed(first, "pcm-hermes-2").drift_to("1d")
    attached = chip.attach(second)
    alone = programmed(second, "pcm-hermes-2").drift_to("1d")
    assert torch.equal(logits(attached, batch), logits(alone.model, batch))


@pytest.mark.parametrize("config", [StochGraspConfig, LoraConfig])
def test_a_chip_that_was_not_programmed_is_returned_as_it_was(bert, batch, config):
    more = {"groups": 5} if config is StochGraspConfig else {"target_modules": ["query"]}
    digital = move(get_peft_model(bert, config(task_type="SEQ_CLS", **more)), 5, 0.2)
    # Tiles without converters, which add noise to every read.
    card = DeviceCard.load("pcm-hermes-2").without("converters")
    chip = deploy(digital, card, placement="programmed")
    expected = logits(chip.model, batch)
    with chip.borrowed():
        chip.program(3).drift_to("1y")
        assert not torch.equal(logits(chip.model, batch), expected)
    assert chip.seed is None
    assert torch.equal(logits(chip.model, batch), expected)


def test_lora_goes_onto_tiles_of_its_own(bert, batch):
    lora = get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", target_modules=["query"])).eval()
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    exact = programmed(lora, "ideal")
    torch.testing.assert_close(
        logits(exact.model, batch), logits(lora, batch), atol=1e-5, rtol=1e-4
    )
    noisy = programmed(lora, "pcm-hermes-2")
    only_frozen = deploy(lora, DeviceCard.load("pcm-hermes-2")).program(0)
    assert not torch.equal(logits(noisy.model, batch), logits(only_frozen.model, batch))


@pytest.mark.parametrize("rule", [100.0, "least-error"])
def test_the_matrices_of_lora_have_ranges(bert, batch, tmp_path, rule):
    lora = get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    lora = move(lora, 5, 0.2)
    card = DeviceCard.load("pcm-hermes-2").with_(input_scaling="constant")
    chip = programmed(lora, card)
    other = chip.attach(lora)
    ranges = chip.calibrate(lambda model: model(**batch), rule)
    query = "bert.encoder.layer.0.attention.self.query"
    # Both read the same inputs; those of B are the digital outputs of A.
    assert ranges[f"{query}.A"] == ranges[query]
    layer = lora.base_model.model.get_submodule(query)
    seen = []
    layer.lora_B["default"].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    logits(lora, batch)
    assert ranges[f"{query}.B"] == pytest.approx(float(seen[0].abs().max()), rel=0.1)
    outputs = chip.calibrate_outputs(lambda model: model(**batch))
    assert outputs.keys() == ranges.keys() > chip.layers.keys()
    expected = logits(chip.model, batch)
    chip.save(tmp_path)
    assert torch.equal(logits(Deployment.load(tmp_path).model, batch), expected)
    # The attached model has ranges and matrices of its own.
    own = chip.set_input_ranges({f"{query}.A": 3.0}, other).drift_to(0.0)
    logits(other, batch)
    assert other.base_model.model.get_submodule(query).lora_A["default"].input_range == 3.0
    assert torch.equal(logits(own.model, batch), expected)


def test_the_first_token_of_a_programmed_adapter_is_not_digital(bert):
    sentence = r"placement='programmed' are read for all tokens: use first_token='analog'"
    with pytest.raises(ValueError, match=sentence):
        programmed(adapted(bert), "ideal", first_token="digital")


@pytest.mark.parametrize(
    ("config", "settings", "sentence"),
    [
        (GraspConfig, {"programming_error": "learned"}, "only a StochGRASP adapter has learned"),
        (LoraConfig, {"programming_error": "learned"}, "LoRA has no learned standard deviations"),
        (None, {}, "has no GRASP, StochGRASP or LoRA adapter"),
        (AdaLoraConfig, {}, "a SVDLinear, not LoRA on a linear layer: use placement='digital'"),
    ],
)
def test_an_adapter_that_devices_cannot_store_is_an_error(bert, config, settings, sentence):
    model, more = (
        bert,
        {AdaLoraConfig: {"total_step": 10}, GraspConfig: {"groups": 2}}.get(config, {}),
    )
    if config is not None:
        model = get_peft_model(bert, config(task_type="SEQ_CLS", target_modules=["query"], **more))
    with pytest.raises(ValueError, match=sentence):
        programmed(model, "ideal", **settings)


def test_lora_on_embeddings_is_an_error(bert):
    targets = ["word_embeddings", "query"]
    model = get_peft_model(bert, LoraConfig(task_type="SEQ_CLS", target_modules=targets))
    with pytest.raises(ValueError, match=r"word_embeddings is a Embedding, not LoRA on a linear"):
        programmed(model, "ideal")


@pytest.mark.parametrize("sampling", ["weight", "token"])
def test_parameters_sampled_by_cross_point_have_no_devices(bert, sampling):
    model = get_peft_model(bert, StochGraspConfig(task_type="SEQ_CLS", groups=2, sampling=sampling))
    with pytest.raises(ValueError, match=rf"sampled by {sampling}.*placement 'folded'"):
        programmed(model, "ideal")


def test_values_to_divide_by_have_no_devices(bert):
    model = get_peft_model(bert, GraspConfig(task_type="SEQ_CLS", groups=2, form="normalize"))
    with pytest.raises(ValueError, match="the form 'normalize', which divides by values that dev"):
        programmed(model, "ideal")


def test_two_active_adapters_are_an_error():
    layer = GraspLinear(nn.Linear(6, 2), "default", GraspConfig(groups=2))
    layer.update_layer("second", GraspConfig(groups=2))
    layer.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="2 adapters are active"):
        modulation(layer, "ideal")
