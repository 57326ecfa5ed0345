"""Zero-shot tasks of lm-eval, measured by the harness's own code (extra ``lm-eval``)."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from traceback import walk_tb
from typing import Any, Self

from datasets import Dataset
from peft import PeftModel
from torch import nn

from analog_grasp.tasks.base import Split, Tokenizer, position_limit
from analog_grasp.tasks.custom_metrics import first_line
from analog_grasp.tasks.language_modeling import LanguageModelingTask, language_modeling
from analog_grasp.tasks.metrics import Metric
from analog_grasp.utils.errors import check_packages
from analog_grasp.utils.types import HARNESS_PREFIX


@dataclass(eq=False)
class HarnessTask(LanguageModelingTask):
    """Tasks of lm-eval for measuring, and a text for training and calibration.

    Each metric of each task is a score, and each aggregate of a group, before those of its tasks.
    Where a metric is computed with several filters of the model's text, each is a score, such as
    "gsm8k/exact_match/strict-match". Metrics of which lower is better are omitted: the perplexity
    of a text is measured by the task lm.

    Args:
        name: Name in reports, such as "lm-eval/arc_easy".
        train: Text for training, as in `LanguageModelingTask`.
        validation: More text.
        metrics: The scores, such as "arc_easy/acc"; the first is the primary one.
        metric: Another primary score, one of `metrics`.
        names: The tasks as lm-eval names them: tasks, groups or tags.
        include_path: A folder with the files of further tasks, whose code is trusted.
        max_length: Length of a training example; the harness's contexts have up to as many tokens
            as the model has positions.

    Source:
        EleutherAI, lm-evaluation-harness.

    Example:
        ``harness_task(["arc_easy"]).scores(deployment.model)``
    """

    names: tuple[str, ...] = field(default=(), kw_only=True)
    include_path: Path | None = field(default=None, kw_only=True)

    def __post_init__(self, metric: str | Metric | None) -> None:
        if metric is not None and metric not in self.metrics:
            raise ValueError(
                f"The task '{self.name}' has no metric {metric!r}; it should be one of "
                f"{', '.join(self.metrics)}."
            )
        super().__post_init__(metric)

    @property
    def known_metrics(self) -> tuple[str, ...]:
        """The metrics given, which are the harness's."""
        return self.metrics

    def with_rows(self, train: Dataset, validation: Dataset) -> Self:
        """Return the task on other training rows.

        Raises:
            ValueError: The validation rows are others, which the harness would not measure.
        """
        if validation is not self.validation:
            raise ValueError(
                f"The task '{self.name}' is measured on the rows of lm-eval, none of which can be "
                "held out: tune and select epochs on another task."
            )
        return super().with_rows(train, validation)

    def _predict(self, model: nn.Module, tokenizer: Tokenizer, split: Split, size: int) -> Any:
        """Return the results of the harness, or of the split "train" the text's likelihoods."""
        if split == "train":
            return super()._predict(model, tokenizer, split, size)
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"The adapter is a {model.active_peft_config.peft_type.value}, whose prompt the "
                f"task '{self.name}' cannot measure; an adapter of weights, such as LoRA, is "
                "accepted."
            )
        # The harness takes no model of peft.
        inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with _quiet():
            adapted = HFLM(
                pretrained=inner,
                tokenizer=tokenizer,
                batch_size=size,
                max_length=position_limit(model),
            )
            tasks = _loaded(self.names, self.include_path)
            return evaluate(adapted, tasks, bootstrap_iters=0, log_samples=False)["results"]

    def _score(self, predicted: Any, split: Split) -> dict[str, float]:
        if split == "train":
            return self._text_scores(predicted)
        found: dict[str, Any] = {}
        for task, values in predicted.items():
            filters: dict[str, list[str]] = {}
            for key in values:
                metric, _, name = key.partition(",")
                filters.setdefault(metric, []).append(name)
            for metric, names in filters.items():
                keys = [f"{metric},{name}" if name else metric for name in names]
                scored = _score_names(task, metric, names)
                found |= dict(zip(scored, (values[key] for key in keys), strict=True))
        if lacking := [metric for metric in self.metrics if metric not in found]:
            raise ValueError(
                f"lm-eval has not computed {lacking[0]} of the task '{self.name}'; a task file "
                "should list metrics that its kind of task computes."
            )
        return {metric: float(found[metric]) for metric in self.metrics}


def harness_task(
    names: Sequence[str], data_dir: Path | None = None, *, include_path: Path | None = None
) -> HarnessTask:
    """Return tasks of lm-eval as one task.

    Args:
        names: The tasks as lm-eval names them.
        data_dir: The text for training and calibration, as in `language_modeling`.
        include_path: A folder with the files of further tasks. Such a file can let code run.

    Raises:
        ValueError: lm-eval is not installed, a task or one of its metrics is unknown or cannot be
            loaded, or a task has no metric of which higher is better.
        FileNotFoundError: The text is missing, or the Hub cannot be reached.
    """
    if not names:
        raise ValueError(
            "No task of lm-eval is named: give one or more, such as "
            f"{HARNESS_PREFIX}arc_easy,hellaswag."
        )
    check_packages("A task of lm-eval", "lm-eval", "lm_eval")
    found = _loaded(names, include_path)
    metrics: dict[str, None] = {}
    unscored = []
    for task, loaded in found["tasks"].items():
        filters = [each.name for each in loaded._filters]
        scores = [
            score
            for metric, higher in loaded.higher_is_better().items()
            if higher
            for score in _score_names(task, metric, filters)
        ]
        # The aggregates of the groups of a task precede it.
        for group in found["groups"].values():
            if loaded in group.get_all_tasks():
                metrics |= dict.fromkeys(_group_scores(group))
        metrics |= dict.fromkeys(scores)
        if not scores:
            unscored.append(task)
    if unscored:
        message = (
            f"The lm-eval tasks {', '.join(unscored)} have no metric of which higher is better"
        )
        if not metrics or {*unscored} & {*names}:
            raise ValueError(
                f"{message}: choose others, or the task lm for the perplexity of a text."
            )
        warnings.warn(f"{message}, and are not scored.", stacklevel=2)
    text = language_modeling(data_dir)
    return HarnessTask(
        HARNESS_PREFIX + ",".join(names), text.train, text.validation, tuple(metrics),
        names=tuple(names), include_path=include_path,
    )  # fmt: skip


def _score_names(task: str, metric: str, filters: Sequence[str]) -> list[str]:
    """Return the name of a score with each filter, which is named if there are several."""
    if len(filters) == 1:
        return [f"{task}/{metric}"]
    return [f"{task}/{metric}/{name}" for name in filters]


def _group_scores(group: Any) -> list[str]:
    """Return the names of the aggregates of which higher is better."""
    scores = []
    for config in group.aggregate_metric_list or []:
        metric = config.metric
        having = [each for each in group.get_all_tasks() if metric in each.higher_is_better()]
        if not having or not all(each.higher_is_better()[metric] for each in having):
            continue
        present = dict.fromkeys(each.name for task in having for each in task._filters)
        chosen = sorted(present) if config.filter_list is None else config.filter_list
        scores += _score_names(group.name, metric, [name for name in chosen if name in present])
    return scores


def _loaded(names: Sequence[str], include_path: Path | None) -> Any:
    with _quiet():
        manager = _manager(include_path)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise ValueError(
            f"lm-eval has no task {unknown[0]!r}: `lm-eval ls tasks` lists those that it has."
        )
    # The errors that it logs are raised here.
    with _quiet(logging.CRITICAL):
        try:
            found = manager.load(list(names))
        except OSError as error:
            raise FileNotFoundError(
                f"The data of the lm-eval tasks {', '.join(names)} could not be loaded from the "
                "Hub, which cannot be reached or lacks them."
            ) from error
        except Exception as error:
            raise ValueError(
                f"The lm-eval tasks {', '.join(names)} cannot be loaded: {_reason(error)}."
            ) from error
    for name, task in found["tasks"].items():
        if unknown := _unknown_metrics(task):
            raise ValueError(
                f"The lm-eval task {name} has the metric {unknown[0]}, which neither lm-eval nor "
                "evaluate has; choose another."
            )
    return found


def _unknown_metrics(task: Any) -> list[str]:
    """Return the metrics without a function, unless the task computes them by its own code."""
    from lm_eval.api.task import ConfigurableTask

    own_code = type(task).process_results is not ConfigurableTask.process_results
    if own_code or task.config.process_results is not None:
        return []
    return [name for name, function in task._metric_fn_list.items() if function is None]


def _reason(error: Exception) -> str:
    # A metric that lm-eval does not know has the aggregation None, which it then looks up.
    if isinstance(error, KeyError) and error.args == (None,):
        frames = [frame.f_locals for frame, _ in walk_tb(error.__traceback__)]
        metrics = [names["metric_name"] for names in frames if "metric_name" in names]
        if metrics:
            return (
                f"lm-eval has no metric {metrics[-1]}, so that the file of the task should state "
                "its aggregation, or name another metric"
            )
    return f"{type(error).__name__}, {first_line(error)}"


@lru_cache
def _manager(include_path: Path | None) -> Any:
    """Return the harness's index of tasks, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


@contextmanager
def _quiet(least: int = logging.ERROR) -> Iterator[None]:
    """Keep the harness's log of its own steps off the console."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(least)
    try:
        yield
    finally:
        logger.setLevel(level)
