"""Metrics by hand, and those of texts compared with the scripts of the E2E NLG Challenge."""

import math
import shutil
import subprocess

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from analog_grasp.tasks import GenerationTask, metrics
from analog_grasp.tasks.metrics import (
    COCO_METRICS,
    accuracy,
    bleu,
    coco_scores,
    f1,
    macro_f1,
    matthews,
    mse,
    nist,
    pearson,
    spearman,
)


def logits_of(predicted):
    return np.eye(2)[predicted]


# Five examples: 2 true positives, 1 false positive, 1 false negative, 1 true negative.
LABELS = np.array([1, 1, 0, 1, 0])
PREDICTED = logits_of([1, 1, 1, 0, 0])


def test_classification_metrics_by_hand():
    assert accuracy(PREDICTED, LABELS) == pytest.approx(3 / 5)
    assert f1(PREDICTED, LABELS) == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # (TP TN - FP FN) / sqrt((TP+FP)(TP+FN)(TN+FP)(TN+FN)) = (2 - 1) / sqrt(3 * 3 * 2 * 2)
    assert matthews(PREDICTED, LABELS) == pytest.approx(1 / 6)


def test_macro_f1_by_hand():
    # F1 of class 0: 1 true positive, 1 false positive, 1 false negative; of class 1 as above.
    assert macro_f1(PREDICTED, LABELS) == pytest.approx((2 / 4 + 4 / 6) / 2)
    # A third class that is neither present nor predicted counts 0.
    wider = np.column_stack([PREDICTED, np.full(5, -1.0)])
    assert macro_f1(wider, LABELS) == pytest.approx((2 / 4 + 4 / 6) / 3)


def test_metrics_of_several_labels_by_hand():
    logits = np.array([[1.0, -1.0, 2.0], [-1.0, 0.5, -2.0]])
    labels = np.array([[1, 0, 0], [0, 1, 0]])
    # Two true positives, one false positive; per label F1 1, 1 and 0; one set of two is right.
    assert f1(logits, labels) == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert macro_f1(logits, labels) == pytest.approx(2 / 3)
    assert accuracy(logits, labels) == 0.5


def test_metrics_of_a_single_label_by_hand():
    # One true positive, one false positive, one false negative and two true negatives.
    logits, labels = np.array([[1.0, 1.0, -1.0, -1.0, -1.0]]).T, np.array([[1, 0, 1, 0, 0]]).T
    assert f1(logits, labels) == macro_f1(logits, labels) == pytest.approx(1 / 2)
    assert accuracy(logits, labels) == pytest.approx(3 / 5)
    assert f1(-np.ones((5, 1)), labels) == macro_f1(-np.ones((5, 1)), labels) == 0.0


def test_mean_squared_error_by_hand():
    assert mse(np.array([[1.0], [2.0], [0.0]]), np.array([1.0, 4.0, 3.0])) == pytest.approx(13 / 3)


def test_correlations_by_hand():
    logits, labels = np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1.0, 3.0, 2.0, 5.0])
    # Centred: (-1.5, -.5, .5, 1.5) and (-1.75, .25, -.75, 2.25); sums 5.5, 5 and 8.75.
    assert pearson(logits, labels) == pytest.approx(5.5 / np.sqrt(5 * 8.75))
    # Ranks 1 3 2 4: 1 - 6 * 2 / (4 * 15).
    assert spearman(logits, labels) == pytest.approx(0.8)


def test_a_constant_prediction_scores_zero():
    constant = logits_of([0] * 5)
    assert matthews(constant, LABELS) == 0
    assert f1(constant, LABELS) == 0


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_correlation_with_a_constant_is_zero(metric):
    varied = np.array([1.0, 2.0, 3.0])
    assert metric(np.full((3, 1), 0.7, np.float32), varied) == 0
    assert metric(varied[:, None], np.full(3, 2.0)) == 0
    assert metric(np.array([[1.0]]), np.array([2.0])) == 0


@given(
    hnp.arrays(np.float32, (20, 2), elements=st.floats(-5, 5, width=32)),
    hnp.arrays(np.int64, 20, elements=st.integers(0, 1)),
)
def test_metrics_are_within_their_range(logits, labels):
    assert 0 <= accuracy(logits, labels) <= 1
    assert 0 <= f1(logits, labels) <= 1
    assert -1 <= matthews(logits, labels) <= 1


@pytest.mark.parametrize("metric", [pearson, spearman])
@given(hnp.arrays(np.float64, 12, elements=st.integers(-9, 9)), st.integers(1, 5))
def test_a_monotone_prediction_has_correlation_one(metric, labels, factor):
    expected = 0 if np.ptp(labels) == 0 else 1
    assert metric(factor * labels[:, None] + 1, labels) == pytest.approx(expected)


WORDS = ["the", "a", "pub", "Zizzi", "is", "cheap", ",", "£30", "0", "."]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join)


def test_bleu_by_hand():
    output = "the pub Zizzi is cheap and by water"
    reference = "Zizzi is cheap and a pub by the river"
    # All of 8 words but "water"; of 7 pairs "Zizzi is", "is cheap" and "cheap and"; of 6 triples
    # two, of 5 quadruples one. The reference has 9 words.
    precision = (7 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25
    assert bleu([output], [[reference]]) == pytest.approx(precision * math.exp(1 - 9 / 8))


def test_the_brevity_penalty_uses_the_closest_reference_and_the_shorter_of_two():
    # Five words against references of four and of six: four, and no penalty.
    four, six = "Zizzi is a pub", "Zizzi is a pub by water"
    assert bleu(["Zizzi is a pub there"], [[six, four]]) == pytest.approx(
        (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    )


def test_lengths_without_a_match_count_a_half_and_a_quarter():
    # Four words match, no n-gram does.
    assert bleu(["d c b a"], [["a b c d"]]) == pytest.approx(
        (1 * 1 / 2 / 3 * 1 / 4 / 2 * 1 / 8 / 1) ** 0.25
    )


def test_nist_by_hand():
    # References: "a b" and "a c a b", six words. "a": log2(6/3); "b": log2(6/2); "a b": log2(3/2).
    outputs, references = ["a b"], [["a b", "a c a b"]]
    information = (math.log2(6 / 3) + math.log2(6 / 2)) / 2 + math.log2(3 / 2) / 1
    # Two words against 6 / 2.
    penalty = math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(2 / 3) ** 2)
    assert penalty == pytest.approx(0.5)
    assert nist(outputs, references) == pytest.approx(penalty * information)


def test_the_length_penalty_of_nist_uses_the_mean_of_the_non_empty_references():
    # Seven words in three references, so 7/3 per output, and 3 words in two outputs.
    outputs, references = ["a b", "c"], [["a b", "a b"], ["c d e"]]
    information = (2 * math.log2(7 / 2) + math.log2(7 / 1)) / 3 + math.log2(2 / 2)
    penalty = math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(3 / (2 * 7 / 3)) ** 2)
    assert nist(outputs, references) == pytest.approx(penalty * information)
    assert nist(outputs, references) == pytest.approx(0.9399, abs=5e-5)
    assert nist(outputs, [[*references[0], ""], [*references[1], ""]]) == nist(outputs, references)


# Outputs, references, and BLEU and NIST of the functions of mteval-v13a,
# in the version of the challenge, run with perl. The length penalties of NIST are below 1.
ODD_CASES = [
    (["a b", "c"], [["a b", "a b"], ["c d e"]], (0.5134171190, 0.9399412367)),
    # No word matches: 1/2, 1/4, 1/8 and 1/16 of a match.
    (["w x y z"], [["a b c d", "a b c"]], (0.0798678880, 0.0)),
    (["w x y z v", "u t s"], [["a b c d e f"], ["a b c"]], (0.0352415819, 0.0)),
    # No output has four words: a precision of 1.
    (["a pub"], [["a cheap pub by the river"]], (0.1138029545, 0.0159388562)),
    (["Zizzi is cheap"], [["Zizzi is cheap .", "It is Zizzi"]], (1.0, 2.8412821918)),
    (
        ["a pub", "Zizzi"],
        [["a pub by water", "the pub"], ["Zizzi is cheap by the river"]],
        (0.1888756028, 0.0563083419),
    ),
    (["w x"], [["a b c d e f"]], (0.0676676416, 0.0)),
    ([""], [["a b"]], (0.0, 0.0)),
    # The length of an empty reference does not count.
    (["a", "b c"], [["a b c", ""], ["b c d e f"]], (0.1888756028, 0.0404062469)),
    (["a b 0 c"], [["0 c a b", "0 a"]], (0.4518010018, 3.2799500010)),
]


@pytest.mark.parametrize(("outputs", "references", "expected"), ODD_CASES)
def test_short_and_unmatched_outputs_score_as_under_mteval(outputs, references, expected):
    assert (bleu(outputs, references), nist(outputs, references)) == pytest.approx(
        expected, abs=1e-9
    )


def test_tokens_are_those_of_mteval():
    for same in ("Zizzi, cheap.", "zizzi , cheap .", "ZIZZI  ,\tcheap .\n"):
        assert bleu([f"{same} A b c"], [["Zizzi, cheap. a B c"]]) == pytest.approx(1)
    # Points stay within numbers, a hyphen after a digit is a token, É is not é.
    assert bleu(["from 3.5-4 stars"], [["from 3.5 - 4 stars"]]) == pytest.approx(1)
    assert bleu(["É a b c d"], [["é a b c d"]]) < 1


@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS.filter(bool), min_size=1, max_size=4)), min_size=1))
def test_scores_are_finite_for_any_text(pairs):
    outputs, references = zip(*pairs, strict=True)
    assert 0 <= bleu(outputs, references) <= 1 + 1e-9
    assert 0 <= nist(outputs, references) < math.inf


# The same for one reference of each meaning representation against its others.
MEASURED = {
    ("devset.csv", 0): (0.5995345944, 8.5789059058),
    ("devset.csv", -1): (0.6004654895, 8.6338503749),
    ("testset_w_refs.csv", 0): (0.6045619084, 8.9028890812),
    ("testset_w_refs.csv", -1): (0.5799187593, 8.6333906737),
}


def one_against_the_others(groups, position):
    """Return one reference of each meaning representation, and the others."""
    groups = [texts for texts in groups if len(texts) > 1]
    return (
        [texts[position] for texts in groups],
        [texts[1:] if position == 0 else texts[:-1] for texts in groups],
    )


@pytest.mark.parametrize(
    ("file", "position"),
    [pytest.param(*case, marks=[pytest.mark.slow] * (case[1] == 0)) for case in MEASURED],
)
def test_human_references_score_as_under_mteval(e2e_references, file, position):
    outputs, others = one_against_the_others(e2e_references(file), position)
    found = bleu(outputs, others), nist(outputs, others)
    assert found == pytest.approx(MEASURED[file, position], abs=1e-9)


# The same outputs without every eighth, ninth and tenth word, so shorter than the references.
SHORTENED = {
    ("devset.csv", 0): (0.4528899308, 6.4603965334),
    ("testset_w_refs.csv", -1): (0.4310664556, 5.8325569027),
}


@pytest.mark.parametrize(("file", "position"), SHORTENED)
def test_shortened_outputs_score_as_under_mteval(e2e_references, file, position):
    outputs, others = one_against_the_others(e2e_references(file), position)
    short = [" ".join(w for i, w in enumerate(text.split()) if i % 10 < 7) for text in outputs]
    found = bleu(short, others), nist(short, others)
    assert found == pytest.approx(SHORTENED[file, position], abs=1e-9)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("devset.csv", (0.2971027217, 4.9168638498)),
        pytest.param("testset_w_refs.csv", (0.2732537731, 4.8425803539), marks=pytest.mark.slow),
    ],
)
def test_odd_texts_score_as_under_mteval(e2e_references, file, expected):
    groups = [texts for texts in e2e_references(file) if len(texts) > 1]
    outputs = [groups[i - 1][0].upper() + " & É &amp; 0-5 U.S. 3,000.5" for i in range(len(groups))]
    references = [[text + " é 0 - 5" for text in texts] for texts in groups]
    found = bleu(outputs, references), nist(outputs, references)
    assert found == pytest.approx(expected, abs=1e-9)


REFERENCES = [["The Rice Boat is £30.", "é"], ["Zizzi"], ["A pub."], ["A pub."]]


@pytest.fixture
def java():
    if metrics.missing_java() is not None:
        pytest.skip("no Java")


@pytest.fixture
def fresh():
    metrics.missing_java.cache_clear()
    yield
    metrics.missing_java.cache_clear()


def as_the_challenge(names, outputs, references):
    """Return scores as the challenge computes them with the COCO caption code."""
    tokenizer = PTBTokenizer()
    targets = tokenizer.tokenize(
        {i: [{"caption": text} for text in texts] for i, texts in enumerate(references)}
    )
    tried = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(outputs)})
    scorers = {"meteor": Meteor, "rouge_l": Rouge, "cider": Cider}
    return {name: scorers[name]().compute_score(targets, tried)[0] for name in names}


@pytest.mark.usefixtures("java")
@pytest.mark.parametrize(
    ("count", "names"),
    [
        (30, ("rouge_l", "cider")),
        # METEOR takes seconds to start.
        pytest.param(None, COCO_METRICS, marks=pytest.mark.slow),
    ],
)
def test_human_references_score_as_in_the_challenge(e2e_references, count, names, monkeypatch):
    groups = [texts for texts in e2e_references("devset.csv") if len(texts) > 1][:count]
    outputs, others = [texts[0] for texts in groups], [texts[1:] for texts in groups]
    expected = as_the_challenge(names, outputs, others)
    # Also with a locale in which Java would use another encoding.
    monkeypatch.setenv("LC_ALL", "C")
    assert coco_scores(names, outputs, others) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("java")
def test_odd_texts_are_scored():
    # One text of four is right except for punctuation and line breaks.
    outputs = ["", "\x85\u2028 |||", "A\npub.\r\n", "..."]
    scores = coco_scores(["rouge_l", "cider"], outputs, REFERENCES)
    assert scores["rouge_l"] == pytest.approx(1 / 4)
    assert 0 < scores["cider"] < 10
    assert coco_scores(["rouge_l", "cider"], [""] * 4, REFERENCES) == {
        "rouge_l": 0,
        "cider": 0,
    }


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_meteor_scores_odd_texts_and_restarts_after_its_process_ends():
    assert coco_scores(["meteor"], [""] * 4, REFERENCES) == {"meteor": 0}
    outputs = ["", "\x85\u2028 |||", "A\npub.\r\n", "..."]
    scores = coco_scores(["meteor"], outputs, REFERENCES)
    assert 0 < scores["meteor"] < 1
    metrics._meteor().meteor_p.kill()
    metrics._meteor().meteor_p.wait()
    with pytest.raises(RuntimeError, match="METEOR's Java program failed"):
        coco_scores(["meteor"], outputs, REFERENCES)
    assert coco_scores(["meteor"], outputs, REFERENCES) == scores


def scores_of(names, outputs, references):
    rows = Dataset.from_dict({"text": outputs, "references": references})
    return GenerationTask("mine", rows, rows, names)._score(outputs, "validation")


@pytest.mark.usefixtures("java")
def test_scores_are_in_the_requested_order():
    names = ("cider", "bleu", "rouge_l")
    assert list(scores_of(names, ["a pub", "a bar"], [["a pub"], ["no"]])) == list(names)


@pytest.mark.usefixtures("fresh")
def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r'cider cannot .*pip install "analog-grasp\[e2e\]"'):
        coco_scores(["cider"], ["a"], [["a"]])
    assert scores_of(("nist",), ["Zizzi is cheap."], [["Zizzi is cheap."]]) == {"nist": 2.0}


@pytest.mark.usefixtures("fresh")
def test_missing_java_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="cider cannot be computed: the command java is not"):
        coco_scores(["cider"], ["a"], [["a"]])


@pytest.mark.usefixtures("fresh")
def test_java_that_does_not_run_is_named(monkeypatch):
    def fails(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(subprocess, "run", fails)
    assert metrics.missing_java().startswith("the command java does not run")


@pytest.mark.usefixtures("java")
def test_a_failing_tokeniser_raises(monkeypatch):
    def silent(*_, **__):
        return subprocess.CompletedProcess([], 1, stdout="", stderr="out of memory")

    monkeypatch.setattr(subprocess, "run", silent)
    with pytest.raises(RuntimeError, match=r"1 lines for 2 .*out of memory"):
        coco_scores(["cider"], ["a"], [["a"]])
