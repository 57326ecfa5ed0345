"""The recipes: each runs from training to page with a small model of its own architecture."""

import csv
import shutil
import sqlite3
import tomllib
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MobileBertConfig,
    MobileBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from analog_grasp.cli import main
from analog_grasp.study.config import resolve

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
WORDS = (
    "a",
    "fine",
    "film",
    "dull",
    "plot",
    "name",
    "eatType",
    "Zizzi",
    "pub",
    "is",
    "[",
    "]",
    ".",
)
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
ENCODER = {
    "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1,
    "max_position_embeddings": 70, "pad_token_id": 0,
}  # fmt: skip
DECODER = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
SMALL = {
    "google/mobilebert-uncased": (
        MobileBertForSequenceClassification,
        MobileBertConfig(**ENCODER, embedding_size=8, intra_bottleneck_size=8),
    ),
    "meta-llama/Llama-3.2-1B": (
        LlamaForCausalLM,
        LlamaConfig(**{**ENCODER, **DECODER}, tie_word_embeddings=True),
    ),
    "google-bert/bert-base-uncased": (BertForSequenceClassification, BertConfig(**ENCODER)),
    "FacebookAI/roberta-base": (RobertaForSequenceClassification, RobertaConfig(**ENCODER)),
    "FacebookAI/roberta-large": (RobertaForSequenceClassification, RobertaConfig(**ENCODER)),
    "openai-community/gpt2-medium": (
        GPT2LMHeadModel,
        GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=70, **DECODER),
    ),
}


def save_model(name: str, folder: Path) -> None:
    """Save a small model of random weights in place of one of the Hub, with a tokenizer."""
    kind, config = SMALL[name]
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
    ).save_pretrained(folder)  # fmt: skip
    config.vocab_size = len(vocabulary)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)


def save_data(task: str, folder: Path) -> Path:
    """Write a little data in the official layout of a task, and return what --data-dir takes."""
    if task == "lm":
        (folder / "text.txt").write_text(" ".join(WORDS) * 40)
        return folder / "text.txt"
    if task == "e2e":
        rows = [["mr", "ref"], *[["name[Zizzi], eatType[pub]", "Zizzi is a fine pub ."]] * 8]
        for name, count in (("trainset.csv", 9), ("testset_w_refs.csv", 3)):
            with (folder / name).open("w", newline="") as file:
                csv.writer(file).writerows(rows[:count])
        return folder
    (folder / "SST-2").mkdir()
    lines = ["sentence\tlabel", *(["a fine film .\t1", "a dull plot .\t0"] * 8)]
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2" / name).write_text("\n".join(lines) + "\n")
    return folder


def test_the_recipes_are_those_of_the_published_experiments():
    names = {path.stem for path in RECIPES}
    assert names == {
        "ahwa-lora", "analog-foundation-models", "rasch-2023", "grasp-roberta-base",
        "grasp-roberta-large", "grasp-gpt2-medium-e2e",
    }  # fmt: skip
    assert {tomllib.loads(path.read_text())["model"] for path in RECIPES} == SMALL.keys()


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_states_its_source_and_its_command(recipe):
    comment = recipe.read_text().partition("\nmodel = ")[0]
    assert f"analog-grasp compare --config recipes/{recipe.name}" in comment
    assert "arXiv" in comment or "Nature" in comment
    assert "This project's" in comment or "this project's" in comment
    resolve({}, recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_runs_from_training_to_page(recipe, tmp_path, capsys):
    stated = resolve({}, recipe)
    if stated.task.name == "e2e" and shutil.which("java") is None:
        pytest.skip("The metrics of the task e2e need Java.")
    for name in ("model", "data"):
        (tmp_path / name).mkdir()
    save_model(stated.model.name, tmp_path / "model")
    data = save_data(stated.task.name, tmp_path / "data")
    small = {
        "model": tmp_path / "model", "data-dir": data, "times": "0s", "repeats": 1, "groups": 4,
        "batch-size": 4, "epochs": 0.5, "max-length": 32, "workers": 1, "out": tmp_path / "run",
    }  # fmt: skip
    if stated.second_stage():
        small["then-steps"] = 2
    options = [part for name, value in small.items() for part in (f"--{name}", str(value))]
    assert main(["compare", "--config", str(recipe), *options]) == 0, capsys.readouterr().err
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as store:
        found = store.execute("select distinct adapter, device from measurements").fetchall()
    assert set(found) == {(a, d) for a in stated.model.adapters for d in stated.hardware.devices}
    assert (tmp_path / "run" / "report.html").is_file()
