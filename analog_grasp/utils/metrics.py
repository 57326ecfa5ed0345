"""Names of scores: which are fractions of one, and of which a lower value is better.

A score of lm-eval is named after its task, as in ``"arc_easy/acc"``, and one of a part of the rows
after the part, as in ``"accuracy_mm"``.
"""

import re

_FRACTION = re.compile(
    r"(acc|accuracy|exact_match|f1|macro_f1|matthews|mcc|pearsonr?|spearmanr?|precision|recall"
    r"|roc_auc|bleu|meteor|rouge(\d|l|lsum)?|rouge_l)([_\W].*)?"
)
# Scores of lm-eval from 0 to 100; which of two is higher, as in "bleu_acc", is a fraction.
_PER_CENT = re.compile(r"[^/]*/(bleu|rouge)(?!.*_acc).*|squadv2/.*")
# Errors of evaluate and of its scripts, such as "mine_wer" of mine.py; of a negative error more is
# better.
_LOWER = re.compile(
    r"(?!neg(ative)?_)(\w+_)?(r?mse|mae|s?mape|mase|[wct]er|brier(_score)?|error|loss|perplexity"
    r"|bits_per_byte)([_\W].*)?"
)


def is_fraction(metric: str) -> bool:
    """Return whether a metric is a fraction of one, shown in per cent.

    Example:
        >>> is_fraction("accuracy"), is_fraction("arc_easy/acc_norm"), is_fraction("nist")
        (True, True, False)
    """
    if _PER_CENT.fullmatch(metric.lower()):
        return False
    return _FRACTION.fullmatch(_own_name(metric)) is not None


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is better.

    Example:
        >>> lower_is_better("perplexity"), lower_is_better("mse_mm"), lower_is_better("accuracy")
        (True, True, False)
    """
    return _LOWER.fullmatch(_own_name(metric)) is not None


def _own_name(metric: str) -> str:
    """Return the name of a metric without lm-eval's task in front of it and filter after it."""
    parts = metric.lower().split("/")
    return parts[min(1, len(parts) - 1)]
