import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from transformers import AutoModel, RobertaConfig, RobertaForSequenceClassification

from analog_grasp import GraspConfig, train
from analog_grasp.tasks import SentenceTask, load_base_model, load_task, tokenizer_for
from analog_grasp.tasks.base import position_limit, tuning_task

ROWS = Dataset.from_dict({"text": ["Awful.", "Superb.", "Bad."], "label": [0, 1, 0]})
PAIRS = ROWS.add_column("text_pair", ["No.", "Yes.", "No."])
NAMES = ("negative", "positive")


@pytest.fixture
def model(tiny_folder, small_reviews):
    return load_base_model(small_reviews, str(tiny_folder))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_logits_are_in_the_order_of_the_rows(model, small_reviews, batch_size):
    tokenizer = tokenizer_for(model)
    logits = small_reviews.predict(model, batch_size=batch_size)
    assert logits.shape == (50, 2)
    assert logits.dtype == np.float32
    for index in (0, 17, 49):
        one = tokenizer(small_reviews.validation[index]["text"], return_tensors="pt")
        with torch.no_grad():
            expected = model.eval()(**one).logits[0].numpy()
        np.testing.assert_allclose(logits[index], expected, atol=1e-5)


def test_predict_restores_the_mode_of_each_module(model, small_reviews):
    model.train()
    model.bert.embeddings.eval()
    first = small_reviews.predict(model)
    assert model.training
    assert model.bert.encoder.training
    assert not model.bert.embeddings.training
    # Dropout would make these differ.
    np.testing.assert_array_equal(first, small_reviews.predict(model))


def test_predict_restores_the_mode_after_a_failure(model, small_reviews):
    model.train()
    model.classifier.forward = None
    with pytest.raises(TypeError):
        small_reviews.predict(model)
    assert model.training


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


def test_encoding_is_cached_and_truncates(model, small_reviews):
    tokenizer = tokenizer_for(model)
    encoded = small_reviews.encode("train", tokenizer)
    assert small_reviews.encode("train", tokenizer) is encoded
    short = small_reviews.encode("train", tokenizer, max_length=3)
    assert max(map(len, short["input_ids"])) == 3
    assert encoded["labels"][:] == small_reviews.train["label"][:]
    assert not encoded.cache_files


def test_other_rows_are_encoded_again(tiny_folder):
    task = SentenceTask("mine", ROWS, ROWS, NAMES)
    tokenizer = tokenizer_for(load_base_model(task, str(tiny_folder)))
    before = task.encode("validation", tokenizer)["labels"][:]
    task.validation = ROWS.select([1, 0])
    assert (before, task.encode("validation", tokenizer)["labels"][:]) == ([0, 1, 0], [1, 0])


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_nan_and_infinite_logits_raise(model, small_reviews, broken):
    with torch.no_grad():
        model.classifier.bias[0] = broken
    with pytest.raises(ValueError, match="NaN or infinite logits for 50 of 50"):
        small_reviews.evaluate(model)


def test_a_wrong_number_of_outputs_raises(model, tiny_folder):
    three = SentenceTask("three", ROWS, ROWS, ("bad", "good", "neither"))
    message = "has 2 outputs and the task 'three' requires 3"
    with pytest.raises(ValueError, match=message):
        three.evaluate(model)
    # More outputs than classes would train without an error.
    two = replace(three, label_names=NAMES)
    for task, base in ((three, model), (two, load_base_model(three, str(tiny_folder)))):
        adapted = get_peft_model(base, GraspConfig(task_type="SEQ_CLS", groups=4))
        with pytest.raises(ValueError, match=r"has \d outputs and the task 'three' requires"):
            train(adapted, task, epochs=1)
    with pytest.raises(ValueError, match="has 0 outputs and the task 'three'"):
        three.evaluate(AutoModel.from_pretrained(tiny_folder))


def test_a_model_of_unknown_origin_raises(small_reviews):
    with pytest.raises(ValueError, match=r"Linear does not name .* pass tokenizer="):
        small_reviews.evaluate(torch.nn.Linear(2, 2))


def test_a_subset_is_seeded_and_keeps_rows_whole(small_reviews):
    part = small_reviews.subset(train=20, seed=3)
    assert part.train.to_dict() == small_reviews.subset(train=20, seed=3).train.to_dict()
    assert part.train.to_dict() != small_reviews.subset(train=20, seed=4).train.to_dict()
    assert len(part.validation) == 50
    known = dict(zip(small_reviews.train["text"], small_reviews.train["label"], strict=True))
    assert all(known[row["text"]] == row["label"] for row in part.train)
    assert len(set(part.train["text"])) == 20


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (51, "is 51; it should be from 1 to 50"),
        (0, "validation is 0: a whole number of at least 1"),
        (2.5, "validation is 2.5: a whole number"),
        ("3", "validation is '3': a whole number"),
    ],
)
def test_an_invalid_size_of_a_subset_raises(small_reviews, count, message):
    with pytest.raises(ValueError, match=message):
        small_reviews.subset(validation=count)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": ROWS.remove_columns("label")}, "train rows .* lack label"),
        ({"validation": ROWS.select([])}, "no validation rows"),
        ({"train": PAIRS}, "The train rows alone of the task 'mine' have the column text_pair"),
        ({"validation": PAIRS}, "The validation rows alone of the task 'mine' have the column"),
        ({"label_names": ("negative",)}, "'mine' has the only class 'negative'; .* two or more"),
        ({"train": ROWS.map(lambda row: {"label": 2})}, "Row 0 of the train .* label 2, .* 0 to 1"),
        (
            {"train": ROWS.remove_columns("label").add_column("label", [0.0, 1.0, 0.0])},
            "Row 0 .* label 0.0, .* integer from 0",
        ),
        ({"train": ROWS.remove_columns("label").add_column("label", ["a", "b", "c"])}, "label 'a'"),
        ({"label_names": ()}, "is a regression"),
        ({"metrics": ("bleu",)}, "one or more of accuracy, f1, macro_f1, matthews"),
        ({"metrics": ()}, "one or more of"),
        ({"metrics": ("f1",), "label_names": ("a", "b", "c")}, "has 3 labels and the metric f1"),
    ],
)
def test_invalid_tasks_raise(arguments, message):
    valid = {"name": "mine", "train": ROWS, "validation": ROWS, "label_names": NAMES}
    with pytest.raises(ValueError, match=message):
        SentenceTask(**(valid | arguments))


def test_an_unknown_split_raises(model, small_reviews):
    with pytest.raises(ValueError, match="split is 'test'; it should be 'train' or"):
        small_reviews.predict(model, "test")


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas"])
def test_the_format_of_the_rows_does_not_matter(form):
    rows = ROWS.with_format(form)
    task = SentenceTask("mine", rows, rows, NAMES)
    assert task.train["label"][:] == [0, 1, 0]


def test_rows_of_another_type_raise():
    with pytest.raises(ValueError, match=r"train rows .* IterableDataset; a datasets.Dataset "):
        SentenceTask("mine", ROWS.to_iterable_dataset(), ROWS, NAMES)


def test_integers_are_valid_regression_labels(tiny_folder):
    rows = ROWS.remove_columns("label").add_column("label", [1, 5, 2])
    task = SentenceTask("mine", rows, rows, metrics=("spearman",))
    model = load_base_model(task, str(tiny_folder))
    encoded = task.encode("train", tokenizer_for(model)).with_format("torch")
    assert model(input_ids=encoded[:1]["input_ids"], labels=encoded[:1]["labels"]).loss >= 0


def rows_with(labels, texts=None):
    texts = ["Awful."] * len(labels) if texts is None else texts
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, 0, 1, 0, None], NAMES, "Row 5 .* label None, .* an integer from 0 to 1"),
        (["0", "1", "0", "1", "0", "bad"], NAMES, "Row 5 .* label 'bad'"),
        ([0.0, 1.0, 0.0, 1.0, 0.0, float("nan")], NAMES, "Row 5 .* label nan"),
        ([0, 1, 0, 1, 0, 2], NAMES, "Row 5 .* label 2"),
        ([0.5, 1.0, None], (), "Row 2 .* label None, .* a finite number"),
        (["0.5", "1.5", "x"], (), "Row 2 .* label 'x'"),
        (["0", "1"], NAMES, "Row 0 .* label '0'"),
        ([True, False], NAMES, "Row 0 .* label True"),
    ],
)
def test_an_invalid_label_is_reported_with_its_row(labels, names, message):
    metrics = ("accuracy",) if names else ("pearson",)
    with pytest.raises(ValueError, match=message):
        SentenceTask("mine", rows_with(labels), ROWS, names, metrics)


def test_a_missing_text_is_reported_with_its_row(tmp_path):
    path = tmp_path / "rows.csv"
    for cell in ("NA", "null", ""):
        path.write_text(f"text,label\nGood.,1\nBad.,0\n{cell},1\n")
        rows = Dataset.from_csv(str(path), cache_dir=str(tmp_path / f"cache{cell}"))
        with pytest.raises(ValueError, match=r"Row 2 of the train rows .* text None.*NA or blank"):
            SentenceTask("mine", rows, ROWS, NAMES)


def test_a_text_without_a_token_is_reported_with_its_row(writer_folder):
    rows = rows_with([0, 1, 0], ["Fine.", "", "Bad."])
    task = SentenceTask("mine", rows, rows, NAMES)
    model = load_base_model(task, str(writer_folder))
    with pytest.raises(ValueError, match=r"Row 1 of the train rows .* the text '', of which"):
        task.training_rows(model, tokenizer_for(model))
    with pytest.raises(ValueError, match="Row 1 of the validation rows"):
        task.scores(model)


@pytest.mark.parametrize("size", [0, -1, 2.5])
def test_an_invalid_batch_size_raises(model, small_reviews, size):
    with pytest.raises(ValueError, match=f"batch_size is {size}: a whole number of at least 1"):
        small_reviews.scores(model, batch_size=size)


def test_max_length_cuts_texts_and_is_kept_by_subsets(model, small_reviews):
    task = SentenceTask(
        "short", small_reviews.train, small_reviews.validation, NAMES, max_length=4
    ).subset(train=10, seed=1)
    assert task.max_length == 4
    assert max(map(len, task.encode("train", tokenizer_for(model))["input_ids"])) == 4
    assert (task.predict(model) != small_reviews.predict(model)).any()


def test_texts_are_cut_to_the_positions_of_the_model(tiny_folder, small_reviews):
    long = rows_with([0, 1], ["the plot was good and " * 30, "Bad."])
    task = SentenceTask("long", long, long, NAMES)
    model = load_base_model(task, str(tiny_folder))
    assert task.length_for(model) == model.config.max_position_embeddings == 64
    assert np.isfinite(task.predict(model)).all()
    config = GraspConfig(task_type="SEQ_CLS", groups=2)
    train(get_peft_model(model, config), task, epochs=1)
    tokenizer = tokenizer_for(model)
    # The positions of RoBERTa start after its padding index.
    roberta = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
            intermediate_size=8, max_position_embeddings=34, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    assert position_limit(roberta) == 33 - tokenizer.pad_token_id
    assert np.isfinite(task.predict(roberta, tokenizer=tokenizer)).all()
    prompt = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    assert position_limit(get_peft_model(roberta, prompt)) == 28 - tokenizer.pad_token_id


def test_added_tokens_are_used_by_evaluation_and_training(model, small_reviews):
    tokenizer = copy.deepcopy(tokenizer_for(model))
    tokenizer.add_tokens(["marvellously"])
    new = len(tokenizer) - 1
    rows = rows_with([0, 1], ["Bad.", "marvellously good"])
    task = SentenceTask("mine", rows, rows, NAMES, tokenizer=tokenizer).subset(train=2)
    assert new in task.encode("train", task.tokenizer_of(model))["input_ids"][1]
    with pytest.raises(ValueError, match=rf"id {new} \('marvellously'\).* 0 to {new - 1}"):
        task.predict(model)
    config = GraspConfig(task_type="SEQ_CLS", groups=2)
    with pytest.raises(ValueError, match="resize_token_embeddings"):
        train(get_peft_model(model, config), task)


@pytest.mark.parametrize("given", ["task", "train"])
def test_training_uses_the_given_tokenizer(tiny_folder, small_reviews, given, monkeypatch):
    tokenizer = copy.deepcopy(tokenizer_for(load_base_model(small_reviews, str(tiny_folder))))
    tokenizer.add_tokens(["marvellously"])
    rows = rows_with([0, 1], ["Bad.", "marvellously good"])
    task = SentenceTask("mine", rows, rows, NAMES, tokenizer=tokenizer if given == "task" else None)
    model = load_base_model(task, str(tiny_folder))
    model.resize_token_embeddings(len(tokenizer))
    seen = []
    embed = model.get_input_embeddings()
    embed.register_forward_pre_hook(
        lambda _, arguments: seen.extend(arguments[0].flatten().tolist())
    )
    adapted = get_peft_model(model, GraspConfig(task_type="SEQ_CLS", groups=2))
    train(adapted, task, epochs=1, **({"tokenizer": tokenizer} if given == "train" else {}))
    assert len(tokenizer) - 1 in seen


def test_a_padding_token_beyond_the_embeddings_is_named(model, small_reviews):
    tokenizer = copy.deepcopy(tokenizer_for(model))
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    with pytest.raises(
        ValueError, match=r"padding token '<pad>' has the id .*\.resize_token_embeddings"
    ):
        small_reviews.predict(model, tokenizer=tokenizer)


@pytest.fixture
def reversed_folder(tiny_folder, tmp_path, small_reviews):
    """Folder of a classifier of reviews whose class 0 is "Positive"."""
    model = load_base_model(small_reviews, str(tiny_folder))
    model.config.id2label = {0: "Positive", 1: "NEGATIVE"}
    model.config.label2id = {"Positive": 0, "NEGATIVE": 1}
    model.save_pretrained(tmp_path / "reversed")
    tokenizer_for(model).save_pretrained(tmp_path / "reversed")
    return str(tmp_path / "reversed")


def test_the_label_order_of_a_fine_tuned_model_is_kept(reversed_folder, small_reviews):
    model = load_base_model(small_reviews, reversed_folder)
    assert model.config.id2label == {0: "Positive", 1: "NEGATIVE"}
    own = small_reviews.tokenizer_of(model)(small_reviews.validation["text"][:5], padding=True)
    with torch.no_grad():
        logits = model.eval()(**{k: torch.tensor(v) for k, v in own.items()}).logits.numpy()
    # Columns in the order of the task: negative, positive.
    np.testing.assert_allclose(small_reviews.predict(model)[:5], logits[:, ::-1], atol=1e-5)
    # The labels of a model that is right everywhere, in its own order.
    right = 1 - small_reviews.labels("train")
    assert small_reviews.training_rows(model, tokenizer_for(model))["labels"][:] == right.tolist()


def test_other_classes_of_a_fine_tuned_model_are_warned_of(reversed_folder, tiny_folder):
    rows = rows_with([0, 1] * 8, ["plot of the film", "food of the inn"] * 8)
    task = SentenceTask("plots", rows, rows, ("joy", "anger"))
    with pytest.warns(UserWarning, match="model are Positive, NEGATIVE and .* task joy, anger"):
        assert load_base_model(task, reversed_folder).config.id2label == {0: "joy", 1: "anger"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_base_model(task, str(tiny_folder))


def test_training_follows_the_label_order_of_the_model(reversed_folder):
    rows = rows_with([0, 1] * 8, ["plot of the film", "food of the inn"] * 8)
    task = SentenceTask("plots", rows, rows, NAMES)
    model = load_base_model(task, reversed_folder)
    adapted = get_peft_model(model, GraspConfig(task_type="SEQ_CLS", groups=8))
    train(adapted, task, epochs=30, batch_size=8, learning_rate=0.03)
    assert task.evaluate(adapted) == 1.0
    good = tokenizer_for(model)("food of the inn", return_tensors="pt")
    with torch.no_grad():
        assert adapted.config.id2label[adapted(**good).logits.argmax().item()] == "Positive"


def test_several_labels_per_text(tiny_folder):
    texts = ["good plot", "bad food", "good food", "the screen"] * 4
    labels = [[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]] * 4
    task = SentenceTask(
        "topics", rows_with(labels, texts), rows_with(labels, texts), ("good", "food", "plot"),
        ("f1", "macro_f1", "accuracy"),
    )  # fmt: skip
    model = load_base_model(task, str(tiny_folder))
    assert model.config.problem_type == "multi_label_classification"
    assert task.labels().shape == (16, 3)
    adapted = get_peft_model(model, GraspConfig(task_type="SEQ_CLS", groups=8))
    train(adapted, task, epochs=30, batch_size=8, learning_rate=0.05)
    predicted = task.predict(adapted) > 0
    scores = task.scores(adapted)
    assert scores["accuracy"] == pytest.approx((predicted == task.labels()).all(axis=1).mean())
    right = (predicted & (task.labels() > 0)).sum()
    assert scores["f1"] == pytest.approx(2 * right / (predicted.sum() + task.labels().sum()))
    assert scores["f1"] > 0.7
    with pytest.raises(ValueError, match=r"Row 1 .* \[0, 2, 0\], .* a list of 3 entries 0 or 1"):
        SentenceTask(
            "topics", rows_with([[0, 1, 0], [0, 2, 0]]), rows_with(labels), ("a", "b", "c"),
            multi_label=True,
        )  # fmt: skip


def positives(logits, labels):
    return float((logits.argmax(axis=1) == 1).sum())


def test_a_function_is_a_metric(model, small_reviews):
    task = SentenceTask(
        "mine", small_reviews.train, small_reviews.validation, NAMES, (positives, "accuracy")
    ).subset(validation=20)
    assert task.metrics == ("positives", "accuracy")
    assert task.evaluate(model) == (task.predict(model).argmax(axis=1) == 1).sum()
    assert task.identity() == copy.deepcopy(task).identity()
    with pytest.raises(ValueError, match="use a function defined with def"):
        SentenceTask("mine", ROWS, ROWS, NAMES, (lambda logits, labels: 0.0,))
    rows = ROWS.map(lambda row, i: {"part": ["", "odd", "odd"][i]}, with_indices=True)
    parts = SentenceTask("mine", rows, rows, NAMES, (positives, "accuracy_odd"))
    assert set(parts.scores(model)) == {"positives", "accuracy_odd"}


def test_a_column_named_part_that_leaves_no_rows_to_score_raises():
    rows = ROWS.add_column("part", ["intro", "body", "body"])
    with pytest.raises(ValueError, match=r"accuracy of the task 'mine' has no .* body, intro\."):
        SentenceTask("mine", rows, rows, NAMES)
    with pytest.raises(ValueError, match="accuracy_mm of the task 'mine' has no validation rows"):
        SentenceTask("mine", rows, rows, NAMES, ("accuracy_mm",))
    for unknown in ("accuracy_mm", "f1_macro"):
        with pytest.raises(ValueError, match="one or more of accuracy, f1, macro_f1, matthews"):
            SentenceTask("mine", ROWS, ROWS, NAMES, ("accuracy", unknown))
    # Rows drawn from one part leave only its metrics.
    both = SentenceTask("mine", rows, rows, NAMES, ("accuracy_body", "accuracy_intro"))
    chosen = {tuple(both.subset(validation=1, seed=seed).metrics) for seed in range(8)}
    assert chosen == {("accuracy_body",), ("accuracy_intro",)}
    assert SentenceTask("mine", rows, rows, NAMES, ("accuracy_body",)).metrics


def test_a_metric_of_a_part_that_a_split_lacks_raises_one_sentence(model):
    rows = Dataset.from_dict({"text": ROWS["text"][:] * 4, "label": ROWS["label"][:] * 4})
    divided = rows.add_column("part", ["", "mm"] * 6)
    task = SentenceTask("mine", rows, divided, NAMES, ("accuracy_mm", "accuracy"))
    with pytest.raises(ValueError, match=r"accuracy_mm .* on the train rows: scores returns acc"):
        task.evaluate(model, "train")
    assert tuning_task(task, 0).metrics == ("accuracy",)
    with pytest.raises(ValueError, match="belongs to the part of its metrics accuracy_mm; give"):
        tuning_task(replace(task, metrics=("accuracy_mm",)), 0)


def test_mean_squared_error_is_lower_for_better_models(tiny_folder):
    rows = rows_with([0.0, 2.0, 4.0], ["bad", "fair", "good"])
    task = SentenceTask("stars", rows, rows, (), ("mse", "pearson"))
    model = load_base_model(task, str(tiny_folder))
    expected = ((task.predict(model)[:, 0] - task.labels()) ** 2).mean()
    assert task.evaluate(model) == pytest.approx(expected)
    assert not task.greater_is_better
    assert load_task("reviews").greater_is_better
