"""Weights that modules take instead of calling a layer: on tiles, an error, or reported."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import (
    GptOssConfig,
    GptOssModel,
    Llama4TextConfig,
    Llama4TextModel,
    MambaConfig,
    MambaModel,
    MixtralConfig,
    MixtralModel,
)

from analog_grasp import GraspConfig, deploy
from analog_grasp.crossbar.chip_layer import FusedTiles

PCM = "pcm-hermes-2"
EXPERTS = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "num_local_experts": 3, "num_experts_per_tok": 2,
    "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "mixtral": lambda: MixtralModel(MixtralConfig(**EXPERTS)),
    "gpt-oss": lambda: GptOssModel(GptOssConfig(**EXPERTS)),
    "llama4": lambda: Llama4TextModel(
        Llama4TextConfig(**EXPERTS | {"num_experts_per_tok": 1}, intermediate_size_mlp=24)
    ),
}


def built(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model


def encoder(**settings):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, **settings)
    nested = settings.get("bias", True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested).eval()


@torch.no_grad()
def output(model, *inputs, **more):
    result = model(*inputs, **more)
    return result if isinstance(result, torch.Tensor) else result[0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_a_transformer_encoder_computes_on_its_tiles(bias, masked):
    model, x = encoder(bias=bias), torch.randn(3, 5, 16)
    mask = {"src_key_padding_mask": torch.arange(5).expand(3, 5) > 3} if masked else {}
    expected = output(model, x, **mask)[:, :4]
    ideal = deploy(model, "ideal").program(0)
    torch.testing.assert_close(output(ideal.model, x, **mask)[:, :4], expected, atol=1e-5, rtol=0)
    assert sum(".self_attn." in name for name in ideal.layers) == 2 * 4
    assert len(ideal.report()) == 2 * 6
    assert ideal.report().share_on_tiles == 1
    assert not ideal.report().unread
    chip = deploy(model, PCM).program(0)
    noisy = output(chip.model, x, **mask)[:, :4]
    assert (noisy - expected).abs().max() > 1e-2
    # With any part left digital, the outputs differ.
    for layers in (["linear1", "linear2"], ["out_proj"], ["in_proj_weight"]):
        part = deploy(model, PCM, layers=layers).program(0)
        assert (output(part.model, x, **mask)[:, :4] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("placement", ["digital", "folded", "programmed"])
def test_an_adapter_inside_a_transformer_encoder_is_deployed_with_it(placement):
    config = GraspConfig(groups=2, target_modules=["linear1", "linear2"])
    model, x = get_peft_model(encoder(), config).eval(), torch.randn(3, 5, 16)
    for name, parameter in model.named_parameters():
        parameter.data.add_(0.3 if "grasp_" in name else 0.0)
    deployed = deploy(model, "ideal", placement=placement).program(0)
    torch.testing.assert_close(output(deployed.model, x), output(model, x), atol=1e-5, rtol=0)
    assert (output(model, x) - output(encoder(), x)).abs().max() > 0.1
    chip = deploy(model, PCM, placement=placement).program(0)
    assert (output(chip.model, x) - output(model, x)).abs().max() > 1e-2


def test_lora_on_attention_as_a_whole_is_an_error_on_a_chip():
    model = get_peft_model(encoder(), LoraConfig(target_modules=["self_attn"])).eval()
    with pytest.raises(AttributeError, match=r"layer layers\.0\.self_attn\S* is on crossbar tiles"):
        deploy(model, PCM)
    assert len(deploy(model, PCM, placement="folded").layers) == 2 * 6


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_between_two_inputs_computes_on_its_tiles(batch_first):
    torch.manual_seed(0)
    model = nn.Module()
    model.attention = nn.MultiheadAttention(16, 2, batch_first=batch_first).eval()
    model.attention.in_proj_bias.data.normal_()
    q, k, v = torch.randn(3, 4, 4, 16)
    with torch.no_grad():
        expected, attention = model.attention(q, k, v)
        deployed = deploy(model, "ideal").program(0).model.attention(q, k, v)
        noisy = deploy(model, PCM).program(0).model.attention(q, k, v)
    torch.testing.assert_close(deployed[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(deployed[1], attention, atol=1e-5, rtol=0)
    assert not torch.allclose(noisy[1], attention, atol=1e-3)


def test_a_module_that_takes_the_weight_computes_on_the_tiles(batch):
    tiny = MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50, state_size=4)
    torch.manual_seed(0)
    model = MambaModel(tiny).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)
    ids = batch["input_ids"]
    expected = output(model, ids)
    ideal = deploy(model, "ideal").program(0)
    torch.testing.assert_close(output(ideal.model, ids), expected, atol=1e-5, rtol=1e-4)
    assert not ideal.report().unread
    # dt_proj.weight is multiplied without a call of dt_proj.
    chip = deploy(model, "gaussian:0.3", layers=["dt_proj"]).program(0)
    assert (output(chip.model, ids) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    "use",
    [
        lambda weight, x: functional.linear(x, weight),
        lambda weight, x: x @ weight.T,
        lambda weight, x: (weight @ x.mT).mT,
        lambda weight, x: torch.matmul(weight, x[0, 0])[None, None].expand(2, 3, -1),
        lambda weight, x: torch.addmm(torch.zeros(6), x[0], weight.t()).expand(2, 3, -1),
        lambda weight, x: functional.linear(input=x, weight=weight, bias=None),
        lambda weight, x: torch.matmul(input=x, other=weight.T),
        lambda weight, x: torch.Tensor.matmul(x, other=weight.T),
        lambda weight, x: torch.mm(input=x[0], mat2=weight.T).expand(2, 3, -1),
        lambda weight, x: (
            (
                torch.addmm(input=torch.ones(6), mat1=x[0], mat2=weight.T, beta=3, alpha=2) - 3
            ).expand(2, 3, -1)
            / 2
        ),
    ],
)
@pytest.mark.parametrize("tile", ["torch", "rpucuda"])
def test_products_with_the_weight_are_those_of_the_tiles(use, tile):
    torch.manual_seed(0)
    linear, x = nn.Sequential(nn.Linear(4, 6)), torch.ones(2, 3, 4)
    deployed = deploy(linear, PCM, converters=False, read_noise=False, tile=tile).program(0)
    with torch.no_grad():
        y = use(deployed.layers["0"].weight, x)
    torch.testing.assert_close(y, x @ deployed.weights()["0"].T, atol=1e-5, rtol=1e-4)
    assert deployed.layers["0"].weight.shape == (6, 4)


@pytest.mark.parametrize(
    "use",
    [
        lambda weight: weight.data,
        lambda weight: weight.detach().clone(),
        lambda weight: torch.ones(6, 4) + weight,
        lambda weight: torch.ones(3, 6) @ weight,
        lambda weight: weight * 2.0,
        lambda weight: weight[0],
        lambda weight: torch.nn.init.zeros_(weight),
    ],
)
def test_any_other_use_of_the_weight_is_an_error(use):
    deployed = deploy(nn.Sequential(nn.Linear(4, 6)), PCM).program(0)
    with pytest.raises((RuntimeError, AttributeError), match=r"layer 0 is on crossbar tiles, whi"):
        use(deployed.layers["0"].weight)


@pytest.mark.parametrize("config", [GraspConfig, LoraConfig])
@pytest.mark.parametrize("placement", ["digital", "programmed"])
def test_adapters_of_a_deployed_model_are_not_merged_or_unloaded(bert, batch, config, placement):
    digital = get_peft_model(bert, config(task_type="SEQ_CLS", target_modules=["query"])).eval()
    expected = output(digital, **batch)
    deployed = deploy(digital, PCM, placement=placement).program(0)
    for change in ("merge_and_unload", "merge_adapter", "unload"):
        with pytest.raises(ValueError, match=r"cannot be merged or unloaded.*placement='folded'"):
            getattr(deployed.model, change)()
    assert torch.equal(output(digital, **batch), expected)


@pytest.mark.parametrize("placement", ["digital", "programmed"])
def test_a_merged_adapter_is_an_error_unless_it_is_folded(bert, batch, placement):
    model = get_peft_model(bert, GraspConfig(task_type="SEQ_CLS", groups=4)).eval()
    model.merge_adapter()
    with pytest.raises(ValueError, match=r"the adapter is merged .*: unmerge it, or use placement"):
        deploy(model, "ideal", placement=placement)
    folded = deploy(model, "ideal", placement="folded").program(0)
    torch.testing.assert_close(output(folded.model, **batch), output(model, **batch))
    model.unmerge_adapter()
    deploy(model, "ideal", placement=placement)


@pytest.mark.parametrize("placement", ["digital", "programmed"])
def test_dora_is_an_error_unless_it_is_folded(bert, batch, placement):
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], use_dora=True)
    plain = copy.deepcopy(bert)
    digital = get_peft_model(bert, config).eval()
    with pytest.raises(ValueError, match=r"is DoRA, which divides by .*placement='folded'"):
        deploy(digital, PCM, placement=placement)
    chip = deploy(get_peft_model(plain, GraspConfig(task_type="SEQ_CLS")), PCM, placement=placement)
    with pytest.raises(ValueError, match=r"is DoRA, which divides by .*placement='folded'"):
        chip.attach(digital)
    folded = deploy(digital, "ideal", placement="folded").program(0)
    torch.testing.assert_close(output(folded.model, **batch), output(digital, **batch))
    with pytest.raises(ValueError, match=r"placement is 'folded', .*: deploy the model separately"):
        folded.attach(digital)


@pytest.mark.parametrize("tile", ["torch", "rpucuda"])
def test_weights_on_tiles_are_neither_loaded_nor_saved_as_digital_ones(bert, tile, tmp_path):
    model = deploy(bert, PCM, tile=tile, converters=False, read_noise=False).program(0).model
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"which is on crossbar tiles and is programmed"):
            model.load_state_dict(bert.state_dict(), strict=strict)
    with pytest.raises(ValueError, match=r"by save_pretrained, .*: use Deployment\.save"):
        model.save_pretrained(tmp_path)


def test_loading_a_state_never_writes_into_the_callers_model(bert, batch):
    digital = get_peft_model(bert, GraspConfig(task_type="SEQ_CLS", groups=3)).eval()
    expected = output(digital, **batch)
    deployed = deploy(digital, PCM).program(0)
    zeros = {name: torch.zeros_like(t) for name, t in deployed.model.state_dict().items()}
    deployed.model.load_state_dict(zeros)
    assert output(deployed.model, **batch).eq(0).all()
    assert torch.equal(output(digital, **batch), expected)
    with pytest.raises(RuntimeError, match=r"which is on crossbar tiles and is programmed, not l"):
        deployed.model.load_state_dict(digital.state_dict())
    assert torch.equal(output(digital, **batch), expected)


@pytest.mark.parametrize("name", MODELS)
def test_experts_compute_on_tiles_of_their_own(name, batch):
    model = built(name)
    expected = output(model, **batch)
    deployed = deploy(model, "ideal").program(0)
    torch.testing.assert_close(output(deployed.model, **batch), expected, atol=1e-4, rtol=1e-3)
    fused = [m for m in deployed.model.modules() if isinstance(m, FusedTiles)]
    assert [len(each) for each in fused] == [3] * 4
    experts = sum(".experts." in layer for layer in deployed.layers)
    assert experts == 3 * 2 * 2
    digital = {module.kind for module in deployed.report().digital}
    assert digital <= {"Embedding", "MixtralTopKRouter", "GptOssTopKRouter", "Llama4Router"}
    weights = deployed.weights()
    stored = dict(model.named_parameters())
    for key in (k for k in weights if ".experts." in k):
        parameter, _, number = key.rpartition(".")
        matrix = stored[parameter][int(number)].detach()
        matrix = matrix if matrix.shape == weights[key].shape else matrix.T
        torch.testing.assert_close(weights[key], matrix, atol=1e-6, rtol=1e-5)
    # Only the experts are on this chip: its noise shows in the outputs.
    chip = deploy(model, "gaussian:0.2", layers=r".*\.experts\..*").program(0)
    assert all(".experts." in layer for layer in chip.layers)
    assert (output(chip.model, **batch) - expected).abs().max() > 1e-2
    assert torch.equal(output(model, **batch), expected)


def test_adapters_share_the_experts_of_a_chip(batch):
    model = built("mixtral")
    config = GraspConfig(groups=2, target_modules=["q_proj"])
    first, second = (get_peft_model(copy.deepcopy(model), config) for _ in range(2))
    chip = deploy(first, PCM).program(0)
    attached = chip.attach(second)
    alone = deploy(second, PCM).program(0)
    assert torch.equal(output(attached, **batch), output(alone.model, **batch))
    model.layers[1].mlp.experts.down_proj.data[2] += 1
    with pytest.raises(ValueError, match=r"experts\.down_proj\.2 has other frozen weights"):
        chip.attach(get_peft_model(model, config))


def test_the_report_names_the_weights_that_stay_digital():
    torch.manual_seed(0)
    parts = {
        "conv": nn.Conv1d(2, 3, 5),
        "lstm": nn.LSTM(4, 3),
        "embedding": nn.Embedding(7, 4),
        "dense": nn.Linear(10, 6),
        "unused": nn.Linear(5, 4),
        "norm": nn.LayerNorm(4),
    }

    class Model(nn.ModuleDict):
        def forward(self, x):
            return self["dense"](x)

    model = Model(parts)
    deployed = deploy(model, "ideal").program(0)
    assert not deployed.report().unread
    output(deployed.model, torch.ones(1, 10))
    report = deployed.report()
    digital = {m.name: (m.kind, m.weights) for m in report.digital}
    assert digital == {
        "conv": ("Conv1d", 30),
        "lstm": ("LSTM", 4 * 3 * 4 + 4 * 3 * 3),
        "embedding": ("Embedding", 28),
    }
    assert report.share_on_tiles == pytest.approx(80 / (80 + 30 + 84 + 28))
    assert report.unread == ["unused"]
    text = str(report)
    assert text.startswith("36.0% of the weights are on tiles; digital: lstm (LSTM, 84), conv (")
    assert text.endswith("on tiles but not used by any forward pass: unused")


def test_adapters_do_not_count_as_digital_weights(bert):
    bare = deploy(bert, PCM).report()
    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query"])
    adapted = deploy(get_peft_model(bert, config), PCM).report()
    count = [sum(module.weights for module in report.digital) for report in (bare, adapted)]
    assert count[0] == count[1] > 0
    assert adapted.share_on_tiles == bare.share_on_tiles


class Quantised(nn.Linear):
    """A linear layer with an 8-bit weight and a scale, dequantised as peft does for HQQ."""

    def __init__(self, *shape):
        super().__init__(*shape, bias=True)
        self.W_q = True
        self.weight = nn.Parameter(torch.randint(-127, 128, shape[::-1], dtype=torch.int8), False)

    def dequantize(self):
        return self.weight * 0.01

    def forward(self, x):
        return functional.linear(x, self.dequantize(), self.bias)


def test_quantised_layers_are_dequantised_before_they_go_onto_tiles():
    torch.manual_seed(0)
    model, x = nn.Sequential(Quantised(8, 6), nn.Linear(6, 3)).eval(), torch.randn(4, 8)
    deployed = deploy(model, "ideal").program(0)
    torch.testing.assert_close(output(deployed.model, x), output(model, x), atol=1e-5, rtol=0)
    torch.testing.assert_close(deployed.weights()["0"], model[0].dequantize())
    del model[0].W_q
    with pytest.raises(ValueError, match=r"int8 weight of the layer 0 cannot be dequantised: dep"):
        deploy(model, "ideal")
