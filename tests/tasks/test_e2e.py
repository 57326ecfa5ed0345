"""Data of the E2E NLG Challenge, and text generation."""

import copy
import itertools
import math
from dataclasses import replace

import datasets
import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from torch import nn

from analog_grasp import DeviceCard, deploy, recalibrate, train
from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.tasks import GenerationTask, load_base_model, load_task, tokenizer_for
from analog_grasp.tasks.e2e import linearised
from analog_grasp.tasks.metrics import missing_java

TRAIN = 'mr,ref\n"name[Zizzi], area[riverside]","Zizzi, by the river."\n'
TEST = '"mr","ref"\n"name[Aromi]","Aromi ""is"" here."\n"name[Zizzi]","b"\n"name[Aromi]","c"\n'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "trainset.csv").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "testset_w_refs.csv").write_text(TEST, encoding="utf-8-sig")
    return tmp_path


def test_references_are_grouped_by_meaning(folder):
    task = load_task("e2e", folder)
    assert task.train[0] == {
        "text": "name : Zizzi | area : riverside",
        "references": ["Zizzi, by the river."],
    }
    assert task.validation.to_list() == [
        {"text": "name : Aromi", "references": ['Aromi "is" here.', "c"]},
        {"text": "name : Zizzi", "references": ["b"]},
    ]


@pytest.mark.skipif(missing_java() is not None, reason="no Java")
def test_all_metrics_of_the_challenge(folder):
    assert load_task("e2e", folder).metrics == ("bleu", "nist", "meteor", "rouge_l", "cider")


def test_metrics_that_cannot_be_computed_are_omitted_with_a_warning(folder, monkeypatch):
    monkeypatch.setattr("analog_grasp.tasks.e2e.missing_java", lambda: "there is no java")
    with pytest.warns(UserWarning, match="without meteor, rouge_l, cider: there is no java"):
        task = load_task("e2e", folder)
    assert task.metrics == ("bleu", "nist")


def test_metrics_that_cannot_be_computed_raise_before_the_training(folder, monkeypatch):
    monkeypatch.setattr("analog_grasp.tasks.e2e.missing_java", lambda: "there is no java")
    with pytest.warns(UserWarning, match="without meteor"):
        task = load_task("e2e", folder)
    with pytest.raises(ValueError, match=r"metrics meteor of the task 'e2e' cannot .* is no java"):
        replace(task, metric="meteor")


def test_the_missing_training_set_is_named_with_its_first_line(folder):
    (folder / "trainset.csv").rename(folder / "devset.csv")
    with pytest.raises(FileNotFoundError) as caught:
        load_task("e2e", folder)
    message = str(caught.value)
    assert "'e2e' finds no trainset.csv in" in message
    assert "a first line of mr,ref" in message
    assert "the task 'e2e/dev' uses devset.csv alone" in message


def test_both_files_may_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no trainset\.csv and no testset_w_refs\.csv"):
        load_task("e2e", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"no devset\.csv .* should contain devset\.csv, CSV"
    ):
        load_task("e2e/dev", tmp_path)


def test_every_fifth_meaning_of_the_development_set_is_measured(tmp_path):
    rows = [f"name[{i}],{i} {end}" for i in range(11) for end in "ab"]
    (tmp_path / "devset.csv").write_text("\n".join(["mr,ref", *rows]))
    task = load_task("e2e/dev", tmp_path)
    assert task.validation["text"][:] == ["name : 4", "name : 9"]
    assert task.train["text"][:] == [f"name : {i}" for i in range(11) if i not in (4, 9)]
    assert task.references() == [["4 a", "4 b"], ["9 a", "9 b"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"first line of .*testset_w_refs\.csv is ''; it should be mr,ref"),
        ("ref,mr\na,b\n", "is 'ref,mr'; it should be mr,ref"),
        ("mr,ref\n", "has no rows"),
        ("mr,ref\na,b\na,b,c\n", "Line 3 of .* has 3 columns"),
        ("mr,ref\nname[a],\n", "Line 2 of .* or an empty one"),
        ('mr,ref\n"a,b\n', "Line 2 of .* is not valid CSV"),
    ],
)
def test_errors_name_the_file_and_the_line(folder, content, message):
    (folder / "testset_w_refs.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_task("e2e", folder)


def test_other_encodings_raise(folder):
    (folder / "trainset.csv").write_bytes(TRAIN.encode("utf-16"))
    with pytest.raises(ValueError, match=r"trainset\.csv is not UTF-8"):
        load_task("e2e", folder)


def test_the_official_development_set(e2e_dir):
    task = load_task("e2e/dev", e2e_dir)
    assert (len(task.train), len(task.validation)) == (438, 109)
    assert sum(map(len, task.references("train") + task.references())) == 4672
    assert task.train["text"][0] == "name : Alimentum | area : city centre | familyFriendly : no"
    assert not set(task.train["text"]) & set(task.validation["text"])


def test_without_a_folder_the_hub_is_used(monkeypatch):
    rows = Dataset.from_dict(
        {"meaning_representation": ["name[a]", "name[a]"], "human_reference": ["x", "y"]}
    )
    asked = []

    def load_dataset(path, revision):
        asked.append((path, revision))
        return {"train": rows, "validation": rows, "test": rows.select([0])}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("e2e")
    assert asked == [("tuetschek/e2e_nlg", "refs/convert/parquet")]
    assert (task.references("train"), task.references()) == ([["x", "y"]], [["x"]])


def test_an_unreachable_hub_points_to_the_data_folder(monkeypatch):
    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"Hub.*--data-dir.* trainset\.csv and testset"):
        load_task("e2e")


def test_odd_meanings():
    assert linearised(" name[The, Inn] ,area[]") == "name : The, Inn | area :"


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
    assert max(map(len, task.encode("train", tokenizer, task.length_for(model))["labels"])) == 128
    texts = task.predict(model)
    assert len(texts) == 2
    assert texts[1] == replace(task, validation=long.select([1])).predict(model)[0]
    # With more new tokens than positions, the text is shorter.
    assert len(replace(task, max_new_tokens=500, beams=1).predict(model)) == 2


def test_prompts_that_leave_no_reference_are_not_trained_on(model, restaurants):
    rows = Dataset.from_dict(
        {"text": ["name : Zizzi | " * 60, "name : Zizzi"], "references": [["Zizzi."], ["Zizzi."]]}
    )
    task, tokenizer = replace(restaurants, train=rows), tokenizer_for(model)
    with pytest.warns(UserWarning, match="1 of the 2 training examples .* they are skipped"):
        kept = task.training_rows(model, tokenizer)
    assert (
        kept.to_list()
        == replace(task, train=rows.select([1])).training_rows(model, tokenizer).to_list()
    )
    with pytest.raises(ValueError, match=r"1 of the 1 training examples .* a larger max_length"):
        train(adapted(model), replace(task, train=rows.select([0])), epochs=1)


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
