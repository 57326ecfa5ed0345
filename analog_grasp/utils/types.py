"""The words that settings, adapters and tiles choose from.

Apart from all that computes, so that a command can tell its options before torch is loaded.
"""

from typing import Literal

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The built-in model, by its id on the Hub."""

TASK_NAMES = (
    "reviews", "glue/cola", "glue/sst2", "glue/mrpc", "glue/qqp", "glue/mnli", "glue/qnli",
    "glue/rte", "glue/stsb", "glue/wnli", "e2e", "e2e/dev", "csv",
)  # fmt: skip
"""The tasks that `load_task` knows without registration."""

SHIFT_LR_RATIO = 0.3
"""The learning rate of GRASP's shifts, in units of that of its scales."""

Placement = Literal["digital", "folded", "programmed"]
"""Where an adapter lives."""

Sampling = Literal["feature", "group", "weight"]
"""What draws its own sample in training."""

ProgrammingError = Literal["device", "learned"]
"""What the numbers of a programmed adapter miss their targets by."""

DriftCompensation = Literal["global", "per-column", "exact", "none"]
"""How the outputs of an ageing tile are scaled up again."""
