"""A task divided for choosing by: some of its training rows are held out to measure on."""

from dataclasses import replace

import numpy as np
from datasets import Dataset

from analog_grasp.tasks.base import Task
from analog_grasp.utils.seed import derive_seed

# The training rows that are held out unless a number is given: one in so many, at most.
_HELD_OUT_ONE_IN, _HELD_OUT_MOST = 5, 1000
_FEWEST_ROWS = 10


def tuning_task(task: Task, seed: int, held_out: int | None = None) -> Task:
    """A task to tune on: some training rows of another are held out to measure on.

    The validation rows of the other task are not looked at.

    Args:
        task: Whose training split is divided.
        seed: Of the division.
        held_out: Rows to measure on; a fifth, 1,000 at most, where None.

    Raises:
        ValueError: There are too few training rows, or more than half of them would be held out.

    Example:
        >>> from analog_grasp.tasks.reviews import reviews
        >>> divided = tuning_task(reviews(train=20, validation=2), seed=0)
        >>> len(divided.train), len(divided.validation)
        (16, 4)
    """
    count = len(task.train)
    if count < _FEWEST_ROWS:
        raise ValueError(
            f"The task '{task.name}' has {count} training rows, of which some have to be held out "
            f"to tune on: it should have {_FEWEST_ROWS} or more."
        )
    held = min(count // _HELD_OUT_ONE_IN, _HELD_OUT_MOST) if held_out is None else held_out
    if not 1 <= held <= count // 2:
        raise ValueError(
            f"Of the {count} training rows of the task '{task.name}', {held} were to be held out "
            f"to tune on: it should be from 1 to {count // 2}."
        )
    order = np.random.default_rng(derive_seed(seed, "held out")).permutation(count)
    return replace(
        task, train=_rows(task.train, order[held:]), validation=_rows(task.train, order[:held])
    )


def _rows(rows: Dataset, chosen: np.ndarray) -> Dataset:
    return Dataset.from_dict(rows[np.sort(chosen)], features=rows.features)
