"""Tasks, their metrics, and the pre-trained models for them."""

from analog_grasp.tasks.base import Task
from analog_grasp.tasks.classification import SentenceTask
from analog_grasp.tasks.e2e import GenerationTask
from analog_grasp.tasks.harness import HarnessTask, harness_task
from analog_grasp.tasks.language_modeling import LanguageModelingTask
from analog_grasp.tasks.models import load_base_model, tokenizer_for
from analog_grasp.tasks.registry import load_task, register_task, task_names
from analog_grasp.utils.types import DEFAULT_MODEL

__all__ = [
    "DEFAULT_MODEL",
    "GenerationTask",
    "HarnessTask",
    "LanguageModelingTask",
    "SentenceTask",
    "Task",
    "harness_task",
    "load_base_model",
    "load_task",
    "register_task",
    "task_names",
    "tokenizer_for",
]
