import csv
import os
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from analog_grasp.tasks import GenerationTask, SentenceTask
from analog_grasp.tasks.e2e import linearised
from analog_grasp.tasks.reviews import reviews as generate_reviews

torch.set_num_threads(1)


def official(name):
    """Return the folder of official files, which this project does not distribute."""
    variable, default = f"ANALOG_GRASP_{name}", Path(__file__).parents[3] / "shared" / name.lower()
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no {name} files in {folder}; set {variable} to their folder")
    return folder


@pytest.fixture(scope="session")
def glue_dir():
    return official("GLUE")


@pytest.fixture(scope="session")
def e2e_dir():
    return official("E2E")


@pytest.fixture(scope="session")
def small_reviews() -> SentenceTask:
    return generate_reviews(train=64, validation=50)


@pytest.fixture(scope="session")
def word_tokenizer(small_reviews):
    """Function that makes tokenizers of the words of the reviews with given special tokens."""
    texts = small_reviews.train["text"][:]
    words = sorted({word for text in texts for word in text.rstrip(".").split()})

    def make(**special: str) -> PreTrainedTokenizerFast:
        names = [*special.values(), "[UNK]", ".", ",", *words]
        vocabulary = {word: index for index, word in enumerate(names)}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **special)

    return make


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, word_tokenizer) -> Path:
    """Folder of a tiny BERT with random weights and its tokenizer, written by save_pretrained."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    tokenizer = word_tokenizer(pad_token="[PAD]")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=3,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


MEANINGS = {
    "name[Zizzi], area[riverside]": ["Zizzi is by the river.", "By the river there is Zizzi."],
    "name[Zizzi], eatType[pub]": ["Zizzi is a pub.", "The pub Zizzi.", "A pub called Zizzi."],
    "name[Blue Spice], eatType[pub]": ["Blue Spice is a pub.", "Blue Spice, a pub."],
    "name[Blue Spice], area[riverside]": ["Blue Spice is by the river."],
    "name[Café Rouge], priceRange[more than £30]": ["Café Rouge costs more than £30."],
    "name[Café Rouge], area[riverside]": ["Café Rouge is by the river."],
}


@pytest.fixture(scope="session")
def e2e_references(e2e_dir):
    """Function that returns the references of an official E2E file by meaning representation."""

    def read(file: str) -> list[list[str]]:
        groups: dict[str, list[str]] = {}
        with (e2e_dir / file).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                groups.setdefault(row["mr"], []).append(row["ref"])
        return [*groups.values()]

    return read


@pytest.fixture(scope="session")
def restaurants() -> GenerationTask:
    """Task of six prompts with one to three references."""
    rows = Dataset.from_dict(
        {"text": [linearised(meaning) for meaning in MEANINGS], "references": [*MEANINGS.values()]}
    )
    return GenerationTask("restaurants", rows, rows, max_new_tokens=12, beams=3)


@pytest.fixture(scope="session")
def writer_folder(tmp_path_factory) -> Path:
    """Folder of a tiny GPT-2 with random weights and a byte tokenizer, from save_pretrained."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [*MEANINGS, *(text for texts in MEANINGS.values() for text in texts)]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|endoftext|>")
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=128,
        bos_token_id=end,
        eos_token_id=end,
        # With the usual small weights the output would hardly depend on the prompt.
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
