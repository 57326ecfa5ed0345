import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn

from analog_grasp import DeviceCard, deploy, recalibrate, train
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.tasks import GenerationTask, load_base_model, tokenizer_for

ROWS = Dataset.from_dict({"text": ["a : b"], "references": [["b", "b."]]})


@pytest.fixture
def model(writer_folder, restaurants):
    return load_base_model(restaurants, str(writer_folder))


def adapted(model, config=GraspConfig):
    return get_peft_model(model, config(task_type="CAUSAL_LM", groups=4))


def test_each_reference_is_an_example_with_the_loss_on_the_reference_only(model, restaurants):
    tokenizer = tokenizer_for(model)
    encoded = restaurants.encode("train", tokenizer)
    references = [text for texts in restaurants.references("train") for text in texts]
    assert len(encoded) == len(references) == 10
    for row, text in zip(encoded, references, strict=True):
        learned = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(learned) == f" {text}<|endoftext|>"
        assert row["input_ids"][-len(learned) :] == learned
        prompt = row["input_ids"][: -len(learned)]
        assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    assert tokenizer.decode(prompt) == "name : Café Rouge | area : riverside<|endoftext|>"


def test_long_examples_are_cut(model, restaurants):
    encoded = restaurants.encode("train", tokenizer_for(model), max_length=5)
    assert {len(ids) for column in ("input_ids", "labels") for ids in encoded[column]} == {5}


def test_prompts_and_examples_are_cut_to_the_positions_of_the_model(model, restaurants):
    long = Dataset.from_dict(
        {"text": ["name : Zizzi | " * 60, "name : Zizzi"], "references": [["Zizzi."], ["Zizzi."]]}
    )
    task = replace(restaurants, train=long, validation=long, max_new_tokens=20)
    tokenizer = tokenizer_for(model)
    assert len(tokenizer(long["text"][0])["input_ids"]) > 128
    assert max(map(len, task.training_rows(model, tokenizer)["input_ids"])) == 128
    texts = task.predict(model)
    assert len(texts) == 2
    assert texts[1] == replace(task, validation=long.select([1])).predict(model)[0]
    # With more new tokens than positions, the text is shorter.
    assert len(replace(task, max_new_tokens=500, beams=1).predict(model)) == 2


def words(outputs, references):
    return sum(len(text.split()) for text in outputs) / len(references)


def test_a_function_is_a_metric(model, restaurants):
    task = replace(restaurants, metrics=(words, "nist")).subset(validation=3)
    texts = task.predict(model)
    scores = task.scores(model)
    assert list(scores) == ["words", "nist"]
    assert scores["words"] == sum(len(text.split()) for text in texts) / 3


def test_the_loss_ignores_prompt_and_padding(model, restaurants):
    tokenizer = tokenizer_for(model)
    encoded = restaurants.encode("train", tokenizer)
    batch = restaurants.collator(tokenizer)([dict(encoded[i]) for i in (0, 8)])
    with torch.no_grad():
        output = model.eval()(**batch)
        alone = [
            model(**restaurants.collator(tokenizer)([dict(encoded[i])])).loss.item() for i in (0, 8)
        ]
    learned = [sum(label != -100 for label in encoded[i]["labels"]) for i in (0, 8)]
    mean = sum(a * n for a, n in zip(alone, learned, strict=True)) / sum(learned)
    assert output.loss.item() == pytest.approx(mean, rel=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_in_the_order_of_the_rows(model, restaurants, beams):
    task = replace(restaurants, beams=beams)
    texts = task.predict(model, batch_size=2)
    assert len(texts) == 6
    # Each prompt alone, without padding, with transformers' own search.
    tokenizer = tokenizer_for(model)
    plain = replace(task, no_repeat_ngram=0)
    for row, text in zip(task.validation, plain.predict(model), strict=True):
        ids = [*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]
        written = model.generate(
            torch.tensor([ids]), num_beams=beams, length_penalty=0.9, max_new_tokens=12,
            do_sample=False, attention_mask=torch.ones(1, len(ids)), pad_token_id=0,
        )  # fmt: skip
        expected = tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)
        assert text == " ".join(expected.split())


def test_no_repeated_ngram_in_a_text_except_those_of_the_prompt(model, restaurants):
    tokenizer = tokenizer_for(model)
    # A model that repeats a word of its prompt.
    task = replace(restaurants, beams=1, no_repeat_ngram=2, max_new_tokens=8)
    model.lm_head = Repeats(tokenizer)
    ids = [tokenizer(f" {text}")["input_ids"] for text in task.predict(model)]
    for text in ids:
        pairs = list(itertools.pairwise(text))
        assert len(pairs) == len(set(pairs))
    free = replace(task, no_repeat_ngram=0).predict(model)
    assert free[0] == "Zizzi Zizzi Zizzi Zizzi Zizzi Zizzi Zizzi Zizzi"


class Repeats(nn.Module):
    """A head that prefers one word for any input."""

    def __init__(self, tokenizer):
        super().__init__()
        self.scores = torch.arange(len(tokenizer)).float().neg()
        (word,) = tokenizer(" Zizzi")["input_ids"][-1:]
        self.scores[word] = 100.0

    def forward(self, hidden):
        return self.scores.expand(*hidden.shape[:-1], -1)


def test_scores_are_those_of_the_generated_texts(model, restaurants):
    scores = restaurants.scores(model)
    assert list(scores) == ["bleu", "nist"]
    assert restaurants.evaluate(model) == scores["bleu"]
    assert all(math.isfinite(value) and value >= 0 for value in scores.values())


def test_perfect_texts_have_bleu_one(restaurants):
    firsts = iter([texts[0] for texts in restaurants.references()])
    task = copy.copy(restaurants)
    task.predict = lambda *_: list(firsts)
    assert task.scores(nn.Identity())["bleu"] == pytest.approx(1.0)


def test_predict_restores_the_mode_of_the_model(model, restaurants):
    model.train()
    first = restaurants.predict(model)
    assert model.training
    assert model.transformer.drop.training
    assert restaurants.predict(model) == first


def test_nan_raises(model, restaurants):
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        restaurants.evaluate(model)


def test_a_model_that_cannot_generate_raises(model, restaurants):
    with pytest.raises(ValueError, match="Linear cannot generate text"):
        restaurants.evaluate(nn.Linear(2, 2), tokenizer=tokenizer_for(model))


def test_a_tokenizer_without_an_end_raises(model, restaurants):
    tokenizer = copy.deepcopy(tokenizer_for(model))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no end-of-text token"):
        restaurants.encode("train", tokenizer)


def test_a_subset_keeps_the_references_of_a_prompt_together(restaurants):
    part = restaurants.subset(train=2, seed=1)
    assert isinstance(part, GenerationTask)
    assert (part.beams, len(part.train), len(part.validation)) == (3, 2, 6)
    known = dict(zip(restaurants.train["text"], restaurants.references("train"), strict=True))
    assert all(known[row["text"]] == row["references"] for row in part.train)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metrics": ("accuracy",)}, "should be one or more of bleu, nist, meteor"),
        ({"metrics": ()}, "should be one or more of"),
        ({"train": ROWS.remove_columns("references")}, "train rows .* lack references"),
        ({"validation": ROWS.select([])}, "no validation rows"),
        ({"train": Dataset.from_dict({"text": ["a"], "references": [[]]})}, "Row 0 .* reference"),
    ],
)
def test_invalid_tasks_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        GenerationTask(**({"name": "mine", "train": ROWS, "validation": ROWS} | arguments))


@pytest.mark.parametrize("config", [GraspConfig, StochGraspConfig])
def test_an_adapter_reduces_the_loss(model, restaurants, config):
    adapter = adapted(model, config)
    frozen = {n: p.clone() for n, p in adapter.named_parameters() if not p.requires_grad}

    def loss():
        tokenizer = tokenizer_for(adapter)
        rows = [dict(row) for row in restaurants.encode("train", tokenizer)]
        with torch.no_grad():
            return adapter(**restaurants.collator(tokenizer)(rows)).loss.item()

    adapter.eval()
    before = loss()
    train(adapter, restaurants, injection=0.02, epochs=8, batch_size=4, learning_rate=0.05)
    assert loss() < 0.9 * before
    assert all(torch.equal(p, frozen[n]) for n, p in adapter.named_parameters() if n in frozen)


def test_texts_on_an_ideal_chip_are_the_digital_ones(model, restaurants):
    adapter = adapted(model)
    train(adapter, restaurants, epochs=4, batch_size=4, learning_rate=0.05)
    expected = restaurants.predict(adapter)
    for placement in ("digital", "folded"):
        deployment = deploy(adapter, DeviceCard.load("ideal"), placement=placement).program(seed=0)
        assert restaurants.predict(deployment.model) == expected


def test_the_key_value_cache_does_not_change_the_texts_on_a_chip(model, restaurants):
    # Programmed and drifted weights, without the noise that each read draws.
    card = DeviceCard.load("pcm-hermes-2")
    deployment = deploy(adapted(model), card, converters=False).program(seed=0).drift_to("1d")
    with_cache = restaurants.predict(deployment.model)
    deployment.model.generation_config.use_cache = False
    assert restaurants.predict(deployment.model) == with_cache


def test_a_chip_repeats_its_texts_without_changing_the_random_state(model, restaurants):
    deployment = deploy(adapted(model), DeviceCard.load("pcm-hermes-2"))

    def written(time, draws):
        deployment.program(seed=3).drift_to(time)
        torch.rand(draws)
        state = torch.get_rng_state()
        texts = restaurants.predict(deployment.model)
        assert torch.equal(torch.get_rng_state(), state)
        return texts

    first = written("1d", 1)
    assert written("10y", 5) != first
    assert written("1d", 7) == first


@pytest.mark.parametrize("labels", [False, True])
def test_an_adapter_is_recalibrated_on_generated_text(model, restaurants, labels):
    adapter = adapted(model)
    train(adapter, restaurants, epochs=3, batch_size=4)
    deployment = deploy(adapter, "gaussian:0.1").program(1)
    # Three prompts with several references each.
    settings = {"examples": 3, "labels": labels, "steps": 30, "learning_rate": 5e-3}
    result = recalibrate(deployment, restaurants, **settings)
    assert result.improved
    assert 0 < result.loss_after < result.loss_before
    assert len(restaurants.predict(result.model)) == len(restaurants.validation)


def test_a_writer_is_trained_in_two_stages(model, restaurants):
    adapter = adapted(model)
    train(adapter, restaurants, epochs=1, batch_size=4, then="pcm-hermes-2@0s..1y", then_steps=4)
    first = adapted(load_base_model(restaurants, model.name_or_path))
    train(first, restaurants, epochs=1, batch_size=4)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(adapter.parameters(), first.parameters(), strict=True)
    )
