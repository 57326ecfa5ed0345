"""Several adapters of one model: batches that mix them, and interpolation."""

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from small_models import Mlp, build, close, move
from torch import nn

from analog_grasp import deploy
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.adapters.layer import GraspLinear


def move_each(model, *names):
    """Move the parameters of several adapters and their heads from their initial values."""
    for seed, name in enumerate(names):
        model.set_adapter(name)
        move(model, seed)


@pytest.fixture
def pair(make_config):
    """A model with two adapters on the same layers."""
    model = get_peft_model(build(Mlp), make_config(target_modules=["lin0", "lin1"]))
    model.add_adapter("other", make_config(target_modules=["lin0", "lin1"]))
    move_each(model, "default", "other")
    return model


@pytest.mark.parametrize(
    ("prepare", "names", "error"),
    [
        (None, ["default"] * 4, "Length of `adapter_names` should be the same"),
        (None, ["default"] * 4 + ["nope"], "non-existing adapter.*: nope"),
        ("train", ["default"] * 5, "when the model is in training mode"),
        ("merge_adapter", ["default"] * 5, "when there are merged adapters"),
    ],
)
def test_wrong_adapter_names_and_a_merged_or_training_model_raise(pair, x, prepare, names, error):
    if prepare:
        getattr(pair, prepare)()
    with pytest.raises(ValueError, match=error):
        pair(x, adapter_names=names)


def test_another_active_adapter_of_a_disabled_model_replaces_the_merged_one(pair, x):
    pair.set_adapter("other")
    expected = pair(x)
    pair.set_adapter("default")
    pair.merge_adapter()
    with pair.disable_adapter():
        pair.set_adapter("other")
    assert pair.active_adapters == ["other"]
    close(pair(x), expected)


@pytest.mark.parametrize("names", [["other"], ["default", "other"]])
def test_adapters_that_are_merged_while_disabled_join_the_earlier_ones(pair, x, names):
    pair.merge_adapter(["default"])
    pair.merge_adapter(["other"])
    expected = pair(x)
    pair.unmerge_adapter()
    pair.merge_adapter(["default"])
    with pair.disable_adapter():
        pair(x)
        pair.merge_adapter(names)
    close(pair(x), expected)


def test_mixed_batches_of_sampled_adapters_raise(x):
    model = get_peft_model(build(Mlp), StochGraspConfig(groups=4, target_modules=["lin0"])).eval()
    with model.base_model.sampling(), pytest.raises(ValueError, match="cannot be combined"):
        model(x, adapter_names=["default"] * 5)


def test_mixed_batches_reach_the_task_heads():
    tiny = hf.BertConfig(hidden_size=16, intermediate_size=20, num_hidden_layers=1, vocab_size=20,
                         num_attention_heads=2)  # fmt: skip
    torch.manual_seed(0)
    model = get_peft_model(
        hf.BertForSequenceClassification(tiny), GraspConfig(task_type="SEQ_CLS", groups=4)
    )
    model.add_adapter("other", GraspConfig(task_type="SEQ_CLS", groups=2))
    move_each(model, "default", "other")
    ids = torch.randint(0, 20, (3, 6))
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = model(input_ids=ids).logits
    names = ["other", "default", "other"]
    mixed = model(input_ids=ids, adapter_names=names).logits
    close(mixed, torch.stack([expected[name][row] for row, name in enumerate(names)]))


@pytest.mark.parametrize(
    "given",
    [
        {"do_sample": False},
        {"num_beams": 2, "do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        # The most probable token alone, so that each sample is the same.
        {"num_return_sequences": 2, "do_sample": True, "top_k": 1},
        {"generation_config": hf.GenerationConfig(num_beams=2, max_new_tokens=4)},
    ],
)
@pytest.mark.parametrize("decoder_alone", [False, True])
def test_mixed_batches_generate(given, decoder_alone):
    tokens = {"vocab_size": 20, "eos_token_id": 1, "pad_token_id": 0}
    torch.manual_seed(0)
    if decoder_alone:
        tiny = hf.LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                              num_attention_heads=2, **tokens)  # fmt: skip
        base, config = hf.LlamaForCausalLM(tiny), {"target_modules": ["q_proj", "down_proj"]}
    else:
        tiny = hf.T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
                           decoder_start_token_id=0, **tokens)  # fmt: skip
        base, config = hf.T5ForConditionalGeneration(tiny), {"target_modules": ["q", "v", "wo"]}
    model = get_peft_model(base, GraspConfig(groups=4, **config))
    model.add_adapter("other", GraspConfig(groups=4, **config))
    for name, parameter in model.named_parameters():
        if name.endswith(".other"):
            parameter.data.normal_(0, 3)
    model.eval()
    ids = torch.randint(3, 20, (2, 5))
    settings = given if "generation_config" in given else {"max_new_tokens": 4, **given}
    alone = []
    for row, name in enumerate(["other", "default"]):
        model.set_adapter(name)
        alone.extend(model.generate(input_ids=ids[row : row + 1], **settings))
    mixed = model.generate(input_ids=ids, adapter_names=["other", "default"], **settings)
    for row, expected in enumerate(alone):
        assert torch.equal(mixed[row][: len(expected)], expected)


@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.3, 0.7], [1.0, -1.0], [1.0, 0.0]])
def test_weighted_adapters_interpolate_scales_and_shifts(pair, weights, x):
    pair.add_weighted_adapter(["default", "other"], weights, "mix")
    for layer in (m for m in pair.modules() if isinstance(m, GraspLinear)):
        (s1, b1), (s2, b2), (s, b) = (layer.means(n) for n in ("default", "other", "mix"))
        close(s, 1 + weights[0] * (s1 - 1) + weights[1] * (s2 - 1))
        close(b, weights[0] * b1 + weights[1] * b2)
    assert not any(p.requires_grad for n, p in pair.named_parameters() if n.endswith(".mix"))
    if weights == [1.0, 0.0]:
        pair.set_adapter("default")
        expected = pair(x)
        pair.set_adapter("mix")
        close(pair(x), expected)


def test_weighted_adapters_are_on_the_layers_of_the_others_alone(make_config):
    nested = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.ReLU(), nn.Linear(8, 4)))
    model = get_peft_model(nested, make_config(target_modules="all-linear"))
    model.add_weighted_adapter(["default"], [0.5], "mix")
    mixed = [name for name, layer in model.base_model.modulated_layers() if "mix" in layer.group_of]
    assert mixed == ["0", "1.1"]


def test_weighted_adapters_average_the_standard_deviations():
    config = {"groups": 4, "target_modules": ["lin0"]}
    model = get_peft_model(build(Mlp), StochGraspConfig(**config, init_sigma=0.1))
    model.add_adapter("other", StochGraspConfig(**config, init_sigma=0.5))
    model.add_weighted_adapter(["default", "other"], [0.25, -0.75], "mix")
    layer = model.base_model.model.lin0
    for sigma in layer.relative_sigmas("mix"):
        close(sigma, torch.full((4,), 0.25 * 0.1 + 0.75 * 0.5))


def test_weighted_adapters_take_the_identity_where_an_adapter_has_no_layer(make_config):
    model = get_peft_model(build(Mlp), make_config(target_modules=["lin0"]))
    move(model)
    model.add_adapter("other", make_config(target_modules=["lin1"]))
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mix")
    inner = model.base_model.model
    close(inner.lin0.means("mix")[0], 1 + 0.5 * (inner.lin0.means("default")[0] - 1))
    assert "mix" in inner.lin1.group_of


@pytest.mark.parametrize(
    ("adapters", "weights", "name", "error"),
    [
        (["default", "nope"], [1, 1], "mix", "nope does not exist"),
        (["default", "other"], [1], "mix", "2 adapters and 1 weights"),
        (["default", "other"], [1, 1], "other", "already exists"),
        (["default", "groups"], [1, 1], "mix", "same groups, but have 2, 4"),
        (["default", "grouping"], [1, 1], "mix", "same grouping, but have"),
        (["default", "form"], [1, 1], "mix", "same form, but have"),
        (["default", "default"], [0.3, 0.7], "mix", "'default, default', one of .* more than once"),
        (["default", "head"], [1, 1], "mix", "adapter 'head' has a task head"),
        (["head"], [1], "mix", "adapter 'head' has a task head"),
    ],
)
def test_adapters_that_cannot_be_combined_raise(pair, adapters, weights, name, error, make_config):
    unlike = {"groups": 2, "grouping": "random", "form": "normalize"}.items()
    for setting, value in unlike:
        config = make_config(target_modules=["lin0"])
        setattr(config, setting, value)
        pair.add_adapter(setting, config)
    head = make_config(target_modules=["lin0"], modules_to_save=["act"])
    pair.add_adapter("head", head)
    with pytest.raises(ValueError, match=error):
        pair.add_weighted_adapter(adapters, weights, name)
    assert "mix" not in pair.peft_config


def test_one_chip_serves_a_batch_of_many_tasks(bert, batch):
    config = {"task_type": "SEQ_CLS", "groups": 4}
    model = get_peft_model(bert, GraspConfig(**config))
    model.add_adapter("other", GraspConfig(**config))
    move_each(model, "default", "other")
    names = ["other", "default", "__base__", "other"]
    with torch.no_grad():
        expected = model(**batch, adapter_names=names).logits
        chip = deploy(model, "ideal").program(seed=0)
        close(chip.model(**batch, adapter_names=names).logits, expected, 1e-4)


def test_a_name_that_is_given_twice_is_merged_once(pair, x):
    pair.merge_adapter(["default"])
    expected = pair(x)
    pair.unmerge_adapter()
    pair.merge_adapter(["default", "default"])
    close(pair(x), expected)


def test_a_model_merged_in_inference_mode_can_be_trained_afterwards(pair, x):
    frozen = {n: p.clone() for n, p in pair.named_parameters() if "base_layer" in n}
    with torch.inference_mode():
        pair.merge_adapter()
        pair(x)
        pair.unmerge_adapter()
    pair(x.clone()).sum().backward()
    for name, parameter in pair.named_parameters():
        assert not parameter.is_inference()
        if name in frozen:
            assert torch.equal(parameter, frozen[name])


@pytest.mark.parametrize("name", ["grasp_sst2", "stochgrasp_sst2", "grasp_scale"])
def test_an_adapter_whose_name_begins_like_a_parameter_is_loaded(bert_folder, tmp_path, name):
    def base():
        return hf.AutoModelForSequenceClassification.from_pretrained(bert_folder)

    model = get_peft_model(base(), GraspConfig(groups=4, task_type="SEQ_CLS"), name)
    for own, parameter in model.named_parameters():
        if own.endswith(f"grasp_scale.{name}"):
            parameter.data.normal_()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), str(tmp_path / name), name)
    ids = torch.arange(6)[None]
    close(loaded.eval()(ids).logits, model.eval()(ids).logits)
