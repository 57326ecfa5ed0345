"""Metrics of logits and of generated texts.

Symbols: `n` examples, `C` classes. `logits` has shape (n, C), or (n, 1) for a regression. `labels`
has shape (n,), or (n, C) with entries 0 and 1 where an example can have several labels. Fractions
unless stated, computed by scikit-learn and scipy.

The metrics of texts are those of the scorer of the E2E NLG Challenge. BLEU and NIST are as in the
script mteval-v13a (version of 23 June 2017) without options: default tokenisation, case ignored,
the closest reference for the brevity penalty of BLEU. sacrebleu provides the tokenisation and the
n-gram counts of BLEU; no maintained library has this NIST (nltk's takes the best single reference,
mteval matches the n-grams of all of them). METEOR, ROUGE-L and CIDEr are those of the COCO caption
code, from the package `pycocoevalcap` (extra `e2e`). They read the tokens of Stanford's PTB
tokeniser, without punctuation; that tokeniser and METEOR 1.5 are Java programs.

Source:
    B. W. Matthews, Biochim. Biophys. Acta 405, 442 (1975); K. Papineni et al., ACL 2002 (BLEU);
    G. Doddington, HLT 2002 (NIST); O. Dušek, J. Novikova and V. Rieser, Computer Speech & Language
    59, 123 (2020) (the challenge); X. Chen et al., arXiv 1504.00325 (the COCO code); M. Denkowski
    and A. Lavie, WMT 2014 (METEOR); C.-Y. Lin, ACL workshop 2004 (ROUGE); R. Vedantam et al., CVPR
    2015 (CIDEr).
"""

import math
import shutil
import string
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain, zip_longest
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

# Of logits and labels; for generated texts, of outputs and references.
Metric = Callable[[Any, Any], float]
COCO_METRICS = ("meteor", "rouge_l", "cider")
TEXT_METRICS = ("bleu", "nist", *COCO_METRICS)

# Older versions of Java read and write in the encoding of the locale.
_JAVA = ("java", "-Dfile.encoding=UTF-8", "-Xmx2G")

# Case is ignored for the letters A to Z only.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NIST_ORDER = 5
# The length penalty is 1/2 for an output with two thirds of the words of the references.
_NIST_BETA = math.log(2) / math.log(1.5) ** 2

type _NGram = tuple[str, ...]


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of examples whose prediction is right.

    With several labels per example, all of them must be right.

    Example:
        >>> accuracy(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 0]))
        0.5
    """
    return float(accuracy_score(labels, predicted_labels(logits, labels)))


def f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return F1 of class 1 of two classes; 0 if class 1 is neither present nor predicted.

    With several labels per example, the micro-average over all labels.

    Example:
        >>> f1(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 0, 0]))
        0.6666666666666666
    """
    predicted = predicted_labels(logits, labels)
    if predicted.shape[1:] == (1,):
        return _f1_of_one_label(predicted, labels)
    average = "micro" if labels.ndim == 2 else "binary"
    return float(f1_score(labels, predicted, average=average, zero_division=0.0))


def macro_f1(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of F1 over all C classes; 0 for a class neither present nor predicted.

    Example:
        >>> round(macro_f1(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2])), 4)
        0.5556
    """
    classes, predicted = range(logits.shape[1]), predicted_labels(logits, labels)
    if predicted.shape[1:] == (1,):
        return _f1_of_one_label(predicted, labels)
    return float(f1_score(labels, predicted, labels=classes, average="macro", zero_division=0.0))


def _f1_of_one_label(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Return F1 of the only label, (n, 1), which scikit-learn reads as two classes."""
    return float(f1_score(labels[:, 0], predicted[:, 0], zero_division=0.0))


def matthews(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return Matthews' correlation coefficient, -1 to 1; 0 if a single class is predicted.

    Example:
        >>> matthews(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([0, 1]))
        1.0
    """
    return float(matthews_corrcoef(labels, logits.argmax(axis=1)))


def pearson(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return Pearson's linear correlation, -1 to 1.

    The correlation with a constant is undefined (0/0) and counts as 0 here: a constant prediction
    carries no information about the labels.

    Example:
        >>> round(pearson(np.array([[1.0], [2.0], [3.0]]), np.array([2.0, 4.0, 6.0])), 6)
        1.0
    """
    return _correlation(stats.pearsonr, logits, labels)


def spearman(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return Spearman's rank correlation, -1 to 1; 0 for a constant, as in `pearson`.

    Example:
        >>> round(spearman(np.array([[1.0], [2.0], [9.0]]), np.array([3.0, 4.0, 5.0])), 6)
        1.0
    """
    return _correlation(stats.spearmanr, logits, labels)


def mse(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean squared error, in the squared unit of the labels; lower is better.

    Example:
        >>> mse(np.array([[1.0], [2.0]]), np.array([1.0, 4.0]))
        2.0
    """
    return float(np.mean((logits[:, 0].astype(np.float64) - labels) ** 2))


def predicted_labels(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the class of the largest logit, or for several labels each one above 0."""
    return (logits > 0).astype(np.int64) if labels.ndim == 2 else logits.argmax(axis=1)


def _correlation(
    statistic: Callable[..., tuple[float, float]], logits: np.ndarray, labels: np.ndarray
) -> float:
    predictions = logits[:, 0].astype(np.float64)
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return 0.0
    return float(statistic(predictions, labels.astype(np.float64))[0])


MULTI_LABEL: dict[str, Metric] = {"accuracy": accuracy, "f1": f1, "macro_f1": macro_f1}
CLASSIFICATION: dict[str, Metric] = MULTI_LABEL | {"matthews": matthews}
REGRESSION: dict[str, Metric] = {"pearson": pearson, "spearman": spearman, "mse": mse}


def check_finite(values: np.ndarray, kind: str) -> None:
    """Raise ValueError if values of any of n examples, or of another kind, are not finite."""
    broken = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).sum())
    if broken:
        raise ValueError(
            f"The model gave NaN or infinite logits for {broken} of {len(values)} {kind}, where "
            "all should be finite; this measurement failed and is not scored."
        )


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU of n-grams up to length 4 over all outputs, 0 to 1.

    The k-th n-gram length without a match counts 1/2^k matches, also that of single words. A length
    that no output reaches has the precision 1.

    Example:
        >>> round(bleu(["The Rice Boat is cheap."], [["the Rice Boat is not cheap."]]), 4)
        0.5115
    """
    # mteval ignores the length of an empty reference, except for the first one.
    filled = [[texts[0], *(text for text in texts[1:] if text.strip())] for texts in references]
    lowered = [[text.translate(_LOWER) for text in texts] for texts in filled]
    # sacrebleu takes the first references of all outputs, then the second; None if there is none.
    streams = [list(stream) for stream in zip_longest(*lowered)]
    counted = BLEU(tokenize="13a", force=True).corpus_score(
        [text.translate(_LOWER) for text in outputs], streams
    )
    if counted.sys_len == 0:
        return 0.0
    percents, unmatched = [], 0
    for matches, count in zip(counted.counts, counted.totals, strict=True):
        if not count:
            percents.append(100.0)
        elif not matches:
            unmatched += 1
            percents.append(100.0 / (2**unmatched * count))
        else:
            percents.append(100.0 * matches / count)
    mean = math.exp(sum(map(math.log, percents)) / len(percents))
    penalty = math.exp(min(0.0, 1 - counted.ref_len / counted.sys_len))
    return penalty * mean / 100


def nist(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return NIST of n-grams up to length 5 over all outputs, 0 and above.

    Each n-gram of an output that is also in one of its references counts its information in bits:
    the logarithm of how often, in all references, its beginning is followed by its last word. The
    length penalty compares the number of words of all outputs with n times the mean number of words
    of the non-empty references.

    Example:
        >>> nist(["Zizzi is cheap."], [["Zizzi is cheap."]])
        2.0
    """
    tokens = [_tokens(text) for text in outputs]
    targets = [[_ngrams(_tokens(text)) for text in texts] for texts in references]
    counts: Counter[_NGram] = Counter()
    for ngrams in chain.from_iterable(targets):
        counts.update(ngrams)
    words = sum(count for ngram, count in counts.items() if len(ngram) == 1)
    information = [0.0] * (_NIST_ORDER + 1)
    total = [0] * (_NIST_ORDER + 1)
    for own, texts in zip(map(_ngrams, tokens), targets, strict=True):
        for ngram, count in own.items():
            total[len(ngram)] += count
            # mteval takes the word "0" for a missing one.
            before = words if ngram[:-1] in ((), ("0",)) else counts[ngram[:-1]]
            matches = min(count, max(target[ngram] for target in texts))
            if matches:
                information[len(ngram)] += matches * math.log2(before / counts[ngram])
    if not words:
        return 0.0
    filled = sum(1 for target in chain.from_iterable(targets) if target)
    # Same order of operations as mteval.
    ratio = sum(map(len, tokens)) / (words / (filled / len(outputs)))
    penalty = math.exp(-_NIST_BETA * math.log(min(ratio, 1.0)) ** 2) if ratio > 0 else 0.0
    return penalty * sum(i / max(t, 1) for i, t in zip(information, total, strict=True))


def _ngrams(tokens: Sequence[str]) -> Counter[_NGram]:
    """Return the counts of all n-grams up to length 5."""
    shifted = [tokens[n:] for n in range(_NIST_ORDER)]
    return Counter(
        chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, _NIST_ORDER + 1))
    )


def _tokens(text: str) -> list[str]:
    return Tokenizer13a()(text.translate(_LOWER)).split()


@cache
def missing_java() -> str | None:
    """Return why the COCO metrics cannot be computed on this machine; None if they can."""
    if find_spec("pycocoevalcap") is None:
        return 'the package pycocoevalcap is not installed (pip install "analog-grasp[e2e]")'
    if shutil.which("java") is None:
        return "the command java is not installed (Java 8 or newer)"
    try:
        subprocess.run(["java", "-version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the command java does not run ({error})"
    return None


def coco_scores(
    names: Sequence[str], outputs: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Return METEOR and ROUGE-L (0 to 1) and CIDEr (0 to 10) by name.

    Raises:
        RuntimeError: Java or `pycocoevalcap` is missing, or a Java program failed.
    """
    reason = missing_java()
    if reason is not None:
        raise RuntimeError(f"The metrics {', '.join(names)} cannot be computed: {reason}.")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    tokens = iter(_tokenised([*outputs, *(text for texts in references for text in texts)]))
    tried = {i: [next(tokens)] for i in range(len(outputs))}
    targets = {i: [next(tokens) for _ in texts] for i, texts in enumerate(references)}
    scorers = {"meteor": _meteor, "rouge_l": Rouge, "cider": Cider}
    try:
        return {name: float(scorers[name]().compute_score(targets, tried)[0]) for name in names}
    except (OSError, ValueError) as error:
        _meteor.cache_clear()
        raise RuntimeError(f"METEOR's Java program failed ({error}); it is not scored.") from error


def _tokenised(texts: Sequence[str]) -> list[str]:
    """Return each text in lower case, tokens separated by one space, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

    # Java has several line separators, and a text must stay on one line.
    lines = [" ".join(text.split()) for text in texts]
    done = subprocess.run(
        [*_JAVA, "-cp", str(files("pycocoevalcap.tokenizer") / STANFORD_CORENLP_3_4_1_JAR),
         "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        encoding="utf-8",
    )  # fmt: skip
    found = done.stdout.removesuffix("\n").split("\n")
    if done.returncode or len(found) != len(lines):
        raise RuntimeError(
            f"The PTB tokeniser returned {len(found)} lines for {len(lines)} "
            f"({done.stderr.strip()[-200:]}); METEOR, ROUGE-L and CIDEr cannot be computed."
        )
    return [" ".join(w for w in line.split(" ") if w not in PUNCTUATIONS) for line in found]


@cache
def _meteor() -> Any:
    """Return METEOR 1.5 as a running program, which takes seconds to start and is reused."""
    from pycocoevalcap.meteor.meteor import METEOR_JAR, Meteor

    class Utf8Meteor(Meteor):
        """METEOR in UTF-8 whatever the locale."""

        def __init__(self) -> None:
            self.meteor_p = subprocess.Popen(
                [*_JAVA, "-jar", str(files("pycocoevalcap.meteor") / METEOR_JAR),
                 "-", "-", "-stdio", "-l", "en", "-norm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.lock = threading.Lock()

        def __del__(self) -> None:
            # The original waits for its lock, which stays locked after a failed call.
            self.meteor_p.kill()
            self.meteor_p.communicate()

    return Utf8Meteor()
