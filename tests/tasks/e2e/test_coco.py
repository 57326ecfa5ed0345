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
        pytest.param(None, coco.NAMES, marks=pytest.mark.slow),
    ],
)
def test_human_references_score_as_in_the_challenge(e2e_references, count, names, monkeypatch):
    groups = [texts for texts in e2e_references("devset.csv") if len(texts) > 1][:count]
    outputs, others = [texts[0] for texts in groups], [texts[1:] for texts in groups]
    expected = as_the_challenge(names, outputs, others)
    # Also with a locale in which Java would use another encoding.
    monkeypatch.setenv("LC_ALL", "C")
    assert coco.scores(names, outputs, others) == pytest.approx(expected, abs=1e-12)


@pytest.mark.usefixtures("java")
def test_odd_texts_are_scored():
    # One text of four is right except for punctuation and line breaks.
    outputs = ["", "\x85\u2028 |||", "A\npub.\r\n", "..."]
    scores = coco.scores(["rouge_l", "cider"], outputs, REFERENCES)
    assert scores["rouge_l"] == pytest.approx(1 / 4)
    assert 0 < scores["cider"] < 10
    assert coco.scores(["rouge_l", "cider"], [""] * 4, REFERENCES) == {"rouge_l": 0, "cider": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("java")
def test_meteor_scores_odd_texts_and_restarts_after_its_process_ends():
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
def test_scores_are_in_the_requested_order():
    names = ("cider", "bleu", "rouge_l")
    assert list(text_scores(names, ["a pub", "a bar"], [["a pub"], ["no"]])) == list(names)


@pytest.mark.usefixtures("fresh")
def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(coco, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r'cider cannot .*pip install "analog-grasp\[e2e\]"'):
        text_scores(["bleu", "cider"], ["a"], [["a"]])
    assert text_scores(["nist"], ["Zizzi is cheap."], [["Zizzi is cheap."]]) == {"nist": 2.0}


@pytest.mark.usefixtures("fresh")
def test_missing_java_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="cider cannot be computed: the command java is not"):
        coco.scores(["cider"], ["a"], [["a"]])


@pytest.mark.usefixtures("fresh")
def test_java_that_does_not_run_is_named(monkeypatch):
    def fails(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(subprocess, "run", fails)
    assert coco.missing().startswith("the command java does not run")


@pytest.mark.usefixtures("java")
def test_a_failing_tokeniser_raises(monkeypatch):
    def silent(*_, **__):
        return subprocess.CompletedProcess([], 1, stdout="", stderr="out of memory")

    monkeypatch.setattr(subprocess, "run", silent)
    with pytest.raises(RuntimeError, match=r"1 lines for 2 .*out of memory"):
        coco.scores(["cider"], ["a"], [["a"]])
