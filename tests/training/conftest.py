"""Fixtures: a tiny word-level task and tiny models with its tokenizer."""

import pytest
from datasets import Dataset
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.pytorch_utils import Conv1D

from analog_grasp.adapters.config import GraspConfig, StochGraspConfig
from analog_grasp.tasks import SentenceTask

GOOD, BAD = ("good", "great", "fine", "bright"), ("bad", "poor", "dull", "weak")
NOUNS = ("film", "book", "play", "song", "meal", "hotel", "phone", "lamp")


@pytest.fixture(scope="session")
def task() -> SentenceTask:
    """Sixty-four sentences of two lengths, half of them good."""
    nouns = [noun if i % 2 else f"is the {noun}" for i, noun in enumerate(NOUNS)]
    rows = {
        "text": [f"{word} {noun}" for noun in nouns for word in (*GOOD, *BAD)],
        "label": [int(word in GOOD) for _ in NOUNS for word in (*GOOD, *BAD)],
    }
    return SentenceTask("words", Dataset.from_dict(rows), Dataset.from_dict(rows), ("bad", "good"))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    words = ["[PAD]", "[UNK]", "the", "is", *NOUNS, *GOOD, *BAD]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    # AutoTokenizer selects the tokenizer by the model type.
    (folder / "config.json").write_text('{"model_type": "bert"}')
    return folder


@pytest.fixture
def reader(make_model, tokenizer_folder):
    """Return a function that builds a tiny model with a tokenizer."""

    def build(architecture: str = "bert", dropout: bool = True) -> PreTrainedModel:
        model = make_model(architecture)
        model.config._name_or_path = model.name_or_path = str(tokenizer_folder)
        for module in model.modules():
            if isinstance(module, nn.Linear | Conv1D):
                # Initial weights are too small for the input to affect the logits.
                module.weight.data.mul_(5)
            if isinstance(module, nn.Dropout) and not dropout:
                module.p = 0.0
        return model

    return build


@pytest.fixture
def adapted(reader):
    """A tiny model with an adapter, ready to train on the tiny task."""

    def make(adapter="grasp", architecture="bert", dropout=True, **settings):
        kinds = {"grasp": GraspConfig, "stochgrasp": StochGraspConfig}
        config = kinds[adapter](task_type="SEQ_CLS", groups=4, **settings)
        return get_peft_model(reader(architecture, dropout), config)

    return make
