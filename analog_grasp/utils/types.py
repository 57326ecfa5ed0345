"""Literal types and defaults that settings, adapters and tiles share.

This module imports nothing heavy, so that the command line can list its options quickly.
"""

from typing import Literal

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""The built-in model's id on the Hub."""

HARNESS_PREFIX = "lm-eval/"
"""What the name of a task of lm-eval begins with."""

TASK_NAMES = (
    "reviews", "glue/cola", "glue/sst2", "glue/mrpc", "glue/qqp", "glue/mnli", "glue/qnli",
    "glue/rte", "glue/stsb", "glue/wnli", "e2e", "e2e/dev", "csv", "lm",
)  # fmt: skip
"""The tasks that `load_task` knows without registration."""

DEFAULT_GROUPS = 64
"""K of GRASP and StochGRASP where none is given; fewer in layers with fewer input features."""

RANGES_FILE = "input_ranges.safetensors"
"""The file of an adapter with the input range that each layer has learned."""

EPOCHS = 5.0
"""Epochs of a training."""

REFIT_STEPS = 200
"""Optimiser steps of a recalibration by gradients."""

SHIFT_LR_RATIO = 0.5
"""Learning rate of GRASP's shifts relative to that of its scales."""

Schedule = Literal["constant", "linear"]
"""Course of a value over a training: its full value throughout, or a linear rise to it."""

NoiseLoss = Literal["l2", "kl"]
"""Form of the noise-aware loss: squared difference, or Kullback-Leibler divergence."""

Placement = Literal["digital", "folded", "programmed"]
"""Placement of an adapter: digital arithmetic, folded into the weights, or in analog devices."""

Sampling = Literal["feature", "group", "weight", "token"]
"""Unit of a StochGRASP sample in training."""

ProgrammingError = Literal["device", "learned"]
"""Programming error of a programmed adapter's parameters: the device's, or the learned one."""

RefitMethod = Literal["gradient", "least-squares", "statistics"]
"""Method of a recalibration."""

DriftCompensation = Literal["global", "per-column", "exact", "none"]
"""Rescaling of the outputs of a drifting tile."""
