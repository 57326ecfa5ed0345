import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analog_grasp.tasks.reviews import reviews


def words(texts):
    return {word.lower().strip(".,") for text in texts for word in text.split()}


def test_default_sizes_and_shape():
    task = reviews()
    assert (len(task.train), len(task.validation)) == (2000, 1000)
    assert (task.name, task.num_labels, task.metrics) == ("reviews", 2, ("accuracy",))
    lengths = [len(text.split()) for text in task.validation["text"]]
    assert 7 <= sum(lengths) / len(lengths) <= 10


def test_the_sentences_do_not_change():
    # Figures measured on `reviews` are comparable only for the same sentences.
    task = reviews()
    text = "\n".join([*task.train["text"], *task.validation["text"]])
    assert hashlib.sha256(text.encode()).hexdigest().startswith("108c57d982a4")


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 150), st.integers(1, 150), st.integers(0, 2**32))
def test_balanced_distinct_and_repeatable(train, validation, seed):
    task = reviews(train, validation, seed)
    again = reviews(train, validation, seed)
    texts = []
    for rows, same, size in (
        (task.train, again.train, train),
        (task.validation, again.validation, validation),
    ):
        assert rows.to_dict() == same.to_dict()
        assert len(rows) == size
        assert sum(rows["label"]) == size // 2
        texts += rows["text"]
    assert len(set(texts)) == len(texts)


def test_seeds_differ():
    assert reviews(20, 20, seed=0).train["text"][:] != reviews(20, 20, seed=1).train["text"][:]


def test_validation_does_not_depend_on_the_size_of_training():
    few, many = reviews(10, 40), reviews(100, 40)
    assert few.validation["text"][:] == many.validation["text"][:]
    assert few.train["text"][:] == many.train["text"][:10]


def test_validation_has_words_that_training_lacks():
    task = reviews()
    unseen = words(task.validation["text"]) - words(task.train["text"])
    assert {"wonderful", "dreadful", "marvellous", "abysmal"} <= unseen
    assert not unseen & {"although", "despite", "never", "hardly", "plot"}


def test_the_main_clause_decides_the_label():
    task = reviews()
    seen = dict(zip(task.train["text"], task.train["label"], strict=True))
    plain = {text: label for text, label in seen.items() if " was great." in text}
    assert plain
    for text, label in plain.items():
        conceding = text.lower().startswith(("although", "despite"))
        decides = conceding or " but " in text or len(text.split()) == 4
        if decides:
            assert label == 1, text
        elif ", although " in text:
            assert label == 0, text


@pytest.mark.parametrize("sizes", [{"train": 0}, {"validation": 20_001}])
def test_sizes_out_of_range_raise(sizes):
    with pytest.raises(ValueError, match="from 1 to 20000"):
        reviews(**sizes)
