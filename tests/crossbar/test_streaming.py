"""Models on the meta device, whose weights stay in their file."""

import copy
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
from accelerate import dispatch_model, init_empty_weights
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForSequenceClassification, BertModel, GPT2Config, GPT2LMHeadModel

from analog_grasp import DeviceCard, GraspConfig, deploy
from analog_grasp.crossbar.saving import stream_weights

CARD = DeviceCard.load("pcm-hermes-2")
DECODER = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "num_experts_per_tok": 2, "pad_token_id": 0,
}  # fmt: skip
# The tenth expert comes after the ninth, not after the first.
EXPERTS = {
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**DECODER, num_local_experts=11)),
    "qwen2-moe": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(
            **DECODER, num_experts=3, moe_intermediate_size=8, shared_expert_intermediate_size=8
        )
    ),
    "phimoe": lambda: hf.PhimoeForCausalLM(
        hf.PhimoeConfig(**DECODER, num_local_experts=3, sliding_window=8)
    ),
}


def mapped_from(file):
    """Return whether a tensor is in the pages of a file, as a function of the tensor."""
    ranges = [
        [int(end, 16) for end in line.split()[0].split("-")]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]
    return lambda tensor: any(first <= tensor.data_ptr() < last for first, last in ranges)


def empty_like(model):
    with init_empty_weights():
        return AutoModelForSequenceClassification.from_config(model.config).eval()


@torch.no_grad()
def outputs(model, batch):
    return model(**batch)[0]


def test_a_streamed_model_keeps_no_integers_between_reads(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    streamed = deploy(empty_like(model), CARD, weights=tmp_path, inplace=True).program(seed=3)
    outputs(streamed.model, batch)
    splits = [split for layer in streamed.layers.values() for split in layer.splits]
    assert splits
    assert all(split.limbs is None for split in splits)


@pytest.mark.parametrize("placement", ["digital", "folded"])
def test_a_streamed_model_is_the_same_chip(model, batch, tmp_path, placement):
    model.save_pretrained(tmp_path)
    empty = empty_like(model)
    chips = (
        deploy(given, CARD, placement=placement, **more).program(2).drift_to("1d")
        for given, more in ((model, {}), (empty, {"weights": tmp_path}))
    )
    whole, streamed = (outputs(chip.model, batch) for chip in chips)
    assert torch.equal(whole, streamed)
    assert all(parameter.is_meta for parameter in empty.parameters())


def test_weights_for_a_model_that_has_its_own_are_an_error(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    sentence = "has all its values and would use none of .*, or give no weights"
    with pytest.raises(ValueError, match=sentence):
        deploy(bert, CARD, weights=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_weights_stay_in_their_file(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    empty = empty_like(bert)
    stream_weights(empty, tmp_path / "model.safetensors")
    assert all(map(mapped_from(tmp_path / "model.safetensors"), empty.parameters()))


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_with_a_tensor_each_in_the_file_are_assembled(name, batch, tmp_path):
    torch.manual_seed(0)
    EXPERTS[name]().save_pretrained(tmp_path)
    assert any(".experts.2." in key for key in load_file(tmp_path / "model.safetensors"))
    with init_empty_weights():
        empty = EXPERTS[name]().eval()
    whole = type(empty).from_pretrained(tmp_path)
    chips = (
        deploy(given, CARD, **more).program(2).drift_to("1d").model
        for given, more in ((whole, {}), (empty, {"weights": tmp_path}))
    )
    assert torch.equal(*(outputs(chip, batch) for chip in chips))
    stream_weights(empty, tmp_path)
    assert torch.equal(outputs(empty, batch), outputs(whole, batch))
    if sys.platform == "linux":
        mapped = mapped_from(tmp_path / "model.safetensors")
        in_memory = {path for path, p in empty.named_parameters() if not mapped(p)}
        assert in_memory == {path for path in empty.state_dict() if ".experts." in path}


def test_experts_that_do_not_fit_are_an_error(tmp_path):
    model = EXPERTS["mixtral"]()
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    with init_empty_weights():
        empty = EXPERTS["mixtral"]()
    del held["model.layers.1.block_sparse_moe.experts.3.w2.weight"]
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1\.mlp\.experts\.down_proj .* \(10, .* is \(11,"):
        stream_weights(empty, tmp_path)
    del held["model.layers.1.block_sparse_moe.experts.3.w1.weight"]
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"cannot be assembled to those of a MixtralForCausalLM: "):
        stream_weights(empty, tmp_path)


def test_a_model_of_ones_own_has_the_names_of_the_file(tmp_path):
    own = nn.Sequential(nn.Linear(3, 2))
    save_file(own.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(3, 2))
    stream_weights(empty, tmp_path)
    assert torch.equal(empty[0].weight, own[0].weight)


def test_tied_tensors_stay_tied(tmp_path):
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, bos_token_id=1,
                        eos_token_id=2)  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    with init_empty_weights():
        empty = GPT2LMHeadModel(config)
    stream_weights(empty, tmp_path)
    assert empty.lm_head.weight is empty.transformer.wte.weight


def test_a_body_takes_its_weights_from_a_file_with_a_head(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    with init_empty_weights():
        body = BertModel(bert.config, add_pooling_layer=True)
    stream_weights(body, tmp_path)
    assert torch.equal(body.embeddings.word_embeddings.weight,
                       bert.bert.embeddings.word_embeddings.weight)  # fmt: skip


def test_shards_and_other_types_are_read(bert, batch, tmp_path):
    bert.bfloat16().save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    empty = empty_like(bert).float()
    stream_weights(empty, tmp_path)
    assert {p.dtype for p in empty.parameters()} == {torch.float32}
    torch.testing.assert_close(outputs(empty, batch), outputs(bert.float(), batch))


def test_an_adapter_is_put_on_afterwards(bert, batch, tmp_path):
    bert.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(bert, GraspConfig(task_type="SEQ_CLS", groups=4)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    empty = empty_like(bert)
    stream_weights(empty, tmp_path / "base")
    streamed = PeftModel.from_pretrained(empty, tmp_path / "adapter").eval()
    whole, other = (deploy(m, CARD).program(1).model for m in (adapted, streamed))
    assert torch.equal(outputs(whole, batch), outputs(other, batch))


def test_a_missing_tensor_is_named(bert, tmp_path):
    with pytest.raises(ValueError, match=r"tensor bert\..* is on the meta device.*give weights"):
        deploy(empty_like(bert), CARD)
    bert.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    del held["classifier.weight"]
    save_file(held, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"tensor classifier\.weight .* is on the meta device"):
        deploy(empty_like(bert), CARD, weights=tmp_path)


def test_a_model_divided_by_accelerate_is_the_same_chip(model, batch):
    expected = outputs(deploy(model, CARD).program(1).model, batch)
    places = {name: "cpu" for name, _ in model.named_children()}
    divided = dispatch_model(copy.deepcopy(model), places, main_device="cpu", force_hooks=True)
    assert torch.equal(outputs(deploy(divided, CARD).program(1).model, batch), expected)
    assert torch.equal(outputs(divided, batch), outputs(model, batch))


def test_a_model_offloaded_by_accelerate_is_an_error(model, tmp_path):
    places = {name: "cpu" for name, _ in model.named_children()}
    places[model.base_model_prefix] = "disk"
    divided = dispatch_model(
        copy.deepcopy(model), places, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    with pytest.raises(ValueError, match="is offloaded by accelerate"):
        deploy(divided, CARD)


def test_files_that_do_not_fit_are_an_error(bert, tmp_path):
    with pytest.raises(FileNotFoundError, match="give a safetensors file, or a folder"):
        deploy(empty_like(bert), CARD, weights=tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ValueError, match=r"model\.safetensors are damaged"):
        deploy(empty_like(bert), CARD, weights=tmp_path)
    save_file({"classifier.bias": torch.zeros(7)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"classifier\.bias .* shape \(7,\).*model's is \(2,\)"):
        deploy(empty_like(bert), CARD, weights=tmp_path)
