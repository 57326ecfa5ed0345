"""Selections of a task's rows, and the split of its training rows for tuning."""

from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from analog_grasp.utils.seed import derive_seed

if TYPE_CHECKING:
    from analog_grasp.tasks.base import Task

# By default one training row in five is held out, and at most 1,000.
_HELD_OUT_ONE_IN, _HELD_OUT_MOST = 5, 1000
_FEWEST_ROWS = 10


def select_rows(rows: Dataset, chosen: np.ndarray) -> Dataset:
    """Return some rows of a data set in their original order.

    Example:
        >>> select_rows(Dataset.from_dict({"text": ["a", "b", "c"]}), np.array([2, 0]))["text"][:]
        ['a', 'c']
    """
    return Dataset.from_dict(rows[np.sort(chosen)], features=rows.features)


def tuning_task(task: "Task", seed: int, held_out: int | None = None) -> "Task":
    """Return a task for tuning: some training rows of `task` become its validation rows.

    The validation rows of `task` are not used.

    Args:
        task: Task whose training rows are split.
        seed: Seed of the split.
        held_out: Number of rows to measure on; if None, a fifth of the rows and at most 1,000.

    Raises:
        ValueError: There are fewer than 10 training rows, or more than half would be held out.

    Example:
        >>> from analog_grasp.tasks.reviews import reviews
        >>> divided = tuning_task(reviews(train=20, validation=2), seed=0)
        >>> len(divided.train), len(divided.validation)
        (16, 4)
    """
    count = len(task.train)
    if count < _FEWEST_ROWS:
        raise ValueError(
            f"The task '{task.name}' has {count} training rows, of which some must be held out for "
            f"tuning; it should have {_FEWEST_ROWS} or more."
        )
    held = min(count // _HELD_OUT_ONE_IN, _HELD_OUT_MOST) if held_out is None else held_out
    if not 1 <= held <= count // 2:
        raise ValueError(
            f"The number of training rows of the task '{task.name}' held out for tuning is {held} "
            f"of {count}; it should be from 1 to {count // 2}."
        )
    order = np.random.default_rng(derive_seed(seed, "held out")).permutation(count)
    return task.with_rows(
        select_rows(task.train, order[held:]), select_rows(task.train, order[:held])
    )
