"""What is measured: tasks, their metrics, and the pre-trained models that take them."""

from analog_grasp.choices import DEFAULT_MODEL
from analog_grasp.tasks.generation import GenerationTask
from analog_grasp.tasks.models import load_base_model
from analog_grasp.tasks.registry import load_task, register_task, task_names
from analog_grasp.tasks.sentences import SentenceTask
from analog_grasp.tasks.sources import tokenizer_for
from analog_grasp.tasks.task import Task

__all__ = [
    "DEFAULT_MODEL",
    "GenerationTask",
    "SentenceTask",
    "Task",
    "load_base_model",
    "load_task",
    "register_task",
    "task_names",
    "tokenizer_for",
]
