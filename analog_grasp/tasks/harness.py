"""Zero-shot tasks of lm-eval, measured by the harness's own code (extra ``lm-eval``)."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from analog_grasp.tasks.base import Split, Tokenizer
from analog_grasp.tasks.language_modeling import LanguageModelingTask, language_modeling
from analog_grasp.utils.types import HARNESS_PREFIX


@dataclass(eq=False)
class HarnessTask(LanguageModelingTask):
    """Tasks of lm-eval for measuring, and a text for training and calibration.

    Each metric of each task is a score. Metrics of which lower is better are omitted: the
    perplexity of a text is measured by the task lm.

    Args:
        name: Name in reports, such as "lm-eval/arc_easy".
        train: Text for training, as in `LanguageModelingTask`.
        validation: More text.
        metrics: The scores, such as "arc_easy/acc"; the first is the primary one.
        names: The tasks as lm-eval names them: tasks, groups or tags.
        include_path: A folder with the files of further tasks, whose code is trusted.

    Source:
        EleutherAI, lm-evaluation-harness.

    Example:
        ``harness_task(["arc_easy"]).scores(deployment.model)``
    """

    names: tuple[str, ...] = field(default=(), kw_only=True)
    include_path: Path | None = field(default=None, kw_only=True)

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The metrics given, which are the harness's."""
        return self.metrics

    def _predict(self, model: nn.Module, tokenizer: Tokenizer, split: Split, size: int) -> Any:
        """Return the results of the harness, or of the split "train" the text's likelihoods."""
        if split == "train":
            return super()._predict(model, tokenizer, split, size)
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        # The harness takes no model of peft.
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with _quiet():
            adapted = HFLM(
                pretrained=inner,
                tokenizer=tokenizer,
                batch_size=size,
                max_length=self.length_for(model),
            )
            tasks = _loaded(self.names, self.include_path)
            return evaluate(adapted, tasks, bootstrap_iters=0, log_samples=False)["results"]

    def _score(self, predicted: Any, split: Split) -> dict[str, float]:
        if split == "train":
            return self._text_scores(predicted)
        scores = {}
        for metric in self.metrics:
            task, _, name = metric.partition("/")
            keys = (key for key in predicted[task] if key.partition(",")[0] == name)
            scores[metric] = float(predicted[task][next(keys)])
        return scores


def harness_task(
    names: Sequence[str], data_dir: Path | None = None, *, include_path: Path | None = None
) -> HarnessTask:
    """Return tasks of lm-eval as one task.

    Args:
        names: The tasks as lm-eval names them.
        data_dir: The text for training and calibration, as in `language_modeling`.
        include_path: A folder with the files of further tasks. Such a file can let code run.

    Raises:
        ValueError: lm-eval is not installed, a task is unknown or cannot be loaded, or no metric
            of the tasks is one of which higher is better.
        FileNotFoundError: The text is missing, or the Hub cannot be reached.
    """
    if not names:
        raise ValueError(
            "No task of lm-eval is named: give one or more, such as "
            f"{HARNESS_PREFIX}arc_easy,hellaswag."
        )
    if find_spec("lm_eval") is None:
        raise ValueError(
            "Tasks of lm-eval require the package lm-eval, which is not installed: install "
            "analog-grasp[lm-eval]."
        )
    metrics = tuple(
        f"{task}/{metric}"
        for task, loaded in _loaded(names, include_path)["tasks"].items()
        for metric, higher in loaded.higher_is_better().items()
        if higher
    )
    if not metrics:
        raise ValueError(
            f"The lm-eval tasks {', '.join(names)} have no metric of which higher is better: "
            "choose others, or the task lm for the perplexity of a text."
        )
    text = language_modeling(data_dir)
    return HarnessTask(
        HARNESS_PREFIX + ",".join(names), text.train, text.validation, metrics,
        names=tuple(names), include_path=include_path,
    )  # fmt: skip


def _loaded(names: Sequence[str], include_path: Path | None) -> Any:
    with _quiet():
        manager = _manager(include_path)
        if unknown := [name for name in names if name not in manager.all_tasks]:
            raise ValueError(
                f"lm-eval has no task {unknown[0]!r}: `lm-eval ls tasks` lists those that it has."
            )
        try:
            return manager.load(list(names))
        except OSError as error:
            raise FileNotFoundError(
                f"The data of the lm-eval tasks {', '.join(names)} could not be loaded from the "
                "Hub, which cannot be reached or lacks them."
            ) from error


@lru_cache
def _manager(include_path: Path | None) -> Any:
    """Return the harness's index of tasks, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's log of its own steps off the console."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
