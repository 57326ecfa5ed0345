import math
from dataclasses import replace

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from analog_grasp import compare, deploy, train
from analog_grasp.adapters.config import GraspConfig
from analog_grasp.study.checks import check_task
from analog_grasp.study.sections import TaskSettings
from analog_grasp.tasks import LanguageModelingTask, load_base_model, load_task
from analog_grasp.tasks.language_modeling import Likelihood, strided_windows
from analog_grasp.training.examples import draw_examples

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "a", "mat", "hill", "."]
RNG = np.random.default_rng(0)
TEXT = " ".join(RNG.choice(WORDS, 400))


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return replace(load_task("lm", path, max_length=16), stride=6)


@pytest.fixture
def model(llama_folder, task):
    return load_base_model(task, str(llama_folder))


def sliding(model, ids, window, stride):
    """Sum of the negative log-likelihoods in float64, and their number, one window at a time."""
    total, count, previous_end = 0.0, 0, 0
    wide = model.double()
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        inputs = torch.tensor([ids[begin:end]])
        with torch.no_grad():
            log_p = wide(inputs).logits[0].log_softmax(-1)
        for place in range(max(previous_end, begin + 1), end):
            total -= float(log_p[place - 1 - begin, ids[place]])
            count += 1
        previous_end = end
        if end == len(ids):
            break
    model.float()
    return total, count


@pytest.mark.parametrize(("window", "stride"), [(16, 6), (16, 16), (16, 1), (64, 32), (50, None)])
def test_perplexity_and_bits_per_byte_are_those_of_a_direct_computation(
    model, task, window, stride
):
    changed = replace(task, max_length=window, stride=stride)
    (text,) = changed.documents("validation")
    ids = task.tokenizer_of(model)(text)["input_ids"]
    total, count = sliding(model, ids, window, stride or window // 2)
    scores = changed.scores(model)
    assert scores["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    bits = total / count / math.log(2) * (len(ids) - 1) / len(text)
    assert scores["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    assert changed.evaluate(model) == scores["perplexity"]


def test_bits_per_byte_by_hand(task):
    # Four tokens of 1, 2, 3 and 2 bits; five tokens in a text of six bytes.
    nll = np.log(2) * np.array([1.0, 2.0, 3.0, 2.0])
    scores = task._score(Likelihood(nll, tokens=5, bytes=6), "validation")
    assert scores == pytest.approx({"perplexity": 4.0, "bits_per_byte": 10 / 6})


def test_bytes_are_those_of_utf8(model, task):
    rows = Dataset.from_dict({"text": ["the cat é", "a dog"]})
    found = replace(task, train=rows, validation=rows).predict(model)
    assert (found.tokens, found.bytes, len(found.nll)) == (5, 15, 5)


@pytest.mark.parametrize(
    ("count", "length", "stride", "expected"),
    [
        (1, 4, 2, []),
        (2, 4, 2, [(0, 2, 1)]),
        (4, 4, 2, [(0, 4, 3)]),
        (5, 4, 2, [(0, 4, 3), (2, 5, 1)]),
        (8, 4, 4, [(0, 4, 3), (4, 8, 3)]),
        # A last window of one token scores none.
        (9, 4, 4, [(0, 4, 3), (4, 8, 3)]),
        (4, 2, 1, [(0, 2, 1), (1, 3, 1), (2, 4, 1)]),
    ],
)
def test_windows_score_each_token_once(count, length, stride, expected):
    windows = strided_windows(range(count), length, stride)
    assert windows == [
        {"input_ids": list(range(low, high)), "scored": scored} for low, high, scored in expected
    ]


def test_the_batch_size_and_the_padding_do_not_change_the_scores(model, task):
    rows = Dataset.from_dict({"text": ["the cat sat on a mat .", TEXT[:300], "a dog"]})
    several = replace(task, validation=rows)
    alone = several.predict(model, batch_size=1).nll
    np.testing.assert_allclose(several.predict(model, batch_size=5).nll, alone, rtol=1e-4)


def test_the_virtual_tokens_of_a_prompt_are_not_scored(model, task):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapter = get_peft_model(model, prompt).eval()
    rows = Dataset.from_dict({"text": ["the cat sat on a mat ."]})
    found = replace(task, validation=rows).predict(adapter).nll
    ids = torch.tensor(task.tokenizer_of(model)(rows["text"][:])["input_ids"])
    with torch.no_grad():
        log_p = adapter(input_ids=ids).logits[0, 3:-1].log_softmax(-1)
    expected = -log_p.gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_training_examples_are_chunks_of_the_text(model, task):
    tokenizer = task.tokenizer_of(model)
    rows = task.encode("train", tokenizer, 16)
    # Two documents, before and after the passage that is measured, whose last chunks are short.
    assert sum(len(ids) < 16 for ids in rows["input_ids"]) <= 2
    assert rows["labels"][:] == rows["input_ids"][:]
    ids = [i for row in rows["input_ids"] for i in row]
    assert (
        tokenizer.decode([i for i in ids if i]).split() == " ".join(task.documents("train")).split()
    )


def test_an_adapter_reduces_the_perplexity(model, task):
    adapter = get_peft_model(model, GraspConfig(task_type="CAUSAL_LM", groups=4)).eval()
    before = task.evaluate(adapter, "train")
    train(adapter, task, epochs=6, batch_size=4, learning_rate=0.02)
    after = task.scores(adapter, "train")
    assert after["perplexity"] < 0.8 * before
    on_chip = task.scores(deploy(adapter, "ideal").program(0).model, "train")
    assert on_chip == pytest.approx(after, rel=1e-4)


def test_examples_for_recalibration_are_chunks(model, task):
    batch = draw_examples(task, 5, model, seed=0)
    assert batch["input_ids"].shape == (5, 16)
    assert not torch.equal(batch["input_ids"], draw_examples(task, 5, model, 1)["input_ids"])


def test_a_subset_joins_only_neighbouring_passages(task):
    rows = Dataset.from_dict({"text": ["a ", "b ", "c ", "d"], "position": [0, 1, 3, 5]})
    assert replace(task, validation=rows).documents("validation") == ["a b ", "c ", "d"]
    few = task.subset(train=3, seed=1)
    assert "".join(few.documents("train")) == "".join(few.train["text"])
    assert all(text in TEXT for text in few.documents("train"))
    assert few.stride == 6


def test_a_file_is_divided_by_position(task):
    (measured,), trained = task.documents("validation"), task.documents("train")
    assert len(measured) == pytest.approx(len(TEXT) / 10, rel=0.3)
    assert TEXT in (measured.join(trained), measured + trained[0], trained[0] + measured)


def test_a_folder_is_divided_by_documents_or_as_its_names_say(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02}.txt").write_text(f"{i} the cat\r\n")
    task = load_task("lm", tmp_path)
    assert (len(task.documents("train")), len(task.documents("validation"))) == (18, 2)
    again = load_task("lm", tmp_path)
    assert task.documents("validation") == again.documents("validation")
    assert task.documents("train")[0].endswith("cat\r\n")
    (tmp_path / "train.txt").write_text("the cat sat")
    (tmp_path / "validation.txt").write_text("the dog ran")
    with pytest.warns(UserWarning, match=r"its other files are not read: 00\.txt, 01\.txt"):
        named = load_task("lm", tmp_path)
    assert named.documents("train") == ["the cat sat"]
    assert named.documents("validation") == ["the dog ran"]


def test_a_data_set_keeps_its_splits_with_rows_joined_by_blank_lines(monkeypatch):
    splits = {
        "train": Dataset.from_dict({"text": ["the cat", "sat"]}),
        "validation": Dataset.from_dict({"text": ["no"]}),
        "test": Dataset.from_dict({"text": ["a dog"]}),
    }
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: asked.append(name) or splits)
    task = load_task("lm")
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    assert task.documents("train") == ["the cat\n\nsat"]
    assert task.documents("validation") == ["a dog"]
    splits["train"] = splits["train"].rename_column("text", "content")
    with pytest.raises(ValueError, match="has the columns content; it should have the column text"):
        load_task("lm", "mine/texts")


def test_an_unreachable_hub_raises_one_sentence(monkeypatch):
    def offline(*_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=r"data set mine/texts .* Hub.*\(--data-dir\)"):
        load_task("lm", "mine/texts")


def test_missing_and_empty_files_raise(tmp_path):
    for name in ("missing.txt", "mine/missing.txt", "/nowhere", "./texts"):
        with pytest.raises(FileNotFoundError, match="does not exist: give a text file"):
            check_task(TaskSettings(task="lm", data_dir=name))
    check_task(TaskSettings(task="lm", data_dir="mine/texts:2"))
    with pytest.raises(FileNotFoundError, match=r"finds no \.txt file"):
        load_task("lm", tmp_path)
    file = tmp_path / "text.txt"
    for content, message in (
        (b" \n", "is blank; it should contain text"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a b c", "has 5 characters, too few for a division"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load_task("lm", file)
    check_task(TaskSettings(task="lm", data_dir=str(file)))


def test_nan_raises_one_sentence(model, task):
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(ValueError, match=r"NaN or infinite logits for \d+ of \d+ tokens"):
        task.evaluate(model)


def test_an_enormous_loss_stays_finite(task):
    scores = task._score(Likelihood(np.array([5000.0]), 1, 1), "validation")
    assert scores["perplexity"] == math.exp(700)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 17}, "stride 17; it should be from 1 to max_length, 16"),
        ({"stride": 0}, "stride 0"),
        ({"metrics": ("accuracy",)}, "should be one or more of perplexity, bits_per_byte"),
        ({"metrics": ()}, "should be one or more of perplexity"),
        ({"train": Dataset.from_dict({"text": [" "]})}, "train rows .* are blank"),
        ({"validation": Dataset.from_dict({"body": ["a"]})}, "lack text"),
    ],
)
def test_invalid_tasks_raise(task, changes, message):
    with pytest.raises(ValueError, match=message):
        replace(task, **changes)


def test_too_short_documents_raise(model, task):
    rows = Dataset.from_dict({"text": ["cat"]})
    # A tokenizer without <s>, which leaves one token.
    core = Tokenizer.from_str(task.tokenizer_of(model).backend_tokenizer.to_str())
    core.post_processor = processors.Sequence([])
    plain = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<s>", unk_token="<unk>")
    short = replace(task, train=rows, validation=rows, tokenizer=plain)
    with pytest.raises(ValueError, match="no document of two tokens"):
        short.evaluate(model)
    with pytest.raises(ValueError, match="no document of two tokens"):
        short.training_rows(model, plain)
    # What cannot be measured is not trained.
    with pytest.raises(ValueError, match=r"validation rows .* no document of two tokens"):
        replace(task, validation=rows).training_rows(model, plain)


def test_a_stride_above_the_positions_of_the_model_raises(model, task):
    wide = replace(task, max_length=512, stride=100)
    message = (
        "has the stride 100, but the model has 64 positions; the stride should be from 1 to 64"
    )
    with pytest.raises(ValueError, match=message):
        wide.training_rows(model, wide.tokenizer_of(model))
    with pytest.raises(ValueError, match=message):
        wide.evaluate(model)
    assert replace(wide, stride=64).evaluate(model) > 1


def test_one_metric_needs_no_tuple(task):
    assert replace(task, metrics="bits_per_byte").metrics == ("bits_per_byte",)
    assert replace(task, metric="bits_per_byte").metrics == ("bits_per_byte", "perplexity")
    with pytest.raises(ValueError, match="should be one or more of perplexity"):
        replace(task, metric="accuracy")


def test_a_classifier_raises(task, model, bert):
    # Its vocabulary is larger than the tokenizer's.
    tokenizer = task.tokenizer_of(model)
    with pytest.raises(ValueError, match="BertForSequenceClassification predicts no tokens"):
        task.evaluate(bert, tokenizer=tokenizer)


def test_settings_of_the_command_line(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    settings = {"task": "lm", "data_dir": str(path), "max_length": 32, "stride": 8}
    task = TaskSettings(**settings).load()
    assert isinstance(task, LanguageModelingTask)
    assert (task.max_length, task.stride) == (32, 8)
    with pytest.raises(ValueError, match="stride is 8, but the task 'reviews' measures no"):
        TaskSettings(stride=8).load()
    with pytest.raises(ValueError, match="beams is 2, but the task 'lm' generates no text"):
        TaskSettings(task="lm", data_dir=str(path), beams=2).load()


def test_more_examples_than_the_text_has_chunks_raise_before_training(llama_folder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    given = {"task": "lm", "data_dir": str(path), "max_length": 32, "model": str(llama_folder)}
    with pytest.raises(ValueError, match=r"recalibrate is 100000, but the task lm has \d+ "):
        compare(tmp_path / "run", **given, groups=4, recalibrate=100_000)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_comparison_from_training_to_page(llama_folder, tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    results = compare(
        tmp_path / "run",
        task="lm",
        data_dir=str(path),
        model=str(llama_folder),
        adapters=("grasp", "lora"),
        devices=("pcm-hermes-2",),
        times=("0s", "1y"),
        repeats=2,
        epochs=0.5,
        groups=4,
        max_length=32,
        workers=1,
    )
    table = results.to_pandas()
    assert set(table["metric"]) == {"perplexity", "bits_per_byte"}
    assert len(table) == 2 * 2 * 2 * 2
    assert (table[table["metric"] == "perplexity"]["value"] > 1).all()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "perplexity" in page
    assert "perplexity (%)" not in page
    assert page.index("perplexity") < page.index("bits_per_byte")
