"""Small real architectures from random weights, shared by all tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Triton, which transformers imports, reads it as it is imported: the kernels for GPUs are then
    # interpreted on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

_WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}

CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**_WIDTH, intermediate_size=70, vocab_size=50),
    "roberta": lambda: RobertaConfig(**_WIDTH, intermediate_size=70, vocab_size=50),
    "gpt2": lambda: GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        vocab_size=50,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


def build(architecture: str, seed: int = 0) -> PreTrainedModel:
    """A two-layer classifier of an architecture, its weights drawn from a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(CONFIGS[architecture]())
        # Freshly made biases are all 0, under which an error in the bias would not show.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(params=sorted(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build(request.param)


@pytest.fixture
def bert() -> PreTrainedModel:
    return build("bert")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT, as save_pretrained leaves it, that reads with the built-in model's tokenizer."""
    # Here, so that the tests of devices and layers do without tasks.
    from analog_grasp.tasks.models import model_source
    from analog_grasp.utils.types import DEFAULT_MODEL

    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(model_source(DEFAULT_MODEL))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, as save_pretrained leaves it, with a tokenizer of a few words that adds <s>."""
    folder = tmp_path_factory.mktemp("llama")
    names = ["<s>", "<unk>", "the", "cat", "dog", "sat", "ran", "on", "a", "mat", "hill", "."]
    core = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<s>", unk_token="<unk>"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 50, (4, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    return build
