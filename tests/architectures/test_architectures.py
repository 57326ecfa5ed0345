"""Adapters and chips on every architecture, from small random configurations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import nn

from analog_grasp import DeviceCard, GraspConfig, StochGraspConfig, deploy
from analog_grasp.adapters.frozen import base_name, frozen_layers, head_names
from analog_grasp.adapters.registry import ADAPTERS, adapt

WIDTH = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
ENCODER = {**WIDTH, "intermediate_size": 24}
DECODER = {**ENCODER, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
TIED = {"tie_word_embeddings": True}
IDS = torch.randint(3, 40, (3, 7), generator=torch.Generator().manual_seed(1))


@dataclass
class Architecture:
    """A small model, the name of its task in peft, and the expected number of layers."""

    model: Callable[[Any], hf.PreTrainedModel]
    config: hf.PretrainedConfig
    task_type: str | None
    layers: int
    """Linear layers, a shared one counted once."""
    head: tuple[str, ...] = ()
    experts: int = 0
    """Matrices of fused experts, which go onto tiles but are not adapted."""
    routers: int = 0
    """Linear layers of routers, which GRASP adapts but which are digital."""

    def make(self) -> hf.PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model(self.config).eval()

    def batch(self) -> dict[str, torch.Tensor]:
        if isinstance(self.config, hf.ViTConfig):
            pixels = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
            return {"pixel_values": pixels, "labels": torch.tensor([0, 1, 0])}
        if isinstance(self.config, hf.WhisperConfig):
            sounds = torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(1))
            return {"input_features": sounds, "labels": torch.tensor([0, 1, 0])}
        labels = torch.tensor([0, 1, 0]) if self.task_type == "SEQ_CLS" else IDS
        return {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels}


ARCHITECTURES = {
    "bert": Architecture(
        hf.BertForSequenceClassification, hf.BertConfig(**ENCODER), "SEQ_CLS", 13, ("classifier",)
    ),
    "roberta": Architecture(
        hf.RobertaForSequenceClassification,
        hf.RobertaConfig(**ENCODER),
        "SEQ_CLS",
        12,
        ("classifier",),
    ),
    "distilbert": Architecture(
        hf.DistilBertForSequenceClassification,
        hf.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=24, vocab_size=40),
        "SEQ_CLS",
        12,
        ("pre_classifier", "classifier"),
    ),
    "deberta-v2": Architecture(
        hf.DebertaV2ForSequenceClassification,
        hf.DebertaV2Config(
            **ENCODER, relative_attention=True, position_buckets=4, pos_att_type=["p2c", "c2p"]
        ),
        "SEQ_CLS",
        16,
        ("pooler", "classifier"),
    ),
    "electra": Architecture(
        hf.ElectraForSequenceClassification,
        hf.ElectraConfig(**ENCODER, embedding_size=8),
        "SEQ_CLS",
        13,
        ("classifier",),
    ),
    "albert": Architecture(
        hf.AlbertForSequenceClassification,
        hf.AlbertConfig(**ENCODER, embedding_size=8),
        "SEQ_CLS",
        8,
        ("classifier",),
    ),
    "mpnet": Architecture(
        hf.MPNetForSequenceClassification,
        hf.MPNetConfig(**ENCODER),
        "SEQ_CLS",
        12,
        ("classifier",),
    ),
    "modernbert": Architecture(
        hf.ModernBertForSequenceClassification,
        hf.ModernBertConfig(**ENCODER, pad_token_id=0, cls_token_id=1, sep_token_id=2),
        "SEQ_CLS",
        8,
        ("head", "classifier"),
    ),
    "gpt2": Architecture(
        hf.GPT2LMHeadModel,
        hf.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=40, bos_token_id=1, eos_token_id=2
        ),
        "CAUSAL_LM",
        8,
    ),
    "gpt-neox": Architecture(
        hf.GPTNeoXForCausalLM,
        hf.GPTNeoXConfig(**ENCODER, bos_token_id=1, eos_token_id=2),
        "CAUSAL_LM",
        8,
    ),
    "llama": Architecture(
        hf.LlamaForCausalLM, hf.LlamaConfig(**DECODER, **TIED), "CAUSAL_LM", 14
    ),
    "gemma": Architecture(
        hf.GemmaForCausalLM, hf.GemmaConfig(**DECODER, head_dim=8, **TIED), "CAUSAL_LM", 14
    ),
    "phi3": Architecture(
        hf.Phi3ForCausalLM, hf.Phi3Config(**DECODER, pad_token_id=0), "CAUSAL_LM", 8
    ),
    "mistral": Architecture(hf.MistralForCausalLM, hf.MistralConfig(**DECODER), "CAUSAL_LM", 14),
    "mixtral": Architecture(
        hf.MixtralForCausalLM,
        hf.MixtralConfig(**DECODER, num_local_experts=3, num_experts_per_tok=2),
        "CAUSAL_LM",
        8,
        experts=12,
    ),
    "qwen2": Architecture(hf.Qwen2ForCausalLM, hf.Qwen2Config(**DECODER, **TIED), "CAUSAL_LM", 14),
    "qwen3": Architecture(
        hf.Qwen3ForCausalLM, hf.Qwen3Config(**DECODER, head_dim=8, **TIED), "CAUSAL_LM", 14
    ),
    "qwen2-moe": Architecture(
        hf.Qwen2MoeForCausalLM,
        hf.Qwen2MoeConfig(
            **DECODER, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
        ),
        "CAUSAL_LM",
        14,
        experts=12,
        routers=2,
    ),
    "phimoe": Architecture(
        hf.PhimoeForCausalLM,
        hf.PhimoeConfig(
            **DECODER, num_local_experts=3, num_experts_per_tok=2, pad_token_id=0, sliding_window=8
        ),
        "CAUSAL_LM",
        8,
        experts=12,
        routers=2,
    ),
    "llama4": Architecture(
        hf.Llama4ForCausalLM,
        hf.Llama4TextConfig(
            **DECODER, num_local_experts=3, num_experts_per_tok=1, intermediate_size_mlp=24,
            head_dim=8, pad_token_id=0,
        ),
        "CAUSAL_LM",
        14,
        experts=12,
        routers=2,
    ),
    "t5": Architecture(
        hf.T5ForConditionalGeneration,
        hf.T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, vocab_size=40,
            decoder_start_token_id=0,
        ),
        "SEQ_2_SEQ_LM",
        32,
    ),
    "vit": Architecture(
        hf.ViTForImageClassification,
        hf.ViTConfig(**{k: v for k, v in ENCODER.items() if k != "vocab_size"}, image_size=8,
                     patch_size=4),
        None,
        12,
        ("classifier",),
    ),
    "whisper": Architecture(
        hf.WhisperForAudioClassification,
        hf.WhisperConfig(
            d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=24,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, vocab_size=40,
            num_mel_bins=4, max_source_positions=6, pad_token_id=0, classifier_proj_size=8,
        ),
        None,
        12,
        ("projector", "classifier"),
    ),
}  # fmt: skip
CONFIGS = {"grasp": GraspConfig, "stochgrasp": StochGraspConfig}


@pytest.fixture(params=ARCHITECTURES)
def architecture(request):
    return ARCHITECTURES[request.param]


@pytest.fixture(params=CONFIGS)
def config(request, architecture):
    return CONFIGS[request.param](task_type=architecture.task_type, groups=3)


def logits(model, architecture):
    with torch.no_grad():
        return model.eval()(**architecture.batch()).logits


def trained(model, config, architecture):
    """Return the model after one step of training, which changes only what the adapter may."""
    adapted = get_peft_model(model, config)
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    before = {n: p.clone() for n, p in adapted.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam((p for p in adapted.parameters() if p.requires_grad), lr=0.1)
    adapted.train()(**architecture.batch()).loss.backward()
    optimizer.step()
    after = dict(adapted.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    still = [n for n, p in before.items() if torch.equal(after[n], p)]
    # Standard deviations learn by squared gradients, too small for a step where the loss hardly
    # depends on the layer; those of shifts are relative to the largest shift, and all begin at 0.
    # An expert of Phi-MoE that alone has a large weight gets the weight 1, which has no gradient.
    assert all("log_sigma" in name or ".router." in name for name in still)
    assert any("scale_log_sigma" in name for name in before.keys() - still) == (
        config.peft_type == "STOCHGRASP"
    )
    return adapted.eval()


def test_trains_saves_and_loads(architecture, config, tmp_path):
    adapted = trained(architecture.make(), config, architecture)
    adapted_layers = list(adapted.base_model.modulated_layers())
    assert len(adapted_layers) == architecture.layers + architecture.routers
    adapted.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(architecture.make(), tmp_path)
    expected = logits(adapted, architecture)
    assert not torch.allclose(expected, logits(architecture.make(), architecture))
    torch.testing.assert_close(logits(loaded, architecture), expected, rtol=0, atol=0)


@pytest.mark.parametrize("placement", ["digital", "folded"])
def test_deployed_on_the_ideal_device_it_is_the_digital_model(architecture, config, placement):
    adapted = trained(architecture.make(), config, architecture)
    expected = logits(adapted, architecture)
    deployment = deploy(adapted, DeviceCard.load("ideal"), placement=placement).program(seed=0)
    assert len(deployment.report()) == architecture.layers + architecture.experts
    deployed = logits(deployment.model, architecture)
    torch.testing.assert_close(deployed, expected, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits(adapted, architecture), expected, rtol=0, atol=0)


def test_a_real_device_ages(architecture, config):
    adapted = trained(architecture.make(), config, architecture)
    deployment = deploy(adapted, DeviceCard.load("pcm-hermes-2"))
    fresh = logits(deployment.program(seed=0).model, architecture)
    aged = logits(deployment.drift_to("30d").model, architecture)
    assert fresh.isfinite().all()
    assert aged.isfinite().all()
    assert not torch.allclose(fresh, logits(adapted, architecture))
    assert not torch.allclose(fresh, aged)
    torch.testing.assert_close(
        logits(deployment.drift_to(0.0).model, architecture), fresh, rtol=0, atol=0
    )


def test_tied_embeddings_stay_tied_and_off_the_chip(architecture):
    model = architecture.make()
    output = model.get_output_embeddings()
    deployed = deploy(model, DeviceCard.load("ideal")).program(seed=0).model
    if output is None:
        assert [*architecture.head] == head_names(model)
        return
    assert output not in [layer for _, layer in frozen_layers(model)]
    tied = output.weight is model.get_input_embeddings().weight
    after = deployed.get_output_embeddings().weight is deployed.get_input_embeddings().weight
    assert tied == after == bool(model.config.tie_word_embeddings)


def test_the_same_layers_with_and_without_an_adapter(architecture, config):
    bare = [base_name(path) for path, _ in frozen_layers(architecture.make())]
    adapted = get_peft_model(architecture.make(), config)
    assert [base_name(path) for path, _ in frozen_layers(adapted)] == bare
    assert len(bare) == architecture.layers
    saved = {n for n, p in adapted.named_parameters() if p.requires_grad and "grasp_" not in n}
    assert {name.split(".")[2] for name in saved} == set(architecture.head)


# Those without biases have nothing for BitFit, and language models no head of their own.
NOT_FOR = {
    "bitfit": {
        "t5",
        "llama",
        "mistral",
        "mixtral",
        "gemma",
        "phi3",
        "qwen3",
        "modernbert",
        "llama4",
    },
    "head": {name for name, known in ARCHITECTURES.items() if "_LM" in (known.task_type or "")},
}


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name not in CONFIGS])
def test_other_adapters_fit_or_say_why_not(architecture, name, recwarn):
    kind = next(k for k, known in ARCHITECTURES.items() if known is architecture)
    if kind in NOT_FOR.get(name, ()):
        with pytest.raises(ValueError, match="use another adapter"):
            adapt(architecture.make(), name, task_type=architecture.task_type)
        return
    adapted = adapt(architecture.make(), name, task_type=architecture.task_type)
    expected = logits(architecture.make(), architecture)
    torch.testing.assert_close(logits(adapted, architecture), expected)
    adapted.train()(**architecture.batch()).loss.backward()
    unused = [n for n, p in adapted.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    assert not [str(w.message) for w in recwarn if "peft" in w.filename]


ROUTERS = {"qwen2-moe": "shared_expert_gate", "phimoe": "router", "llama4": "router"}


@pytest.mark.parametrize("kind", ROUTERS)
def test_routers_are_digital_unless_they_are_named(kind):
    architecture, name = ARCHITECTURES[kind], ROUTERS[kind]
    model = architecture.make()
    expected = logits(model, architecture)
    deployment = deploy(model, "ideal").program(0)
    assert not [layer for layer in deployment.layers if layer.endswith(name)]
    digital = [module.name for module in deployment.report().digital]
    assert sum(layer.endswith(name) for layer in digital) == architecture.routers
    named = deploy(model, "ideal", layers=["all-linear", name]).program(0)
    on_tiles = [layer for layer in named.layers if layer.endswith(name)]
    assert len(on_tiles) == architecture.routers
    torch.testing.assert_close(logits(named.model, architecture), expected, atol=2e-5, rtol=1e-4)


EXPERTS = ["w1", "w2", "w3"]


@pytest.mark.parametrize("placement", ["digital", "programmed"])
def test_lora_on_fused_experts_is_folded_or_beside_digital_experts(placement):
    architecture = ARCHITECTURES["mixtral"]
    targets = ["q_proj", *EXPERTS]
    adapted = adapt(architecture.make(), "lora", task_type="CAUSAL_LM", target_modules=targets)
    for name, parameter in adapted.named_parameters():
        parameter.data += 0.1 * ("lora_B" in name)
    expected = logits(adapted, architecture)
    with pytest.raises(ValueError, match=r"experts\.\w+_proj is LoRA on a .*placement='folded'"):
        deploy(adapted, "ideal", placement=placement)
    chips = [deploy(adapted, "ideal", placement="folded")]
    if placement == "digital":
        chips.append(deploy(adapted, "ideal", layers=["q_proj", "k_proj"]))
        names = {module.name for module in chips[1].report().digital}
        assert "model.layers.1.mlp.experts.down_proj" in names
    for chip in chips:
        deployed = logits(chip.program(0).model, architecture)
        torch.testing.assert_close(deployed, expected, atol=2e-5, rtol=1e-4)


def test_a_fused_parameter_is_no_target_of_lora():
    with pytest.raises(ValueError, match=r"^The target 'gate_up_proj' of the adapter matches no"):
        adapt(ARCHITECTURES["mixtral"].make(), "lora", target_modules=["q_proj", "gate_up_proj"])


def test_names_of_layers_and_fused_experts_are_checked_together():
    model = ARCHITECTURES["mixtral"].make()
    chip = deploy(model, "ideal", layers=["q_proj", "gate_up_proj"])
    assert len(chip.layers) == 2 * (1 + 3)
    for layers in (["q_proj", "gate_up_proj", "v_prj"], ["gate_up_proj", "v_prj"]):
        with pytest.raises(ValueError, match=r"^The layer pattern 'v_prj' matches no"):
            deploy(model, "ideal", layers=layers)


@pytest.mark.parametrize("batch_first", [True, False])
def test_first_tokens_are_not_digital_in_multi_head_attention(batch_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    with pytest.raises(ValueError, match=r"'layers\.0\.self_attn'.*use first_token='analog'"):
        deploy(model, "ideal", first_token="digital")
