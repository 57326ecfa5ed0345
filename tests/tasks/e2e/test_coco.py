import shutil
import subprocess

import pytest
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from analog_grasp.tasks.e2e import coco
from analog_grasp.tasks.generation import text_scores

REFERENCES = [["The Rice Boat is £30.", "é"], ["Zizzi"], ["A pub."], ["A pub."]]


@pytest.fixture
def java():
    if coco.missing() is not None:
        pytest.skip("no Java")


@pytest.fixture
def fresh():
    coco.missing.cache_clear()
    yield
    coco.missing.cache_clear()


def as_the_challenge(names, outputs, references):
    """The challenge's own way through the COCO caption code."""
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
        # METEOR takes many seconds to start.
        pytest.param(None, coco.NAMES, marks=pytest.mark.slow),
    ],
)
def test_people_against_people_score_as_in_the_challenge(e2e_references, count, names, monkeypatch):
    groups = [texts for texts in e2e_references("devset.csv") if len(texts) > 1][:count]
    outputs, others = [texts[0] for texts in groups], [texts[1:] for texts in groups]
    expected = as_the_challenge(names, outputs, others)
    # Also where Java would take another encoding than UTF-8.
    monkeypatch.setenv("LC_ALL", "C")
    assert coco.scores(names, outputs, others) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("java")
def test_odd_texts_are_scored():
    # One text of four is right, but for punctuation and lines.
    outputs = ["", "\x85\u2028 |||", "A\npub.\r\n", "..."]
    scores = coco.scores(["rouge_l", "cider"], outputs, REFERENCES)
    assert scores["rouge_l"] == pytest.approx(1 / 4)
    assert 0 < scores["cider"] < 10
    assert coco.scores(["rouge_l", "cider"], [""] * 4, REFERENCES) == {"rouge_l": 0, "cider": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_meteor_survives_odd_texts_and_its_own_end():
    assert coco.scores(["meteor"], [""] * 4, REFERENCES) == {"meteor": 0}
    outputs = ["", "\x85\u2028 |||", "A\npub.\r\n", "..."]
    scores = coco.scores(["meteor"], outputs, REFERENCES)
    assert 0 < scores["meteor"] < 1
    coco._meteor().meteor_p.kill()
    coco._meteor().meteor_p.wait()
    with pytest.raises(RuntimeError, match="METEOR's Java program failed"):
        coco.scores(["meteor"], outputs, REFERENCES)
    assert coco.scores(["meteor"], outputs, REFERENCES) == scores


@pytest.mark.usefixtures("java")
def test_scores_come_in_the_order_asked_for():
    names = ("cider", "bleu", "rouge_l")
    assert list(text_scores(names, ["a pub", "a bar"], [["a pub"], ["no"]])) == list(names)


@pytest.mark.usefixtures("fresh")
def test_without_java_the_reason_is_told(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert coco.missing() == "there is no command java"
    with pytest.raises(RuntimeError, match="cider need Java, but there is no command java"):
        coco.scores(["cider"], ["a"], [["a"]])


@pytest.mark.usefixtures("fresh")
def test_a_java_that_does_not_run_is_told(monkeypatch):
    def fails(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(subprocess, "run", fails)
    assert coco.missing().startswith("the command java does not run")


@pytest.mark.usefixtures("java")
def test_a_tokeniser_that_fails_is_no_score(monkeypatch):
    def silent(*_, **__):
        return subprocess.CompletedProcess([], 1, stdout="", stderr="out of memory")

    monkeypatch.setattr(subprocess, "run", silent)
    with pytest.raises(RuntimeError, match=r"1 lines for 2 .*out of memory"):
        coco.scores(["cider"], ["a"], [["a"]])
