"""Scores that are fractions, and scores of which less is better, by their names."""

import pytest

from analog_grasp.utils.metrics import is_fraction, lower_is_better


@pytest.mark.parametrize(
    "name",
    [
        *("accuracy", "accuracy_mm", "f1", "macro_f1", "matthews_correlation", "mcc", "pearson"),
        *("precision", "recall", "roc_auc", "Bleu", "rouge_l", "rouge_rougeL", "meteor"),
        *("truthfulqa_gen/bleu_acc", "truthfulqa_gen/rougeL_acc"),
        *("arc_easy/acc", "arc_easy/acc_norm", "gsm8k/exact_match/strict-match", "squad_f1/f1"),
    ],
)
def test_fractions_are_shown_in_per_cent(name):
    assert is_fraction(name)
    assert not lower_is_better(name)


@pytest.mark.parametrize(
    "name",
    [
        "nist",
        "bleurt",
        "cider",
        "recaller",
        "acc_task/nist",
        "f10",
        "negative_mae",
        "chrf",
        "filter",
        "wmt16/bleu",
        "wmt16/bleu/none",
        "squadv2/f1",
        "truthfulqa_gen/bleu_max",
        "truthfulqa_gen/rougeL_diff",
    ],
)
def test_scores_with_other_units_are_not(name):
    assert not is_fraction(name)
    assert not lower_is_better(name)


@pytest.mark.parametrize(
    "name",
    [
        *("mse", "mse_mm", "perplexity", "bits_per_byte", "wiki/word_perplexity", "mae"),
        *("mape", "smape", "mase", "wer", "cer", "ter", "brier_score", "errors_mae", "log_loss"),
        *("mean_squared_error", "max_error", "sacrebleu_ter"),
    ],
)
def test_errors_are_better_the_lower_they_are(name):
    assert lower_is_better(name)
    assert not is_fraction(name)
