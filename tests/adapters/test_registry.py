"""Every adapter by name: created, counted, saved, loaded and deployed."""

import subprocess
import sys

import pytest
import torch
from peft import LoHaConfig, PeftModel, get_peft_model
from small_models import logits, move
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from analog_grasp import DeviceCard, deploy
from analog_grasp.adapters.registry import (
    ADAPTERS,
    AdapterMethod,
    adapt,
    check_placement,
    kind_of,
)
from analog_grasp.study.trained_adapters import learned_parameters, save_adapter

D, FF, LAYERS, LABELS = 32, 70, 2, 2
# Parameters of each adapter in one layer of a BERT; its pooler and first norm are in OUTSIDE.
PER_LAYER = {
    "grasp": 6 * 2 * 4,
    "stochgrasp": 6 * 4 * 4,
    "lora": 2 * 8 * (D + D),
    "lora-all-linear": 4 * 8 * (D + D) + 2 * 8 * (D + FF),
    "ia3": D + D + D + FF,
    "bitfit": 4 * D + FF + D + 2 * D,
    "head": 0,
}
OUTSIDE = {
    "grasp": {"bert": 2 * 4},
    "stochgrasp": {"bert": 4 * 4},
    "lora-all-linear": {"bert": 8 * (D + D)},
    "bitfit": {"bert": D + D, "roberta": D},
}
HEADS = {"bert": (D + 1) * LABELS, "roberta": (D + 1) * (D + LABELS)}


@pytest.fixture(params=ADAPTERS)
def adapter(request):
    return request.param


@pytest.fixture(params=["bert", "roberta"])
def classifier(request, make_model):
    return make_model(request.param)


def trained(model, name):
    """Return the model under an adapter whose parameters are all away from their start."""
    return move(adapt(model, name, groups=4), std=0.05)


def test_counts_are_exact(classifier, adapter):
    kind, total = classifier.config.model_type, sum(p.numel() for p in classifier.parameters())
    adapted = adapt(classifier, adapter, groups=4)
    expected = {
        name: LAYERS * count + OUTSIDE.get(name, {}).get(kind, 0)
        for name, count in PER_LAYER.items()
    } | {"full": total - HEADS[kind]}
    assert learned_parameters(adapted) == (expected[adapter], HEADS[kind])
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trainable == expected[adapter] + HEADS[kind]


def test_a_new_adapter_changes_nothing(model, adapter, batch):
    before = logits(model, batch)
    torch.testing.assert_close(logits(adapt(model, adapter, groups=4), batch), before)


@pytest.mark.parametrize("adapter", PER_LAYER)
def test_saves_and_loads(make_model, model, adapter, batch, tmp_path):
    kind = model.config.model_type
    adapted = trained(model, adapter)
    save_adapter(adapted, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    loaded = PeftModel.from_pretrained(make_model(kind, seed=0), tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    torch.testing.assert_close(logits(loaded, batch), logits(adapted, batch), rtol=0, atol=0)
    assert kind_of(loaded) == adapter
    again = PeftModel.from_pretrained(make_model(kind, seed=0), tmp_path, is_trainable=True)
    assert learned_parameters(again) == learned_parameters(adapted)
    assert [n for n, p in again.named_parameters() if p.requires_grad] == [
        n for n, p in adapted.named_parameters() if p.requires_grad
    ]


def test_a_model_trained_whole_is_saved_as_any_transformers_model(model, batch, tmp_path):
    whole = trained(model, "full")
    assert whole is model
    assert kind_of(whole) == "full"
    save_adapter(whole, tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded, batch), logits(whole, batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        (name, placement)
        for name, method in ADAPTERS.items()
        for placement in method.placements
        if placement != "programmed"
    ],
)
def test_deployed_on_the_ideal_device_it_is_the_digital_model(classifier, name, placement, batch):
    adapted = trained(classifier, name)
    deployment = deploy(adapted, DeviceCard.load("ideal"), placement=placement).program(seed=1)
    expected = logits(adapted, batch)
    torch.testing.assert_close(logits(deployment.model, batch), expected, atol=1e-5, rtol=1e-4)
    assert len(deployment.report()) == 6 * LAYERS + (classifier.config.model_type == "bert")


@pytest.mark.parametrize("name", [n for n, m in ADAPTERS.items() if "digital" in m.placements])
def test_digital_adapters_share_the_chip_of_the_frozen_model(make_model, name, batch):
    chip = deploy(make_model("bert"), DeviceCard.load("ideal")).program(seed=1)
    adapted = trained(make_model("bert"), name)
    attached = chip.attach(adapted)
    torch.testing.assert_close(
        logits(attached, batch), logits(adapted, batch), atol=1e-5, rtol=1e-4
    )


def test_full_fine_tuning_needs_a_chip_of_its_own(make_model):
    chip = deploy(make_model("bert"), DeviceCard.load("ideal"))
    with pytest.raises(ValueError, match="other frozen weights"):
        chip.attach(trained(make_model("bert"), "full"))


@pytest.mark.parametrize("name", ADAPTERS)
def test_language_models_keep_their_output_embedding(name, tmp_path):
    tiny = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, bos_token_id=1, eos_token_id=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny)
    model.save_pretrained(tmp_path / "base")
    if name == "head":
        with pytest.raises(ValueError, match="GPT2LMHeadModel has no task head"):
            adapt(model, name, task_type="CAUSAL_LM", groups=4)
        return
    count = sum(p.numel() for p in model.parameters())
    adapted = adapt(model, name, task_type="CAUSAL_LM", groups=4)
    own, head = learned_parameters(adapted)
    assert head == 0
    assert own == count if name == "full" else 0 < own < count / 2
    ids = torch.arange(3, 9)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    torch.optim.SGD((p for p in adapted.parameters() if p.requires_grad), lr=0.1).step()
    save_adapter(adapted, tmp_path / "adapter")
    if name == "full":
        loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "adapter")
    else:
        base = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
        loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    batch = {"input_ids": ids}
    torch.testing.assert_close(logits(loaded, batch), logits(adapted, batch))


@pytest.mark.parametrize(
    ("name", "placement", "use"),
    [
        ("full", "digital", "all weights of the model: use folded"),
        ("ia3", "programmed", "use digital or folded"),
        ("bitfit", "analog", "'analog', as it trains the biases"),
    ],
)
def test_another_placement_raises(name, placement, use):
    with pytest.raises(ValueError, match=use):
        check_placement(name, placement)


@pytest.mark.parametrize(
    "use", [lambda name, bert: adapt(bert, name), lambda name, _: check_placement(name, "digital")]
)
def test_an_unknown_adapter_raises(use, bert):
    with pytest.raises(ValueError, match=r"Unknown adapter 'lorra'. Did you mean 'lora'\?"):
        use("lorra", bert)


@pytest.mark.parametrize("name", ["grasp", "lora", "full"])
def test_an_unknown_setting_raises(name, bert):
    with pytest.raises(ValueError, match=r"Unknown setting 'gruops'. Did you mean 'groups'\?"):
        adapt(bert, name, groups=4, gruops=3)


def test_an_added_adapter_receives_every_setting(monkeypatch, bert):
    received = {}

    def config(model, **settings):
        received.update(settings)
        return LoHaConfig(target_modules=["query"])

    mine = AdapterMethod("Mine", "all", ("digital",), 1e-3, "-", config)
    monkeypatch.setitem(ADAPTERS, "mine", mine)
    adapt(bert, "mine", groups=4, width=3)
    assert received == {"task_type": "SEQ_CLS", "groups": 4, "width": 3}


def test_all_linear_layers_are_meant_by_their_full_names():
    nested = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4)))
    adapted = adapt(nested, "lora-all-linear", task_type=None)
    assert kind_of(adapted) == "lora-all-linear"


def test_other_methods_of_peft_have_no_name(bert):
    assert kind_of(get_peft_model(bert, LoHaConfig(target_modules=["query"]))) is None


@pytest.mark.parametrize("name", ["lora", "ia3"])
def test_a_model_without_recognised_layers_raises(name):
    class Custom(BertForSequenceClassification):
        """A model whose layers have names of their own."""

    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
    model = Custom(config)
    model.config.model_type = "custom"
    for attention in (layer.attention for layer in model.bert.encoder.layer):
        attention.self.mix = attention.self._modules.pop("query")
    with pytest.raises(ValueError, match=r"no layers that are named like query.*lora-all-linear"):
        adapt(model, name)
    assert adapt(model, "lora-all-linear").base_model.model.bert.pooler.dense.r == {"default": 8}


def test_lora_takes_target_modules(bert):
    adapted = adapt(bert, "lora", target_modules=["key", "output.dense"])
    wrapped = {n.rpartition(".lora_A")[0] for n, _ in adapted.named_parameters() if "lora_A" in n}
    assert len(wrapped) == 3 * LAYERS
    assert kind_of(adapted) == "lora"


def test_names_and_titles_are_found_without_torch():
    script = (
        "import sys; from analog_grasp.adapters.registry import ADAPTERS, check_placement\n"
        "assert ADAPTERS['grasp'].title == 'GRASP'; check_placement('lora', 'folded')\n"
        "assert not {'torch', 'transformers', 'peft', 'numba', 'aihwkit'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
