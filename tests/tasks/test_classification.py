import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from analog_grasp.tasks import SentenceTask, load_base_model, tokenizer_for

ROWS = Dataset.from_dict({"text": ["Awful.", "Superb.", "Bad."], "label": [0, 1, 0]})
NAMES = ("negative", "positive")


@pytest.fixture
def model(tiny_folder, small_reviews):
    return load_base_model(small_reviews, str(tiny_folder))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_logits_come_in_the_order_of_the_rows(model, small_reviews, batch_size):
    tokenizer = tokenizer_for(model)
    logits = small_reviews.predict(model, batch_size=batch_size)
    assert logits.shape == (50, 2)
    assert logits.dtype == np.float32
    for index in (0, 17, 49):
        one = tokenizer(small_reviews.validation[index]["text"], return_tensors="pt")
        with torch.no_grad():
            expected = model.eval()(**one).logits[0].numpy()
        np.testing.assert_allclose(logits[index], expected, atol=1e-5)


def test_the_model_is_given_back_as_it_was(model, small_reviews):
    model.train()
    model.bert.embeddings.eval()
    first = small_reviews.predict(model)
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.embeddings.training
    # Dropout would make these differ.
    np.testing.assert_array_equal(first, small_reviews.predict(model))


def test_the_mode_comes_back_after_a_failure(model, small_reviews):
    model.train()
    model.classifier.forward = None
    with pytest.raises(TypeError):
        small_reviews.predict(model)
    assert model.training


def test_a_peft_model_is_measured_like_its_base(model, small_reviews):
    base = small_reviews.predict(model)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"))
    np.testing.assert_allclose(small_reviews.predict(adapted), base, atol=1e-6)


def test_scores_and_evaluate_agree_with_the_logits(model, small_reviews):
    right = small_reviews.predict(model, "train").argmax(axis=1) == small_reviews.labels("train")
    assert small_reviews.scores(model, "train") == {"accuracy": pytest.approx(right.mean())}
    assert small_reviews.evaluate(model, split="train") == pytest.approx(right.mean())


def test_pairs_and_regression(tiny_folder):
    rows = Dataset.from_dict(
        {
            "text": ["the plot", "a screen was good", "the food"],
            "text_pair": ["the acting was great", "I found the bread bad", "."],
            "label": [0.5, 5.0, 2.25],
        }
    )
    task = SentenceTask("pairs", rows, rows, metrics=("pearson", "spearman"))
    model = load_base_model(task, str(tiny_folder))
    assert model.config.problem_type == "regression"
    assert task.predict(model).shape == (3, 1)
    assert set(task.scores(model)) == {"pearson", "spearman"}
    tokenizer = tokenizer_for(model)
    encoded = task.encode("train", tokenizer)
    pair = tokenizer(rows[1]["text"], rows[1]["text_pair"])["input_ids"]
    assert encoded["input_ids"][1] == pair
    assert encoded["labels"][:] == [0.5, 5.0, 2.25]


def test_encoding_is_done_once_and_truncates(model, small_reviews):
    tokenizer = tokenizer_for(model)
    encoded = small_reviews.encode("train", tokenizer)
    assert small_reviews.encode("train", tokenizer) is encoded
    short = small_reviews.encode("train", tokenizer, max_length=3)
    assert max(map(len, short["input_ids"])) == 3
    assert encoded["labels"][:] == small_reviews.train["label"][:]
    assert not encoded.cache_files


def test_nan_is_no_score(model, small_reviews):
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite logits for 50 of 50"):
        small_reviews.evaluate(model)


def test_a_head_of_another_width_is_refused(model):
    three = SentenceTask("three", ROWS, ROWS, ("bad", "good", "neither"))
    with pytest.raises(ValueError, match=r"gives 2 outputs and the task 'three' asks for 3"):
        three.evaluate(model)


def test_a_model_of_unknown_origin_is_refused(small_reviews):
    with pytest.raises(ValueError, match=r"Linear does not tell .* pass tokenizer="):
        small_reviews.evaluate(torch.nn.Linear(2, 2))


def test_subset_is_seeded_and_keeps_rows_whole(small_reviews):
    part = small_reviews.subset(train=20, seed=3)
    assert part.train.to_dict() == small_reviews.subset(train=20, seed=3).train.to_dict()
    assert part.train.to_dict() != small_reviews.subset(train=20, seed=4).train.to_dict()
    assert len(part.validation) == 50
    known = dict(zip(small_reviews.train["text"], small_reviews.train["label"], strict=True))
    assert all(known[row["text"]] == row["label"] for row in part.train)
    assert len(set(part.train["text"])) == 20


@pytest.mark.parametrize("count", [0, 51])
def test_subset_beyond_the_rows_is_refused(small_reviews, count):
    with pytest.raises(ValueError, match="should be from 1 to 50"):
        small_reviews.subset(validation=count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": ROWS.remove_columns("label")}, "train rows .* lack label"),
        ({"validation": ROWS.select([])}, "no validation rows"),
        ({"label_names": ("negative",)}, "Row 1 of the train rows .* label 1.* 0 to 0"),
        ({"train": ROWS.remove_columns("label").add_column("label", [0.0, 1.0, 0.0])}, "integer 0"),
        ({"train": ROWS.remove_columns("label").add_column("label", ["a", "b", "c"])}, "label a"),
        ({"label_names": ()}, "is a regression"),
        ({"metrics": ("bleu",)}, "one or more of accuracy, f1, matthews"),
        ({"metrics": ()}, "one or more of"),
        ({"metrics": ("f1",), "label_names": ("a", "b", "c")}, "has 3 labels and the metric f1"),
    ],
)
def test_unusable_tasks_are_refused(arguments, message):
    usable = {"name": "mine", "train": ROWS, "validation": ROWS, "label_names": NAMES}
    with pytest.raises(ValueError, match=message):
        SentenceTask(**(usable | arguments))


def test_an_unknown_split_is_refused(model, small_reviews):
    with pytest.raises(ValueError, match="'train' or 'validation', not 'test'"):
        small_reviews.predict(model, "test")


def test_whole_numbers_are_regression_labels_too(tiny_folder):
    rows = ROWS.remove_columns("label").add_column("label", [1, 5, 2])
    task = SentenceTask("mine", rows, rows, metrics=("spearman",))
    model = load_base_model(task, str(tiny_folder))
    encoded = task.encode("train", tokenizer_for(model)).with_format("torch")
    assert model(input_ids=encoded[:1]["input_ids"], labels=encoded[:1]["labels"]).loss >= 0


def test_a_task_survives_the_way_to_another_process(model, small_reviews):
    expected = small_reviews.predict(model)
    np.testing.assert_array_equal(copy.deepcopy(small_reviews).predict(model), expected)
