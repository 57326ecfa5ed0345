import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from analog_grasp.tasks import Task, builtin

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def glue_dir():
    """The official GLUE files, which are not ours to hand on."""
    beside = Path(__file__).parents[3] / "shared" / "glue"
    folder = Path(os.environ.get("ANALOG_GRASP_GLUE", beside))
    if not folder.is_dir():
        pytest.skip(f"no GLUE files in {folder}; set ANALOG_GRASP_GLUE to their folder")
    return folder


@pytest.fixture(scope="session")
def small_reviews() -> Task:
    return builtin.reviews(train=64, validation=50)


@pytest.fixture(scope="session")
def word_tokenizer(small_reviews):
    """Makes tokenizers of whole words that know the reviews' own, with given special tokens."""
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
    """A tiny BERT of random weights, with its tokenizer, as save_pretrained leaves it."""
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
