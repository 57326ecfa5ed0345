"""A deployed model as a torch module: copied, pickled, compiled, converted, saved and loaded."""

import copy
import io
import json
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import logits, move
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

from analog_grasp import Deployment, DeviceCard, GraspConfig, StochGraspConfig, deploy
from analog_grasp.crossbar import saving
from analog_grasp.devices.schema import LayerMapping

PCM = "pcm-hermes-2"


def adapted(model, config=GraspConfig, **settings):
    return move(get_peft_model(model, config(task_type="SEQ_CLS", **settings)), 3, 0.1)


def aged(model, **settings):
    return deploy(model, PCM, **settings).program(4).drift_to("1d")


def restored(deployment):
    """The first pass of a chip at a time again."""
    return deployment.drift_to(deployment.time_s)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def torch_saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, torch_saved])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [None, GraspConfig])
def test_a_copy_is_the_same_chip_and_a_chip_of_its_own(bert, batch, copied, dtype, config):
    model = bert if config is None else adapted(bert, config, groups=4)
    original = aged(model, dtype=dtype)
    expected = logits(original.model, batch)
    other = copied(restored(original))
    assert torch.equal(logits(other.model, batch), expected)
    other.program(5)
    assert not torch.equal(logits(other.model, batch), expected)
    assert torch.equal(logits(restored(original).model, batch), expected)
    # The copy does not share the caller's memory.
    with torch.no_grad():
        bert.get_input_embeddings().weight.add_(1)
    assert torch.equal(logits(other.drift_to(0.0).program(4).drift_to("1d").model, batch), expected)


def test_the_compiled_tile_is_copied_saved_and_converted_too(bert, batch, tmp_path):
    original = aged(bert, tile="rpucuda", converters=False, read_noise=False)
    expected = logits(original.model, batch)
    original.save(tmp_path)
    for other in (copy.deepcopy(original), pickled(original), Deployment.load(tmp_path)):
        assert torch.equal(logits(other.model, batch), expected)
    original.model.half()
    torch.testing.assert_close(logits(original.model, batch).float(), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copied_model_computes_as_the_chip_did(bert, batch, copied):
    original = aged(bert)
    model = copied(original.model)
    assert torch.equal(logits(model, batch), logits(original.model, batch))


@pytest.mark.parametrize("placement", ["digital", "folded", "programmed"])
@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (StochGraspConfig, {"groups": 4}),
        (GraspConfig, {"groups": 3, "target_modules": ["query"]}),
        (LoraConfig, {"target_modules": ["query", "value"]}),
    ],
)
def test_a_saved_deployment_loads_with_the_same_bits(
    model, batch, tmp_path, placement, config, settings
):
    if model.config.model_type == "gpt2":
        settings = settings | {"target_modules": ["c_attn"]}
        settings |= {"fan_in_fan_out": True} if config is LoraConfig else {}
    digital = adapted(model, config, **settings)
    original = aged(digital, placement=placement, drift_compensation="per-column")
    original.calibrate(lambda each: each(**batch), percentile=99)
    expected = logits(restored(original).model, batch)
    original.save(tmp_path / "chip")
    loaded = Deployment.load(tmp_path / "chip")
    assert (loaded.seed, loaded.time_s, loaded.card) == (4, 86_400.0, original.card)
    assert torch.equal(logits(loaded.model, batch), expected)
    loaded.program(7).drift_to("1h")
    assert torch.equal(
        logits(loaded.model, batch), logits(original.program(7).drift_to("1h").model, batch)
    )


@pytest.mark.parametrize("config", [GraspConfig, LoraConfig])
def test_adapters_load_under_their_own_names(bert, batch, tmp_path, config):
    one = config(task_type="SEQ_CLS", target_modules=["query", "value"])
    digital = get_peft_model(bert, one, adapter_name="first")
    digital.add_adapter("second", copy.deepcopy(one))
    digital.set_adapter("second")
    original = aged(move(digital, 3, 0.1))
    expected = logits(original.model, batch)
    original.save(tmp_path)
    loaded = Deployment.load(tmp_path).model
    assert (list(loaded.peft_config), loaded.active_adapter) == (["first", "second"], "second")
    assert torch.equal(logits(loaded, batch), expected)


@pytest.mark.parametrize("name", ["mixtral", "gpt2"])
def test_experts_and_tied_embeddings_load_with_the_same_bits(name, batch, tmp_path):
    torch.manual_seed(0)
    if name == "gpt2":
        config = GPT2Config(
            n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=1, eos_token_id=2
        )
        model = GPT2LMHeadModel(config).eval()
    else:
        config = MixtralConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=50, num_local_experts=3, num_experts_per_tok=2,
        )  # fmt: skip
        model = MixtralForCausalLM(config).eval()
    original = aged(model)
    expected = logits(original.model, batch)
    original.save(tmp_path)
    loaded = Deployment.load(tmp_path).model
    assert torch.equal(logits(loaded, batch), expected)
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (name == "gpt2")


def test_the_deployment_of_ones_own_model_loads_into_its_structure(tmp_path):
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(2, 3, 8)
    original = aged(model)
    with torch.no_grad():
        expected = original.model(x)
    original.save(tmp_path)
    with pytest.raises(ValueError, match="TransformerEncoderLayer, which transformers does not"):
        Deployment.load(tmp_path)
    with torch.no_grad():
        loaded = Deployment.load(tmp_path, nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
        assert torch.equal(loaded.model(x), expected)


@pytest.mark.parametrize("settings", [{}, {"clip": 1.5, "first_token": "analog"}])
def test_a_card_with_a_mapping_loads_with_the_same_bits(bert, batch, tmp_path, settings):
    mapping = LayerMapping(rescale=0.5, clip="least-error", first_token="digital")
    card = DeviceCard.load(PCM).model_copy(update={"mapping": mapping})
    original = deploy(bert, card, **settings).program(4)
    expected = logits(original.model, batch)
    original.save(tmp_path)
    loaded = Deployment.load(tmp_path)
    assert loaded.card == card
    assert torch.equal(logits(loaded.model, batch), expected)


def test_a_folder_without_a_deployment_is_an_error(bert, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no deployment: give one that"):
        Deployment.load(tmp_path)
    aged(bert).save(tmp_path)
    (tmp_path / "deployment.json").write_text("{}")
    with pytest.raises(ValueError, match=r"deployment\.json is damaged.*save the deployment again"):
        Deployment.load(tmp_path)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"seed": "x"},
        {"time_s": -1.0},
        {"input_ranges": [1]},
        {"input_ranges": {"0": -1.0}},
        {"input_scales": {"nope": [1.0]}},
        {"output_ranges": {"nope": [[1.0]]}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_damaged_chip_is_an_error(tmp_path, spoiled):
    model = nn.Sequential(nn.Linear(4, 3))
    deploy(model, PCM).program(1).drift_to("1d").save(tmp_path)
    path = tmp_path / "deployment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"chip": content["chip"] | spoiled}))
    with pytest.raises(
        ValueError, match=r"deployment\.json is damaged .*save the deployment again"
    ):
        Deployment.load(tmp_path, model)


@pytest.mark.parametrize(
    "spoiled",
    [
        lambda model: {},
        lambda model: [],
        lambda model: model | {"config": model["config"] | {"hidden_size": "wide"}},
        lambda model: model | {"adapters": {"default": {}}},
    ],
)
def test_a_damaged_description_of_a_model_is_an_error(bert, tmp_path, spoiled):
    deploy(bert, PCM).save(tmp_path)
    path = tmp_path / "deployment.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"model": spoiled(content["model"])}))
    with pytest.raises(
        ValueError, match=r"deployment\.json is damaged .*save the deployment again"
    ):
        Deployment.load(tmp_path)


def test_a_save_that_fails_keeps_the_older_deployment(tmp_path, monkeypatch):
    first, second = nn.Sequential(nn.Linear(4, 3)), nn.Sequential(nn.Linear(4, 3))
    deploy(first, PCM).program(1).save(tmp_path)
    deployment = deploy(second, PCM).program(2)
    with monkeypatch.context() as patch:
        # JSON holds no tensors.
        patch.setattr(saving, "describe", lambda model: {"class": torch.tensor(2)})
        with pytest.raises(TypeError):
            deployment.save(tmp_path)
    kept = Deployment.load(tmp_path, first)
    assert kept.seed == 1
    assert torch.equal(kept.layers["0"].frozen, first[0].weight)


def test_an_interrupted_save_is_no_deployment(tmp_path, monkeypatch):
    deploy(nn.Sequential(nn.Linear(4, 3)), PCM).program(1).save(tmp_path)
    monkeypatch.setattr(saving, "save_file", lambda *given: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        deploy(nn.Sequential(nn.Linear(4, 3)), PCM).program(2).save(tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no deployment"):
        Deployment.load(tmp_path, nn.Sequential(nn.Linear(4, 3)))


def test_a_compiled_model_computes_as_the_chip_does(bert, batch):
    original = aged(bert)
    expected = logits(original.model, batch)
    compiled = torch.compile(restored(original).model, backend="eager")
    torch.testing.assert_close(logits(compiled, batch), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_converted_model_keeps_the_precision_of_its_tiles(bert, batch, dtype):
    original = aged(bert)
    expected, weights = logits(original.model, batch), original.weights()
    half = logits(restored(original).model.to(dtype), batch)
    assert half.dtype == dtype
    torch.testing.assert_close(half.float(), expected, atol=0.05, rtol=0.05)
    for name, weight in original.weights().items():
        assert torch.equal(weight, weights[name])
    assert logits(original.drift_to("1y").model, batch).isfinite().all()


def test_a_deployment_made_in_inference_mode_works_outside(bert, batch):
    expected = logits(aged(bert).model, batch)
    with torch.inference_mode():
        inside = aged(bert)
        assert torch.equal(logits(inside.model, batch), expected)
    assert torch.equal(logits(restored(inside).model, batch), expected)
    embedded = bert.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    inside.model(inputs_embeds=embedded).logits.sum().backward()
    assert embedded.grad.isfinite().all()


def test_a_model_made_in_inference_mode_can_be_deployed(make_model, batch):
    with torch.inference_mode():
        model = make_model("bert")
    expected = logits(aged(make_model("bert")).model, batch)
    assert torch.equal(logits(aged(model).model, batch), expected)
