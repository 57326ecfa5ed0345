"""BLEU and NIST as the script mteval-v13a computes them, over outputs with several references.

The E2E NLG Challenge took both from that script, called without options: the default
tokenisation, case ignored, the closest reference for BLEU's brevity penalty. sacrebleu carries
the tokenisation and BLEU; no well-kept library has this NIST (nltk's takes the best single
reference, where mteval matches n-grams of all of them).

Sources: K. Papineni et al., ACL 2002 (BLEU); G. Doddington, HLT 2002 (NIST); O. Dušek,
J. Novikova and V. Rieser, Computer Speech & Language 59, 123 (2020) (the challenge).
"""

import math
import string
from collections import Counter
from collections.abc import Sequence
from itertools import chain, zip_longest

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

# Case is ignored in the letters A to Z alone.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NIST_ORDER = 5
# The length penalty is 1/2 where an output has two thirds of the references' words.
_NIST_BETA = math.log(2) / math.log(1.5) ** 2

type _NGram = tuple[str, ...]


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU of n-grams up to 4 over all outputs, 0 to 1.

    An n-gram length without any match counts as 1/2, 1/4, ... of a match, as in mteval. Where no
    output is long enough to hold a 4-gram, BLEU is 0, and not what mteval makes of shorter ones.

    Args:
        outputs: n texts.
        references: of each, one or more texts.

    Example:
        >>> round(bleu(["The Rice Boat is cheap."], [["the Rice Boat is not cheap."]]), 4)
        0.5115
    """
    scorer = BLEU(tokenize="13a", smooth_method="exp", force=True)
    lowered = [[text.translate(_LOWER) for text in texts] for texts in references]
    # sacrebleu takes the first references of all outputs, then the second; None where there is
    # none.
    streams = [list(stream) for stream in zip_longest(*lowered)]
    return scorer.corpus_score([text.translate(_LOWER) for text in outputs], streams).score / 100


def nist(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """NIST of n-grams up to 5 over all outputs, 0 and up.

    Each n-gram of an output that a reference holds too weighs its information in bits: the
    logarithm of how often, in all references, its beginning is followed by its last word.

    As in the challenge's figures, outputs with fewer references than others count empty ones up
    to the largest number: the mean length of the references, on which the length penalty rests,
    is that of all their words divided by this number, and the penalty acts on very short outputs
    alone.

    Args:
        outputs: n texts.
        references: of each, one or more texts.

    Example:
        >>> nist(["Zizzi is cheap."], [["Zizzi is cheap."]])
        2.0
    """
    tried = [_tokens(text) for text in outputs]
    targets = [[_ngrams(_tokens(text)) for text in texts] for texts in references]
    counts: Counter[_NGram] = Counter()
    for ngrams in chain.from_iterable(targets):
        counts.update(ngrams)
    words = sum(count for ngram, count in counts.items() if len(ngram) == 1)
    gained = [0.0] * (_NIST_ORDER + 1)
    total = [0] * (_NIST_ORDER + 1)
    for tokens, texts in zip(tried, targets, strict=True):
        own = _ngrams(tokens)
        for ngram, count in own.items():
            total[len(ngram)] += count
            # mteval takes the word "0" for the lack of one.
            before = words if ngram[:-1] in ((), ("0",)) else counts[ngram[:-1]]
            matches = min(count, max(target[ngram] for target in texts))
            if matches:
                gained[len(ngram)] += matches * math.log2(before / counts[ngram])
    most = max(map(len, targets))
    penalty = _nist_penalty(sum(map(len, tried)) * most / words)
    return penalty * sum(g / max(t, 1) for g, t in zip(gained, total, strict=True))


def _nist_penalty(ratio: float) -> float:
    """The factor for outputs that hold `ratio` times the words of the mean reference."""
    if ratio <= 0:
        return 0.0
    return math.exp(-_NIST_BETA * math.log(min(ratio, 1.0)) ** 2)


def _ngrams(tokens: Sequence[str]) -> Counter[_NGram]:
    """How often each n-gram occurs, of all lengths up to NIST's."""
    shifted = [tokens[n:] for n in range(_NIST_ORDER)]
    return Counter(
        chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, _NIST_ORDER + 1))
    )


def _tokens(text: str) -> list[str]:
    return Tokenizer13a()(text.translate(_LOWER)).split()
