"""Recalibration on tiny models: gain on a noisy chip, unchanged parts, and invalid requests."""

import copy
import json
from dataclasses import replace
from typing import get_args

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from small_models import bits, same_bits, with_small_inputs
from torch import nn
from transformers import AddedToken

from analog_grasp import (
    AgeSchedule,
    DeviceCard,
    GraspConfig,
    StochGraspConfig,
    deploy,
    recalibrate,
)
from analog_grasp.adapters.layer import GraspLinear
from analog_grasp.adapters.registry import adapt
from analog_grasp.tasks import GenerationTask, SentenceTask, load_base_model
from analog_grasp.training import fit_methods, train, weight_noise
from analog_grasp.training.adapter_parameters import adapter_parameters, own_copy
from analog_grasp.training.distillation import backward_through_targets
from analog_grasp.training.examples import (
    count_of,
    draw_examples,
    pick,
    replace_tokens,
    vocabulary_of,
)
from analog_grasp.training.fit_methods import METHODS
from analog_grasp.utils.types import RefitMethod

CONFIGS = {
    "grasp": GraspConfig(task_type="SEQ_CLS", groups=4),
    "stochgrasp": StochGraspConfig(task_type="SEQ_CLS", groups=4),
    "lora": LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query", "value"]),
}
TEXTS = ["good film", "poor book", "fine play", "dull song"] * 4


@pytest.fixture
def trained(reader, task):
    """Return a function that trains an adapter on the tiny task."""

    def make(kind="grasp"):
        torch.manual_seed(0)
        model = get_peft_model(reader("bert", dropout=False), CONFIGS[kind])
        train(model, task, epochs=6, batch_size=16, learning_rate=2e-2)
        return model

    return make


@pytest.mark.parametrize("kind", sorted(CONFIGS))
@pytest.mark.parametrize("backward", ["target", "chip"])
def test_outputs_on_a_noisy_chip_come_closer_to_the_digital_ones(trained, task, kind, backward):
    model = trained(kind)
    deployment = deploy(model, "gaussian:0.1").program(3)
    before, chip = bits(model), bits(deployment.model)
    result = recalibrate(
        deployment, task, examples=48, backward=backward, steps=60, learning_rate=2e-2
    )
    assert result.improved
    assert result.loss_after < 0.8 * result.loss_before
    digital = torch.from_numpy(task.predict(model)).log_softmax(-1)

    def distance(on_chip):
        found = torch.from_numpy(task.predict(on_chip)).log_softmax(-1)
        return nn.functional.kl_div(found, digital, log_target=True, reduction="batchmean").item()

    assert distance(result.model) < distance(deployment.model)
    assert same_bits(bits(model), before)
    assert same_bits(bits(deployment.model), chip)
    assert 0 < result.parameters <= sum(p.numel() for p in bits(result.model).values())
    assert result.bytes == 4 * result.parameters
    assert result.weights == sum(layer.frozen.numel() for layer in deployment.layers.values())


def test_a_fit_does_not_depend_on_the_size_of_the_inputs_of_a_layer(reader, task):
    found = []
    for size in (1.0, 1 / 64):
        torch.manual_seed(0)
        base = with_small_inputs(reader("bert", dropout=False), size)
        model = get_peft_model(base, GraspConfig(task_type="SEQ_CLS", groups=4))
        deployment = deploy(model, "gaussian:0.1").program(3)
        found.append(recalibrate(deployment, task, examples=48, steps=30, learning_rate=2e-2))
    large, small = found
    assert large.improved
    assert small.loss_before == pytest.approx(large.loss_before, rel=1e-4)
    assert small.loss_after == pytest.approx(large.loss_after, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_an_ideal_chip_leaves_the_adapter_as_it_is(trained, task, method, dtype):
    deployment = deploy(trained(), "ideal", dtype=dtype).program(0)
    result = recalibrate(deployment, task, examples=16, method=method)
    assert not result.improved
    assert result.parameters == 0
    assert same_bits(bits(result.model), bits(deployment.model))


@pytest.mark.parametrize("method", METHODS)
def test_no_method_is_worse_on_the_held_out_examples(trained, task, method):
    deployment = deploy(trained(), "gaussian:0.15").program(1)
    result = recalibrate(deployment, task, examples=24, method=method)
    assert result.loss_after <= result.loss_before
    assert result.improved == (result.loss_after < result.loss_before) == (result.parameters > 0)
    assert result.examples_read > 24


@pytest.mark.parametrize("labels", [False, True])
def test_long_held_out_examples_are_computed_in_parts(trained, task, labels, monkeypatch):
    """The logits of a language model for all of them would take gigabytes."""
    deployment = deploy(trained(), "gaussian:0.1").program(3)
    settings = {"labels": True} if labels else {"hidden_weight": 0.0}
    settings |= {"examples": 48, "steps": 10, "batch_size": 2}
    whole = recalibrate(deployment, task, **settings)
    monkeypatch.setattr(fit_methods, "_HELD_OUT_TOKENS", 1)
    sizes = []
    # On the class, as a fit has a copy of the model.
    monkeypatch.setattr(
        type(deployment.model.get_base_model()), "forward", _sized(deployment.model, sizes)
    )
    parts = recalibrate(deployment, task, **settings)
    assert max(sizes[-24:]) == 1  # the twelve held out, for the first and the best parameters
    assert parts.examples_read == whole.examples_read
    assert parts.loss_before == pytest.approx(whole.loss_before, rel=1e-5)
    assert parts.loss_after == pytest.approx(whole.loss_after, rel=1e-5)


def _sized(model, sizes):
    """Return the forward of a model's class that keeps the number of examples of each call."""
    forward = type(model.get_base_model()).forward

    def sized(self, input_ids, **inputs):
        sizes.append(len(input_ids))
        return forward(self, input_ids, **inputs)

    return sized


def test_methods_are_those_that_the_command_line_knows():
    assert tuple(METHODS) == get_args(RefitMethod)


@pytest.mark.parametrize("seed", range(3))
def test_read_noise_is_no_reason_to_keep_an_adapter(trained, task, seed):
    """With so small a rate the smallest of several losses is that of the most favourable noise."""
    deployment = deploy(trained(), "rram-wan2022").program(seed).drift_to("1d")
    result = recalibrate(deployment, task, examples=16, steps=10, learning_rate=1e-12)
    assert not result.improved
    assert (result.parameters, result.loss_after) == (0, result.loss_before)


def test_the_report_states_the_settings_that_were_used(trained, task):
    deployment = deploy(trained(), "gaussian:0.1").program(0)
    result = recalibrate(deployment, task, examples=16, steps=2, backward="chip", seed=4)
    assert result.report()["settings"] == {
        "seed": 4, "groups": 32, "hidden_weight": 3.0, "backward": "chip", "steps": 2,
        "learning_rate": 0.01, "batch_size": 12,
    }  # fmt: skip
    result = recalibrate(deployment, task, examples=16, method="statistics", hidden_weight=0.5)
    assert result.settings == {"seed": 0, "groups": None, "hidden_weight": 0.5}


@pytest.mark.parametrize("method", ["least-squares", "statistics"])
@pytest.mark.parametrize("other", [{"form": "normalize"}, {"learn_shift": False}])
def test_other_kinds_of_grasp_are_recalibrated_by_the_gradient_alone(reader, task, method, other):
    config = GraspConfig(task_type="SEQ_CLS", groups=4, **other)
    deployment = deploy(get_peft_model(reader("bert"), config), "gaussian:0.1").program(0)
    with pytest.raises(ValueError, match="the form 'affine' with shifts: use 'gradient'"):
        recalibrate(deployment, task, examples=16, method=method)
    assert recalibrate(deployment, task, examples=16, steps=5).examples_read > 16


@pytest.mark.parametrize("labels", [False, True])
def test_words_are_replaced_unless_labels_are_learned(trained, task, labels):
    deployment = deploy(trained(), "gaussian:0.1").program(0)
    read = []
    layer = deployment.model.get_base_model().get_input_embeddings()
    handle = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    recalibrate(deployment, task, examples=16, steps=8, labels=labels)
    handle.remove()
    given = draw_examples(task, 16, deployment.model, 0)["input_ids"]
    known = {tuple(row[row != 0].tolist()) for row in given}
    rows = {tuple(row[row != 0].tolist()) for ids in read for row in ids}
    assert rows & known
    assert (rows <= known) == labels


def test_only_words_are_replaced(trained, task):
    model = trained()
    batch = draw_examples(task, 32, model, 0)
    vocabulary = vocabulary_of(task, model)
    changed = replace_tokens(batch, vocabulary, torch.Generator().manual_seed(0))
    special = torch.tensor(task.tokenizer_of(model).all_special_ids)
    before, after = batch["input_ids"], changed["input_ids"]
    kept = torch.isin(before, special)
    assert torch.equal(before[kept], after[kept])
    assert not torch.isin(after[~kept], special).any()
    assert 0.2 < (before != after)[~kept].float().mean() < 0.4
    assert torch.equal(changed["attention_mask"], batch["attention_mask"])


def test_no_word_is_new_to_the_model(trained, task):
    model = trained()
    tokenizer = copy.deepcopy(task.tokenizer_of(model))
    known = vocabulary_of(task, model)
    model.resize_token_embeddings(len(tokenizer))
    tokenizer.add_tokens([AddedToken("new"), AddedToken("[new]", special=True)])
    assert torch.equal(vocabulary_of(replace(task, tokenizer=tokenizer), model), known)
    model.resize_token_embeddings(len(tokenizer))
    found = vocabulary_of(replace(task, tokenizer=tokenizer), model)
    assert set(found.tolist()) - set(known.tolist()) == {tokenizer.convert_tokens_to_ids("new")}


def test_the_deployed_model_computes_as_before(trained, task, batch):
    model = trained()
    deployment = deploy(model, "pcm-hermes-2").program(0).drift_to("1y")
    with torch.no_grad():
        expected = deploy(model, "pcm-hermes-2").program(0).drift_to("1y").model(**batch).logits
        recalibrate(deployment, task, examples=16, steps=5)
        assert torch.equal(deployment.model(**batch).logits, expected)


@pytest.mark.parametrize("reduced", [True, False])
def test_the_gradient_is_that_of_the_target_weights(trained, monkeypatch, reduced):
    monkeypatch.setattr(weight_noise, "_multiplies_bfloat16", lambda: reduced)
    deployment = deploy(trained(), "gaussian:0.3").program(0)
    layer = next(iter(deployment.layers.values()))
    x = torch.randn(5, layer.in_features, requires_grad=True)
    with backward_through_targets([deployment]):
        y = layer(x)
        y.sum().backward()
    weight = layer.frozen.bfloat16().float() if reduced else layer.frozen
    tolerance = {"rtol": 2**-8, "atol": 1e-5} if reduced else {}
    torch.testing.assert_close(x.grad, weight.sum(0).expand(5, -1), **tolerance)
    exact = x.detach() @ layer.frozen.T
    assert (y.detach() - exact - (layer.bias if layer.bias is not None else 0)).abs().max() > 1e-3
    assert "forward" not in vars(layer)


def test_texts_need_no_labels_and_labels_are_used_where_asked(trained, task):
    deployment = deploy(trained(), "gaussian:0.1").program(3)
    result = recalibrate(deployment, TEXTS, examples=16, steps=30)
    assert result.improved
    assert not result.labels
    assert recalibrate(deployment, task, examples=32, labels=True, steps=30).labels


def test_examples_of_a_generation_task_have_a_prompt_each(llama_folder):
    prompts = [f"the {noun} {verb}" for noun in ("cat", "dog", "hill") for verb in ("sat", "ran")]
    rows = Dataset.from_dict(
        {"text": prompts, "references": [["on a mat", "on the hill", "a mat"]] * len(prompts)}
    )
    task = GenerationTask("where", rows, rows, metrics=("bleu",))
    batch = draw_examples(task, 5, load_base_model(task, str(llama_folder)), seed=0)
    assert count_of(batch) == 5
    drawn = {tuple(ids[ids != 0][:3].tolist()) for ids in batch["input_ids"]}
    assert len(drawn) == 5
    with pytest.raises(ValueError, match="examples is 7: from 2 to 6"):
        draw_examples(task, 7, load_base_model(task, str(llama_folder)), seed=0)


@pytest.mark.parametrize("name", ["target 0", "labels"])
def test_as_many_classes_as_tokens_are_not_cut_with_the_padding(name):
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    classes = torch.eye(4)[:2]
    batch = {"attention_mask": mask, "input_ids": mask, "target 1": torch.ones(2, 4, 3)}
    picked = pick(batch | {name: classes}, torch.tensor([0]))
    assert torch.equal(picked[name], classes[:1])
    assert picked["input_ids"].shape == (1, 2)
    assert picked["target 1"].shape == (1, 2, 3)
    # Labels of a language model are per token.
    assert pick(batch | {"labels": mask}, torch.tensor([0]))["labels"].shape == (1, 2)


@pytest.mark.parametrize("several", [False, True])
def test_a_model_with_as_many_classes_as_tokens_is_recalibrated(reader, several):
    texts = ["the good film is fine", "the bad book", "weak song", "great"] * 4
    labels = [[int(i % 5 == j) for j in range(5)] if several else i % 5 for i in range(16)]
    rows = Dataset.from_dict({"text": texts, "label": labels})
    metric = "f1" if several else "accuracy"
    task = SentenceTask("five", rows, rows, tuple("abcde"), metrics=(metric,))
    base = reader()
    task.configure(base.config)
    base.classifier, base.num_labels = nn.Linear(32, 5), 5
    deployment = deploy(adapt(base, "head"), "gaussian:0.1").program(0)
    settings = {"examples": 16, "steps": 3, "batch_size": 2}
    for labelled in (False, True):
        assert recalibrate(deployment, task, labels=labelled, **settings).examples_read > 16


def test_a_saved_adapter_loads_with_peft(trained, task, reader, tmp_path):
    deployment = deploy(trained(), "gaussian:0.1").program(3).drift_to("1d")
    result = recalibrate(deployment, task, examples=32, steps=30)
    assert result.improved
    result.save(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(reader("bert", dropout=False), tmp_path / "adapter")
    assert same_bits(bits(loaded), bits(result.model))
    report = json.loads((tmp_path / "adapter" / "recalibration.json").read_text())
    assert (report["device"], report["chip"], report["time_s"]) == ("gaussian:0.1", 3, 86400.0)


def test_more_groups_are_fitted_and_saved(trained, task, reader, tmp_path):
    deployment = deploy(trained(), "gaussian:0.1").program(3)
    result = recalibrate(deployment, task, examples=48, steps=40, learning_rate=1e-2)
    assert result.improved
    few = recalibrate(deployment, task, examples=48, steps=40, learning_rate=1e-2, groups=4)
    assert few.parameters < result.parameters / 3
    assert few.model.active_peft_config.groups == 4
    head = sum(p.numel() for n, p in adapter_parameters(result.model) if "modules_to_save" in n)
    layers = sum(isinstance(m, GraspLinear) for m in result.model.modules())
    assert result.parameters <= head + layers * 2 * 32
    assert result.parameters > head + layers * 2 * 4
    result.save(tmp_path)
    loaded = PeftModel.from_pretrained(reader("bert", dropout=False), tmp_path)
    assert same_bits(bits(loaded), bits(result.model))
    kept = recalibrate(deploy(trained(), "ideal").program(0), task, examples=8, steps=2, groups=32)
    assert kept.model.active_peft_config.groups == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"examples": 1}, "examples is 1: a whole number of at least 2"),
        ({"examples": 65}, "examples is 65"),
        ({"examples": 16, "batch_size": 32}, "batch_size is 32, but 12 of the 16"),
        ({"method": "gradients"}, "Unknown method 'gradients'. Did you mean 'gradient'"),
        ({"backward": "both"}, "Unknown backward 'both'"),
        ({"examples": 4.0}, r"examples is 4\.0: a whole number of at least 2"),
        ({"steps": 0}, "steps is 0: a whole number of at least 1"),
        ({"steps": 2.5}, r"steps is 2\.5: a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size is 0: a whole number of at least 1"),
        ({"hidden_weight": -0.1}, r"hidden_weight is -0\.1: a finite number from 0 on"),
        ({"hidden_weight": float("nan")}, "hidden_weight is nan"),
        ({"hidden_weight": 1.0, "labels": True}, r"hidden_weight is 1\.0, which has no effect"),
        ({"method": "statistics", "steps": 7}, "steps is 7, which has no effect on the method"),
        ({"method": "statistics", "backward": "chip"}, "backward is 'chip', which has no effect"),
        ({"method": "least-squares", "labels": True}, "labels is True, but .* digital layers"),
        ({"learning_rate": float("inf")}, "learning_rate is inf: a finite number above 0"),
        ({"groups": 6}, "groups is 6, which does not divide the adapter's 4 contiguous groups"),
        ({"groups": 2}, "groups is 2, which does not divide"),
        ({"groups": 64}, "groups is 64; for a layer of 32 input features"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0: a finite number above 0"),
    ],
)
def test_invalid_settings_raise_one_sentence(trained, task, settings, sentence):
    deployment = deploy(trained(), "ideal").program(0)
    with pytest.raises(ValueError, match=sentence):
        recalibrate(deployment, task, **settings)


def test_a_model_without_finite_outputs_is_not_recalibrated(trained, task):
    model = trained()
    model.base_model.model.classifier.bias.data.fill_(torch.nan)
    with pytest.raises(ValueError, match="loss on the held-out examples is nan before the fit"):
        recalibrate(deploy(model, "ideal").program(0), task, examples=8)


@pytest.mark.parametrize("followed", [True, False])
def test_the_target_is_the_adapter_as_trained(trained, task, batch, followed):
    """A fit matches the digital model with that adapter, whatever it begins with."""
    model = trained()
    digital = model(**batch).logits.detach()
    deployment = deploy(model, "ideal").program(0)
    other = own_copy(deployment, deployment.model)
    with torch.no_grad():
        for name, parameter in adapter_parameters(other):
            parameter.mul_(0.7 if "_scale" in name else 1)
    start = {}
    if followed:
        state = get_peft_model_state_dict(other, save_embedding_layers=False)
        AgeSchedule("ideal", model.active_peft_config, {0.0: state}).follow(deployment)
    else:
        start["start"] = other
    before = deployment.model if followed else other
    first = (before(**batch).logits - digital).norm()
    result = recalibrate(deployment, task, examples=48, steps=60, groups=4, **start)
    assert result.loss_after < 0.5 * result.loss_before
    assert (result.model(**batch).logits - digital).norm() < 0.5 * first
    again = recalibrate(deployment, task, examples=48, steps=1, start=result.model)
    assert again.loss_before == pytest.approx(result.loss_after, rel=1e-4)


def test_requests_that_cannot_be_met_raise_one_sentence(trained, reader, task):
    model = trained()
    with pytest.raises(ValueError, match=r"The model is not on this chip: deployment\.attach"):
        recalibrate(deploy(model, "ideal").program(0), task, start=model)
    with pytest.raises(ValueError, match=r"is on a chip.* by recalibrate"):
        train(deploy(model, "ideal").program(0).model, task)
    with pytest.raises(ValueError, match="not programmed: call program"):
        recalibrate(deploy(model, "ideal"), task)
    with pytest.raises(ValueError, match=r"The adapter is folded, .* with placement='digital'"):
        recalibrate(deploy(model, "ideal", placement="folded").program(0), task)
    with pytest.raises(ValueError, match=r"The adapter is programmed, .* placement='digital'"):
        recalibrate(deploy(model, "ideal", placement="programmed").program(0), task)
    with pytest.raises(ValueError, match="a BertForSequenceClassification, has no adapter"):
        recalibrate(deploy(reader(), "ideal").program(0), task)
    merged = deploy(model, "ideal").program(0)
    with merged.model.disable_adapter(), pytest.raises(ValueError, match="merged or disabled"):
        recalibrate(merged, task)
    with pytest.raises(ValueError, match="The deployment is a PeftModelForSequenceClassification"):
        recalibrate(model, task)
    for data, sentence in (
        ("good film", "The data are 'good film': a task"),
        (None, "The data are None: a task"),
        (["good"], "There are 1 examples to draw from: at least 2"),
        ([" "] * 16, "One of the texts is ' '"),
    ):
        with pytest.raises(ValueError, match=sentence):
            recalibrate(deploy(model, "ideal").program(0), data, examples=2)
    with pytest.raises(ValueError, match="texts have no labels"):
        recalibrate(deploy(model, "ideal").program(0), TEXTS, labels=True)
    lora = deploy(adapt(reader(), "lora"), DeviceCard.load("ideal")).program(0)
    with pytest.raises(ValueError, match="'statistics' is for GRASP and StochGRASP"):
        recalibrate(lora, task, method="statistics")
    with pytest.raises(ValueError, match=r"groups is 8, which has no effect on .*LORA"):
        recalibrate(lora, task, groups=8)
