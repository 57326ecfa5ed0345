"""A tiny model and a tiny task in files, so that a whole command takes seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from analog_grasp.cli import main

torch.set_num_threads(1)

GOOD = ("fine", "superb", "lovely", "bright")
NOUNS = ("film", "plot", "song", "scene")
BAD = ("dull", "awful", "dreary", "poor")


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a command."""

    status: int
    out: str
    err: str


@pytest.fixture
def ag(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs a command in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ended(status, *capsys.readouterr())

    return run


@pytest.fixture
def error_of(ag) -> Callable[..., str]:
    """Runs a command that asks for the impossible, and returns the one sentence it gets."""

    def run(*arguments: object) -> str:
        ended = ag(*arguments)
        assert ended.status == 2
        assert ended.out == ""
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        assert line.endswith((".", "?"))
        return line

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A BERT of random weights with a WordPiece tokenizer, as save_pretrained leaves them."""
    folder = tmp_path_factory.mktemp("model")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", ".", *NOUNS, *GOOD, *BAD]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        # Wide enough for a model of random weights to distinguish words.
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """Sentences in the official layout of SST-2."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "SST-2").mkdir()
    rows = [f"{word} {noun} .\t{int(word in GOOD)}" for word in (*GOOD, *BAD) for noun in NOUNS]
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2" / name).write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny(model_folder, data_dir) -> list[str]:
    """The options that name the tiny model and task."""
    return ["--model", str(model_folder), "--task", "glue/sst2", "--data-dir", str(data_dir)]


@pytest.fixture(scope="session")
def small_run(tiny) -> list[str]:
    """A comparison of 8 cells."""
    return [
        "compare", *tiny, "--groups", "4", "--epochs", "3", "--then", "none", "--batch-size", "8",
        "--devices", "pcm-hermes-2", "--times", "0s,1d", "--repeats", "2",
    ]  # fmt: skip


@pytest.fixture(scope="session")
def finished(small_run, tmp_path_factory) -> Path:
    """The folder of that comparison."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*small_run, "--out", str(folder)]) == 0
    return folder
