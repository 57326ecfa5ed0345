"""A small GPT-2 trained from scratch on E2E text, for `e2e/dev` without the Hub.

It is trained on whole examples (prompt and reference), with the slots of each prompt in random
order: those of the test set, which `e2e/dev` does not use, and the training rows of `e2e/dev`. The
rows that `e2e/dev` measures are excluded. Prints the folder of the model, which is cached.

    python benchmarks/e2e_model.py --data-dir path/to/e2e

It takes about ten minutes on 2 cores. Then

    analog-grasp compare --task e2e/dev --data-dir path/to/e2e --model FOLDER
"""

import argparse
import hashlib
import random
import shutil
from functools import partial
from pathlib import Path

import platformdirs
import torch
from datasets import concatenate_datasets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BatchEncoding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from analog_grasp.tasks import GenerationTask, load_task
from analog_grasp.tasks.e2e import official_file

END = "<|endoftext|>"
LEARNED = ("devset.csv", "testset_w_refs.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help=f"with {', '.join(LEARNED)}")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=platformdirs.user_cache_path("analog-grasp"))
    print(model_folder(parser.parse_args()))


def model_folder(asked: argparse.Namespace) -> Path:
    """Return the folder of the trained model; train the model if it is not cached."""
    folder = asked.cache / f"e2e-gpt2-{_name(asked)}"
    if not folder.is_dir():
        rows = _rows(asked.data_dir)
        tokenizer = _tokenizer(rows, asked.vocabulary)
        model = _trained(rows, tokenizer, asked)
        # Renamed at the end, so that an interrupted training leaves no incomplete model.
        part = folder.with_suffix(".part")
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        shutil.move(part, folder)
    return folder


def _name(asked: argparse.Namespace) -> str:
    """Return a hash of the settings, the data and this script."""
    digest = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=6)
    for file in LEARNED:
        digest.update((asked.data_dir / file).read_bytes())
    settings = (asked.epochs, asked.width, asked.layers, asked.vocabulary, asked.seed)
    digest.update(repr(settings).encode())
    return digest.hexdigest()


def _rows(data_dir: Path) -> GenerationTask:
    """Return one row per reference, with the slots of its prompt in random order."""
    seen = load_task("e2e/dev", data_dir).train
    rows = concatenate_datasets([seen, official_file(data_dir / LEARNED[1])])
    order = random.Random(0)

    def shuffled(text: str) -> str:
        slots = text.split(" | ")
        return " | ".join(order.sample(slots, len(slots)))

    pairs = [(shuffled(row["text"]), [text]) for row in rows for text in row["references"]]
    columns = dict(zip(("text", "references"), zip(*pairs, strict=True), strict=True))
    every = rows.from_dict({name: list(values) for name, values in columns.items()})
    return GenerationTask("e2e text", every, every, metrics=("bleu",))


def _tokenizer(rows: GenerationTask, size: int) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    texts = [*rows.train["text"], *(text for texts in rows.references("train") for text in texts)]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)


def _trained(
    rows: GenerationTask, tokenizer: PreTrainedTokenizerFast, asked: argparse.Namespace
) -> GPT2LMHeadModel:
    torch.manual_seed(asked.seed)
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=asked.width,
        n_layer=asked.layers,
        n_head=4,
        n_positions=256,
        bos_token_id=end,
        eos_token_id=end,
    )
    model = GPT2LMHeadModel(config)
    settings = TrainingArguments(
        output_dir=str(asked.cache / "unused"),
        num_train_epochs=asked.epochs,
        per_device_train_batch_size=32,
        learning_rate=2e-3,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        weight_decay=0.01,
        train_sampling_strategy="group_by_length",
        save_strategy="no",
        report_to="none",
        logging_steps=50,
        seed=asked.seed,
        dataloader_pin_memory=False,
    )
    Trainer(
        model=model,
        args=settings,
        train_dataset=rows.encode("train", tokenizer),
        data_collator=partial(_whole_examples, tokenizer=tokenizer),
    ).train()
    return model


def _whole_examples(examples: list[dict], tokenizer: PreTrainedTokenizerFast) -> BatchEncoding:
    """Return a batch with the loss on all tokens except padding (also an end-of-text token)."""
    ids = [{"input_ids": row["input_ids"]} for row in examples]
    batch = tokenizer.pad(ids, padding_side="right", return_tensors="pt")
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


if __name__ == "__main__":
    main()
