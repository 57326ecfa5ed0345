"""Metrics of generated texts as the scorer of the E2E NLG Challenge computes them.

BLEU and NIST are those of the script mteval-v13a (version of 23 June 2017), run without options:
default tokenisation, case ignored, the closest reference for the brevity penalty of BLEU. sacrebleu
provides the tokenisation and the n-gram counts of BLEU; no maintained library has this NIST (nltk's
takes the best single reference, mteval matches the n-grams of all of them).

METEOR, ROUGE-L and CIDEr are those of the COCO caption code, from the package `pycocoevalcap`
(extra `e2e`). They read the tokens of Stanford's PTB tokeniser, without punctuation; that tokeniser
and METEOR 1.5 are Java programs.

Source:
    K. Papineni et al., ACL 2002 (BLEU); G. Doddington, HLT 2002 (NIST); O. Dušek, J. Novikova and
    V. Rieser, Computer Speech & Language 59, 123 (2020) (the challenge); X. Chen et al., arXiv
    1504.00325 (the COCO code); M. Denkowski and A. Lavie, WMT 2014 (METEOR); C.-Y. Lin, ACL
    workshop 2004 (ROUGE); R. Vedantam et al., CVPR 2015 (CIDEr).
"""

import math
import shutil
import string
import subprocess
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from itertools import chain, zip_longest
from typing import Any

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from analog_grasp.tasks.metrics import Metric

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


def text_scores(
    names: Sequence[str],
    outputs: Sequence[str],
    references: Sequence[Sequence[str]],
    own: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """Return metrics of generated texts by name.

    Args:
        names: Metrics from `TEXT_METRICS` or `own`.
        outputs: n texts.
        references: For each output one or more texts.
        own: Further metrics by name, functions of `(outputs, references)`.

    Raises:
        RuntimeError: A metric requires Java or a package that is not installed.

    Example:
        >>> text_scores(["nist"], ["Zizzi is cheap."], [["Zizzi is cheap."]])
        {'nist': 2.0}
    """
    functions = {"bleu": bleu, "nist": nist} | dict(own or {})
    java = [name for name in names if name not in functions]
    found = coco_scores(java, outputs, references) if java else {}
    return {
        name: found[name] if name in java else float(functions[name](outputs, references))
        for name in names
    }


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU of n-grams up to length 4 over all outputs, 0 to 1; see `text_scores`.

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
    """Return NIST of n-grams up to length 5 over all outputs, 0 and above; see `text_scores`.

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
    """Return METEOR and ROUGE-L (0 to 1) and CIDEr (0 to 10) by name; see `text_scores`.

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
