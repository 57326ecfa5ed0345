"""Deployment: placements, effects, drift times, shared chips, reports."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from small_models import logits, move
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from analog_grasp import Deployment, DeviceCard, GraspConfig, StochGraspConfig, deploy
from analog_grasp.adapters.frozen import frozen_layers
from analog_grasp.crossbar.chip_layer import computed_digitally
from analog_grasp.crossbar.linear import CrossbarLinear

PCM, RRAM = "pcm-nandakumar2019", "rram-wan2022"


def adapted(model, config=GraspConfig, seed=5):
    """Return the model with an adapter whose parameters are not at the identity."""
    return move(get_peft_model(model, config(task_type="SEQ_CLS", groups=5)), seed, 0.2)


def on(model, device=PCM, seed=0, **settings):
    return deploy(model, device, **settings).program(seed)


@pytest.mark.parametrize("tile", ["torch", "rpucuda"])
@pytest.mark.parametrize("placement", ["digital", "folded"])
@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
def test_ideal_deployment_equals_the_digital_model(model, batch, placement, tile, config):
    digital = adapted(model, config)
    deployed = on(digital, "ideal", placement=placement, tile=tile)
    for time in ("0s", "1y"):
        deployed.drift_to(time)
        torch.testing.assert_close(
            logits(deployed.model, batch), logits(digital, batch), atol=1e-6, rtol=1e-5
        )


def test_the_callers_model_stays_digital_and_as_it_was(bert, batch):
    digital = adapted(bert)
    weights = {name: p.clone() for name, p in digital.named_parameters()}
    trained = [name for name, p in digital.named_parameters() if p.requires_grad]
    on(digital).drift_to("1d")
    assert not any(isinstance(m, CrossbarLinear) for m in digital.modules())
    assert all(torch.equal(p, weights[name]) for name, p in digital.named_parameters())
    assert [name for name, p in digital.named_parameters() if p.requires_grad] == trained


def test_adapter_embeddings_norms_and_head_stay_digital(model):
    digital = adapted(model)
    deployed = on(digital).model
    analog = [n for n, m in deployed.named_modules() if isinstance(m, CrossbarLinear)]
    assert analog == [path for path, _ in frozen_layers(digital)]
    kept = {n for n, _ in deployed.named_parameters()}
    assert {n for n, p in digital.named_parameters() if "grasp_" in n or "modules_to" in n} <= kept


def test_layers_are_chosen_by_pattern(bert):
    deployed = on(bert, layers=["query", "value"])
    assert [report.name.rpartition(".")[2] for report in deployed.report()] == [
        "query",
        "value",
    ] * 2


@pytest.mark.parametrize("device", [PCM, RRAM, "rram-cmo-falcone"])
def test_the_same_seed_gives_the_same_bits_in_any_order(bert, batch, device):
    there, elsewhere = on(bert, device, seed=3), on(bert, device, seed=8)
    early = logits(there.drift_to("1h").model, batch)
    late = logits(there.drift_to("1d").model, batch)
    torch.manual_seed(99)
    elsewhere.program(3)
    assert torch.equal(logits(elsewhere.drift_to("1d").model, batch), late)
    assert torch.equal(logits(elsewhere.drift_to("1h").model, batch), early)
    elsewhere.program(4)
    assert not torch.equal(logits(elsewhere.drift_to("1h").model, batch), early)


def test_the_callers_random_state_does_not_change(bert, batch):
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    logits(on(bert).drift_to("1d").model, batch)
    assert torch.equal(torch.randn(3), expected)


def test_the_random_state_is_restored_after_a_pass_that_fails(bert, batch):
    deployed = on(bert)
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    with pytest.raises(ValueError, match="too many values to unpack"):
        deployed.model(input_ids=torch.zeros(2, 2, 2, 2, dtype=torch.long))
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(
    ("device", "time", "switch"),
    [
        (PCM, "0s", "programming_noise"),
        (PCM, "1y", "drift"),
        (PCM, "0s", "read_noise"),
        (PCM, "0s", "converters"),
        (RRAM, "1d", "drift"),
    ],
)
def test_each_effect_can_be_switched_off(bert, batch, device, time, switch):
    every = ("programming_noise", "drift", "read_noise", "converters")
    off = dict.fromkeys(every, False)
    silent = logits(on(bert, device, **off).drift_to(time).model, batch)
    alone = logits(on(bert, device, **off | {switch: True}).drift_to(time).model, batch)
    torch.testing.assert_close(silent, logits(bert, batch), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(alone, silent, atol=1e-6)


def test_global_drift_compensation_restores_the_outputs(bert):
    quiet = {"programming_noise": False, "read_noise": False, "converters": False}
    layer, x = "bert.encoder.layer.0.intermediate.dense", torch.randn(64, 32)
    digital = bert.get_submodule(layer)

    @torch.no_grad()
    def gain(compensation: str) -> float:
        drifted = on(bert, drift_compensation=compensation, **quiet).drift_to("1y")
        y = drifted.model.get_submodule(layer)(x) - digital.bias
        target = digital(x) - digital.bias
        return float((y * target).sum() / target.square().sum())

    # A year at nu = 0.049 and above: a factor of at most (1y / 20 s)^-0.049, about one half.
    assert gain("none") < 0.55
    assert gain("global") == pytest.approx(1, abs=0.02)


def test_an_attached_adapter_computes_on_the_same_chip(bert, batch):
    first, second = adapted(copy.deepcopy(bert), seed=1), adapted(copy.deepcopy(bert), seed=2)
    shared = on(first)
    attached = shared.attach(second)
    alone = on(second).drift_to("1d")
    logits(shared.drift_to("1d").model, batch)
    assert torch.equal(logits(attached, batch), logits(alone.model, batch))


def test_a_model_with_other_frozen_weights_cannot_share_a_chip(bert, make_model):
    shared = on(adapted(bert))
    with pytest.raises(ValueError, match="has other frozen weights"):
        shared.attach(adapted(make_model("bert", seed=1)))


def test_automatic_mixed_precision_does_not_change_tiles():
    layer = CrossbarLinear(torch.nn.Linear(40, 30), DeviceCard.load(PCM), "layer")
    layer.program(0)
    x = torch.randn(7, 40)
    for rows in (x, x.clone().requires_grad_()):
        torch.manual_seed(1)
        expected = layer(rows)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(rows), expected)


def test_shared_layers_are_mapped_once(batch):
    tiny = AlbertConfig(
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=50,
    )
    albert = AlbertForSequenceClassification(tiny).eval()
    deployed = on(albert, "ideal")
    assert len(deployed.report()) == len(list(frozen_layers(albert)))
    torch.testing.assert_close(logits(deployed.model, batch), logits(albert, batch))


def test_large_layers_are_split_to_the_tile(make_model):
    config = make_model("bert").config
    config.hidden_size, config.intermediate_size = 300, 600
    wide = type(make_model("bert"))(config)
    deployed = deploy(wide, DeviceCard.load("pcm-hermes-2"))
    report = {r.name: r for r in deployed.report()}["bert.encoder.layer.0.intermediate.dense"]
    assert (report.tiles, report.cells) == (2 * 3, 300 * 600)
    assert report.use == pytest.approx(300 * 600 / (6 * 256 * 256))


def test_weight_error_grows_from_programming_to_drift(bert):
    deployed = deploy(bert, DeviceCard.load(PCM), drift_compensation="none")
    assert all(r.weight_error == 0 for r in deployed.report())
    programmed = [r.weight_error for r in deployed.program(0).report()]
    aged = [r.weight_error for r in deployed.drift_to("1y").report()]
    assert all(0 < p < a for p, a in zip(programmed, aged, strict=True))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"placement": "analog"}, "placement 'analog'.*digital, folded, programmed"),
        ({"tile": "cuda"}, "tile 'cuda'.*torch, rpucuda"),
        ({"drift_compensation": "local"}, "drift_compensation 'local'.*global, per-column"),
        (
            {"placement": "programmed", "programming_error": "none"},
            "programming_error 'none'.*device, learned",
        ),
    ],
)
def test_an_unknown_choice_is_an_error(bert, settings, sentence):
    with pytest.raises(ValueError, match=f"Unknown {sentence}"):
        deploy(adapted(bert), "ideal", **settings)


@pytest.mark.parametrize("placement", ["digital", "folded"])
def test_learned_programming_errors_need_a_programmed_adapter(bert, placement):
    sentence = f"'learned', which has no effect with placement='{placement}'"
    with pytest.raises(ValueError, match=sentence):
        deploy(
            adapted(bert, StochGraspConfig),
            "ideal",
            placement=placement,
            programming_error="learned",
        )


def test_a_device_is_a_name_a_path_or_a_card(bert, batch, tmp_path):
    source = (Path(__file__).parents[2] / "device_models" / f"{PCM}.toml").read_text()
    (tmp_path / "mine.toml").write_text(source)
    by_name, by_path, by_card = (
        logits(deploy(bert, device).program(1).model, batch)
        for device in (PCM, tmp_path / "mine.toml", DeviceCard.load(PCM))
    )
    assert torch.equal(by_name, by_card)
    assert torch.equal(by_name, by_path)


@pytest.mark.parametrize("tile", ["torch", "rpucuda"])
def test_weights_are_those_that_the_outputs_show(bert, tile):
    name = "bert.encoder.layer.0.intermediate.dense"
    quiet = {"read_noise": False, "converters": False, "tile": tile}
    deployed = on(bert, **quiet).drift_to("1d")
    weights = deployed.weights()
    assert weights.keys() == deployed.layers.keys()
    layer = deployed.layers[name]
    with torch.no_grad():
        shown = (layer(torch.eye(32)) - layer(torch.zeros(1, 32))).T
    torch.testing.assert_close(weights[name], shown, rtol=1e-4, atol=1e-5)
    frozen = bert.get_submodule(name).weight
    assert not torch.allclose(weights[name], frozen, rtol=1e-2)
    assert torch.corrcoef(torch.stack([weights[name], frozen]).flatten(1))[0, 1] > 0.9


@pytest.mark.parametrize("seed", [1.0, "a", None, np.float64(1)])
def test_a_seed_that_is_not_an_integer_is_an_error(seed):
    deployed = on(nn.Sequential(nn.Linear(4, 4)), seed=3)
    with pytest.raises(ValueError, match=r"^The seed of a chip is .*: it should be an integer\.$"):
        deployed.program(seed)
    assert deployed.seed == 3


def test_an_integer_of_numpy_is_the_same_chip(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
    deployed = on(model, seed=np.int64(1))
    assert torch.equal(deployed.model(x), on(model, seed=1).model(x))
    deployed.save(tmp_path)
    assert Deployment.load(tmp_path, model).seed == 1


def test_drift_before_programming_is_an_error(bert):
    with pytest.raises(RuntimeError, match="call program"):
        deploy(bert, "ideal").drift_to("1d")


def test_calibrated_ranges_are_those_of_the_data(bert, batch):
    deployed = on(bert, "pcm-hermes-2")
    inputs = {}
    for name, module in bert.named_modules():
        if name in deployed.layers:
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.__setitem__(name, args[0].detach())
            )
    logits(bert, batch)
    largest = deployed.calibrate(lambda model: model(**batch))
    assert largest == pytest.approx({name: float(x.abs().max()) for name, x in inputs.items()})
    median = deployed.calibrate(lambda model: model(**batch), percentile=50)
    expected = {name: float(x.abs().flatten().median()) for name, x in inputs.items()}
    assert median == pytest.approx(expected)


def test_each_model_has_its_own_calibrated_ranges(bert, batch):
    first, second = adapted(copy.deepcopy(bert), seed=1), adapted(copy.deepcopy(bert), seed=2)
    shared = on(first)
    attached = shared.attach(second)
    before = logits(attached, batch)
    shared.calibrate(lambda model: model(**batch), percentile=90)
    shared.drift_to(0.0)
    assert torch.equal(logits(attached, batch), before)
    shared.calibrate(lambda model: model(**batch), percentile=90, model=attached)
    assert not torch.equal(logits(attached, batch), before)


@pytest.mark.parametrize("percentile", [0, 101, float("nan")])
def test_a_percentile_out_of_range_is_an_error(bert, percentile):
    with pytest.raises(ValueError, match="percentile for a range"):
        on(bert).calibrate(lambda model: None, percentile=percentile)


def test_sensitivity_takes_one_layer_at_a_time(bert, batch):
    deployed = on(bert, PCM)
    digital, analog = logits(bert, batch), logits(deployed.drift_to("1y").model, batch)

    def error(model):
        return float((logits(model, batch) - digital).square().mean())

    alone = deployed.layer_sensitivity(error)
    spared = deployed.layer_sensitivity(error, alone="digital")
    assert set(alone) == set(spared) == set(deployed.layers)
    assert all(value > 0 for value in alone.values())
    assert any(value != float((analog - digital).square().mean()) for value in spared.values())
    with pytest.raises(ValueError, match=r"Unknown alone 'both'.*analog, digital"):
        deployed.layer_sensitivity(error, alone="both")


@pytest.mark.parametrize("compensation", ["global", "per-column", "exact"])
@pytest.mark.parametrize("tile", ["torch", "rpucuda"])
def test_every_compensation_scales_by_its_readout(bert, compensation, tile):
    quiet = {"read_noise": False, "converters": False}
    name = "bert.encoder.layer.0.intermediate.dense"

    def layer(kind, tile, time):
        return on(bert, drift_compensation=kind, tile=tile, **quiet).drift_to(time).layers[name]

    target = bert.get_submodule(name).weight
    target = target / target.abs().amax(1, keepdim=True)
    aged, fresh = (layer("none", "torch", time).splits[0].weight for time in ("1y", "0s"))
    before = target if compensation == "exact" else fresh
    axis = {"dim": 1} if compensation == "per-column" else {}
    expected = (before.abs().mean(**axis) / aged.abs().mean(**axis)).expand(len(aged))
    x, none = torch.eye(32), torch.zeros(32, 32)
    with torch.no_grad():
        compensated, plain = layer(compensation, tile, "1y"), layer("none", tile, "1y")
        gains = (compensated(x) - compensated(none)) / (plain(x) - plain(none))
    torch.testing.assert_close(gains.nanmedian(0).values, expected, rtol=1e-3, atol=0)


def test_the_compiled_tile_reports_and_computes_digitally_too(bert, batch):
    ours, theirs = (on(bert, PCM, tile=tile).drift_to("1d") for tile in ("torch", "rpucuda"))
    for a, b in zip(ours.report(), theirs.report(), strict=True):
        assert (a.name, a.tiles, a.cells, a.use) == (b.name, b.tiles, b.cells, b.use)
        # The same chip; the noise of the read-out for drift compensation differs.
        assert a.weight_error == pytest.approx(b.weight_error, rel=0.05)
    with computed_digitally(theirs.layers.values()):
        torch.testing.assert_close(logits(theirs.model, batch), logits(bert, batch))


@pytest.fixture
def opt():
    """A model whose feed-forward layers have inputs of shape (B T, D)."""
    torch.manual_seed(0)
    config = OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, ffn_dim=64,
        word_embed_proj_dim=32,
    )  # fmt: skip
    return OPTForCausalLM(config).eval()


@torch.no_grad()
def test_the_first_token_is_exact_in_layers_with_a_row_per_token(opt):
    ids, mask = torch.randint(3, 50, (3, 5)), torch.ones(3, 5, dtype=torch.long)
    mask[1, :2] = 0
    deployed = on(opt, first_token="digital").drift_to("1y").model
    alone = {"input_ids": ids[:1, :1], "use_cache": False}
    torch.testing.assert_close(deployed(**alone).logits, opt(**alone).logits)
    batch = {"input_ids": ids, "attention_mask": mask}
    noisy, exact = deployed(**batch).logits, opt(**batch).logits
    torch.testing.assert_close(noisy[(0, 1, 2), (0, 2, 0)], exact[(0, 1, 2), (0, 2, 0)])
    assert ((noisy - exact)[:, 3:].abs().amax(-1) > 1e-3).all()


def test_ranges_are_without_first_tokens_in_layers_with_a_row_per_token(opt):
    ids = torch.randint(3, 50, (3, 5))
    ids[:, 0] = 2
    with torch.no_grad():
        opt.model.decoder.embed_tokens.weight[2] *= 1000

    def ranges(**settings):
        return on(opt, **settings).calibrate(lambda model: model(input_ids=ids))

    name = "model.decoder.layers.1.fc2"
    assert ranges(first_token="digital")[name] < ranges()[name]


@torch.no_grad()
def test_the_last_token_alone_is_not_a_first_token(opt):
    deployed = on(opt, first_token="digital", layers=["lm_head"]).model
    last = {"input_ids": torch.randint(3, 50, (2, 5)), "logits_to_keep": 1}
    assert not torch.allclose(deployed(**last).logits, opt(**last).logits, atol=1e-3)


@pytest.mark.parametrize("fused", [True, False])
def test_first_tokens_are_not_digital_in_experts(fused):
    if fused:
        config = MixtralConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=50, intermediate_size=64, num_local_experts=2,
        )  # fmt: skip
        model, name = MixtralForCausalLM(config), r"'model\.layers\.0\.mlp\.experts\.\w+'"
    else:
        model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(4, 4)])})
        name = "'experts.0'"
    with pytest.raises(ValueError, match=f"inputs of the experts {name} are tokens chosen by a"):
        deploy(model, "ideal", first_token="digital")
    if fused:
        assert deploy(model, "ideal", first_token="digital", layers=["q_proj"]).layers


def test_first_tokens_are_not_digital_beside_an_encoder():
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=10)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration has an encoder and a decoder"):
        deploy(T5ForConditionalGeneration(config), "ideal", first_token="digital")


def test_a_layer_in_two_places_is_mapped_once():
    shared = nn.Linear(4, 4)
    deployed = deploy(nn.Sequential(shared, nn.ReLU(), shared), "ideal")
    assert list(deployed.layers) == ["0"]
    assert deployed.model[0] is deployed.model[2] is deployed.layers["0"]


def test_layers_with_tied_weights_share_their_tiles():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight, model[1].bias = model[0].weight, model[0].bias
    # Another bias is another layer.
    model[2].weight = model[0].weight
    deployed = deploy(model, "ideal")
    assert list(deployed.layers) == ["0", "2"]
    assert deployed.model[0] is deployed.model[1]
    assert deployed.model[2] is deployed.layers["2"]
    assert torch.equal(deployed.layers["0"].frozen, deployed.layers["2"].frozen)
