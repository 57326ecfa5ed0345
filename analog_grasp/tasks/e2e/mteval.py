"""BLEU and NIST as computed by the script mteval-v13a of the E2E NLG Challenge.

The challenge runs the script without options: default tokenisation, case ignored, the closest
reference for the brevity penalty of BLEU. In its version of 23 June 2017 an output may have fewer
references than others. sacrebleu provides the tokenisation and the n-gram counts of BLEU; no
maintained library has this NIST (nltk's takes the best single reference, mteval matches the n-grams
of all of them).

Source:
    K. Papineni et al., ACL 2002 (BLEU); G. Doddington, HLT 2002 (NIST); O. Dušek, J. Novikova and
    V. Rieser, Computer Speech & Language 59, 123 (2020) (the challenge).
"""

import math
import string
from collections import Counter
from collections.abc import Sequence
from itertools import chain, zip_longest

from sacrebleu.metrics.bleu import BLEU
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

# Case is ignored for the letters A to Z only.
_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_NIST_ORDER = 5
# The length penalty is 1/2 for an output with two thirds of the words of the references.
_NIST_BETA = math.log(2) / math.log(1.5) ** 2

type _NGram = tuple[str, ...]


def bleu(outputs: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return BLEU of n-grams up to length 4 over all outputs, 0 to 1.

    The k-th n-gram length without a match counts 1/2^k matches, also that of single words. A length
    that no output reaches has the precision 1.

    Args:
        outputs: n texts.
        references: For each output one or more texts.

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

    Args:
        outputs: n texts.
        references: For each output one or more texts.

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
    penalty = _nist_penalty(sum(map(len, tokens)) / (words / (filled / len(outputs))))
    return penalty * sum(i / max(t, 1) for i, t in zip(information, total, strict=True))


def _nist_penalty(ratio: float) -> float:
    """Return the factor for outputs with `ratio` times the words of the mean references."""
    if ratio <= 0:
        return 0.0
    return math.exp(-_NIST_BETA * math.log(min(ratio, 1.0)) ** 2)


def _ngrams(tokens: Sequence[str]) -> Counter[_NGram]:
    """Return the counts of all n-grams up to length 5."""
    shifted = [tokens[n:] for n in range(_NIST_ORDER)]
    return Counter(
        chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, _NIST_ORDER + 1))
    )


def _tokens(text: str) -> list[str]:
    return Tokenizer13a()(text.translate(_LOWER)).split()
